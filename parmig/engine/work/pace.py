# SPDX-License-Identifier: Apache-2.0
"""How fast each worker is, and what follows for what it is given: so that all end a round together. Pure.

A worker on a slow path must not hold much when the round ends, since all others would wait for it. So it gets bundles
of a bounded time, and rests once another worker would end sooner with what is left. All times are predictions from
measured rates. A worker that is late is expected to be late as long again, so the others take over more and more of
what a stuck path has not begun.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from parmig.ram.ack_rate import ChannelLoad
from parmig.units import MIB, NS_PER_MS, NS_PER_S

BUNDLE_NS = 250 * NS_PER_MS
"""How long a worker should be busy with a bundle. Each bundle costs the coordinator and the worker about a millisecond
together, and a worker has two."""

FIRST_BYTES = 4 * MIB
"""The bundle of a worker whose rate is not known yet. Two of them keep a path of 10 MB/s busy for 0.8 s."""

PRIOR_BYTES = 64 * MIB
"""How much memory must be handled before what it took on the wire counts as much as the expectation."""

MIN_WIRE_PART = 1 / 64
"""Memory in which nothing is found still counts as this part of it, so a bundle is bounded: what follows may be full. A
sparse TiB takes some 600 bundles at 1 Gbit/s."""


COUNTED_WIRE_PART = 1 / 4
"""Where the dirty pages of each region were counted, this part of them is on the wire at least: a codec that does
better gets shorter bundles."""


class _Worker:
    def __init__(self) -> None:
        self.rate = 0.0
        self.follows = True
        self.free_ns = 0
        self.given: deque[int] = deque()
        self.wire_bytes = 0


class Pace:
    """Follows the workers of one side through the rounds.

    Args:
        workers: how many.

    Attributes:
        wire_part: expected bytes on the wire for each byte of memory, in this round.
    """

    def __init__(self, workers: int) -> None:
        self._workers = [_Worker() for _ in range(workers)]
        self.wire_part = 1.0
        self._prior, self._least_part = 1.0, MIN_WIRE_PART
        self._handled_bytes = self._wire_bytes = 0

    # -- what happens ---------------------------------------------------------------------------

    def begin_round(self, dirty_part: float, least_part: float = MIN_WIRE_PART) -> None:
        """A round begins in which about *dirty_part* of the memory is to be sent, and never less than *least_part*."""
        self._least_part = least_part
        self._prior = min(1.0, max(least_part, dirty_part))
        self._handled_bytes = self._wire_bytes = 0
        self.wire_part = self._prior
        for worker in self._workers:
            worker.given.clear()
            worker.free_ns = 0

    def gave(self, number: int, size_bytes: int, now_ns: int) -> None:
        """Worker *number* was given so much memory."""
        worker = self._workers[number]
        worker.given.append(size_bytes)
        if worker.rate:
            worker.free_ns = max(now_ns, worker.free_ns) + self._takes_ns(worker.rate, size_bytes)

    def done(self, number: int, load: ChannelLoad | None, now_ns: int) -> None:
        """Worker *number* has handled the memory that it was given first, and reports its *load*; None: it has none."""
        worker = self._workers[number]
        size_bytes = worker.given.popleft() if worker.given else 0
        worker.follows = load is not None
        if load is None:
            return
        self._handled_bytes += size_bytes
        self._wire_bytes += load.wire_bytes - worker.wire_bytes
        worker.wire_bytes = load.wire_bytes
        part = (self._prior * PRIOR_BYTES + self._wire_bytes) / (PRIOR_BYTES + self._handled_bytes)
        self.wire_part = max(self._least_part, part)
        worker.rate = load.rate_bytes_per_s or worker.rate
        if worker.rate:
            left_bytes = load.unacked_bytes + self.wire_part * sum(worker.given)
            worker.free_ns = now_ns + round(left_bytes * NS_PER_S / worker.rate)

    def drop(self, number: int) -> None:
        """Worker *number* is gone, and another one begins in its place."""
        self._workers[number] = _Worker()

    # -- what follows ---------------------------------------------------------------------------

    def bundle_bytes(self, number: int, left_bytes: int, now_ns: int) -> int | None:
        """How much memory worker *number* should get, if *left_bytes* were given to nobody yet; None: no limit."""
        worker = self._workers[number]
        if not worker.rate:
            return round(FIRST_BYTES / self.wire_part) if worker.follows else None
        until_ns = min(BUNDLE_NS, max(0, self._all_end_ns(left_bytes, now_ns) - self._busy_ns(worker, now_ns)))
        return round(worker.rate * until_ns / NS_PER_S / self.wire_part)

    def should_rest(self, number: int, size_bytes: int, left_bytes: int, now_ns: int) -> bool:
        """Whether worker *number* would end the round later by taking *size_bytes* of the memory that is left.

        There is always a worker for which this is false.
        """
        worker = self._workers[number]
        if not worker.rate:
            return False
        takes_ns = self._busy_ns(worker, now_ns) + self._takes_ns(worker.rate, size_bytes)
        if takes_ns <= self._all_end_ns(left_bytes, now_ns):
            return False
        others = (
            self._busy_ns(other, now_ns) + self._takes_ns(other.rate, size_bytes)
            for other in self._workers
            if other is not worker and other.rate
        )
        return takes_ns > min(others, default=takes_ns)

    def speeds(self) -> Sequence[float] | None:
        """The rates of all workers; None: not all are known."""
        rates = [worker.rate for worker in self._workers]
        return rates if all(rates) else None

    def _takes_ns(self, rate: float, size_bytes: float) -> int:
        return round(self.wire_part * size_bytes * NS_PER_S / rate)

    def _busy_ns(self, worker: _Worker, now_ns: int) -> int:
        """How much longer *worker* is busy with what it has."""
        left_ns = worker.free_ns - now_ns
        return -left_ns if left_ns < 0 and worker.given else max(0, left_ns)

    def _all_end_ns(self, left_bytes: int, now_ns: int) -> int:
        """When all would end together, from now on, if what is left could be divided at will."""
        known = [worker for worker in self._workers if worker.rate]
        busy = sum(worker.rate * self._busy_ns(worker, now_ns) for worker in known)
        total = sum(worker.rate for worker in known)
        return round((busy + self.wire_part * left_bytes * NS_PER_S) / total)
