# SPDX-License-Identifier: Apache-2.0
"""What a destination holds whose receiver was started again: asked for, answered, and compared. Pure.

It is a part of either side's plan. The source asks for the digests of all pages, a part of a region at a time, and its
workers compare them with their own memory. Nothing is sent meanwhile.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence, Set

from parmig.engine.messages.digest_messages import MAX_DIGESTS, Digests, DigestsRequest
from parmig.engine.messages.worker_messages import CheckHeld, DigestPages
from parmig.engine.plan import destination_events, events
from parmig.engine.plan.events import AskDigests, Instruct, Instruction
from parmig.engine.plan.held_events import WorkerCheckedHeld
from parmig.errors import LimitExceededError, ParmigError, ProtocolError
from parmig.ram.page_digests import DIGEST_BYTES
from parmig.ram.regions import Region
from parmig.units import NS_PER_S

SILENCE_LIMIT_NS = 60 * NS_PER_S
"""How long the check may go on without an answer. An answer is for MAX_DIGESTS pages, 128 MiB, at most, which take
a tenth of a second, or some seconds if they were swapped out."""

AHEAD = 2
"""Parts that are asked for at a time, for each worker: one that it compares, and one that is under way."""

MAX_ASKED = 256
"""What a source may have asked for and not got yet."""


def _parts(regions: Sequence[Region], but: Set[int]) -> Iterator[tuple[int, int]]:
    """All parts of all regions but those in *but*: the number of the region, and the first page in it."""
    for number, region in enumerate(regions):
        if number not in but:
            for first in range(0, region.pages, MAX_DIGESTS):
                yield number, first


class HeldCheckRun:
    """(source) Compares all of the memory.

    Args:
        regions: all regions of all blocks.
        workers: how many send workers.
        but: regions that are sent anew in any case.
        now_ns: the time now.

    Attributes:
        proven_pages, again_pages: as in ``held_pages.Checked``, of all so far.
        unarmed: regions that are to be sent anew.
    """

    def __init__(self, regions: Sequence[Region], workers: int, but: Set[int], now_ns: int) -> None:
        self.proven_pages = self.again_pages = 0
        self.unarmed: set[int] = set()
        self._regions = regions
        self._left = _parts(regions, but)
        self._asked: set[tuple[int, int]] = set()
        self._ready: deque[CheckHeld] = deque()
        self._working: dict[int, CheckHeld] = {}
        self._idle = list(range(workers))
        self._ahead = AHEAD * workers
        self._since_ns = now_ns

    @property
    def over(self) -> bool:
        """Whether all is compared, once :meth:`begin` was called."""
        return not (self._asked or self._ready or self._working)

    def begin(self) -> list[Instruction]:
        """The first instructions."""
        return [instruction for _ in range(self._ahead) for instruction in self._ask()]

    def _ask(self) -> list[Instruction]:
        part = next(self._left, None)
        if part is None:
            return []
        self._asked.add(part)
        return [AskDigests(*part)]

    def heard(self, answer: events.PeerDigests, now_ns: int) -> list[Instruction]:
        """The destination has answered.

        Raises:
            ProtocolError: with something that it was not asked for.
        """
        part = answer.region, answer.first
        if part not in self._asked:
            raise ProtocolError(f"the destination sent digests of region {part[0]}, for which it was not asked")
        pages = min(MAX_DIGESTS, self._regions[answer.region].pages - answer.first)
        if len(answer.digests) != pages * DIGEST_BYTES:
            size = f"{len(answer.digests)} bytes of digests, expected {pages * DIGEST_BYTES}"
            raise ProtocolError(f"the destination sent {size}")
        self._asked.discard(part)
        self._since_ns = now_ns
        self._ready.append(CheckHeld(*part, answer.digests))
        return self._give()

    def _give(self) -> list[Instruction]:
        """Give what is ready to workers that have nothing to do."""
        given: list[Instruction] = []
        while self._ready and self._idle:
            worker = self._idle.pop()
            self._working[worker] = self._ready.popleft()
            given.append(Instruct(worker, self._working[worker]))
        return given

    def checked(self, event: WorkerCheckedHeld, now_ns: int) -> list[Instruction]:
        """A worker has compared one part."""
        del self._working[event.worker]
        self._idle.append(event.worker)
        self._since_ns = now_ns
        self.proven_pages += event.proven_pages
        self.again_pages += event.again_pages
        if event.unarmed:
            self.unarmed.add(event.region)
        return [*self._ask(), *self._give()]

    def replaced(self, worker: int) -> list[Instruction]:
        """Another worker has taken the place of *worker*, and does what that did not end."""
        part = self._working.get(worker)
        return [] if part is None else [Instruct(worker, part)]

    def overdue(self, now_ns: int, *, interrupted: bool) -> ParmigError | None:
        """The error of a check that hangs, or None. While the destination is *interrupted*, the time stands still."""
        if interrupted:
            self._since_ns = now_ns
        if now_ns - self._since_ns < SILENCE_LIMIT_NS:
            return None
        limit = f"{SILENCE_LIMIT_NS // NS_PER_S} s"
        return LimitExceededError(f"the restarted destination sent no digests of its memory for {limit}; is it stuck?")


class HeldAnswers:
    """(destination) Answers what the source asks about the memory here.

    Args:
        regions: all regions of all blocks.
        workers: how many receive workers.
    """

    def __init__(self, regions: Sequence[Region], workers: int) -> None:
        self._regions = regions
        self._workers = workers
        self._asked: dict[tuple[int, int], int] = {}

    def hear(self, asked: DigestsRequest) -> list[destination_events.Instruction]:
        """The source asks.

        Raises:
            ProtocolError: for something that is not there, or too much.
        """
        inside = 0 <= asked.region < len(self._regions) and asked.first < self._regions[asked.region].pages
        if not inside or asked.first % MAX_DIGESTS or len(self._asked) >= MAX_ASKED:
            raise ProtocolError(f"the source asked for digests that it cannot have: {asked}")
        part, worker = (asked.region, asked.first), asked.region % self._workers
        self._asked[part] = worker
        return [self._instruct(part, worker)]

    def _instruct(self, part: tuple[int, int], worker: int) -> Instruct:
        number, first = part
        pages = min(MAX_DIGESTS, self._regions[number].pages - first)
        return Instruct(worker, DigestPages(number, first, pages, held=True))

    def answer(self, event: events.WorkerDigestedPages) -> list[destination_events.Instruction]:
        """A worker has the digests."""
        self._asked.pop((event.region, event.first), None)
        return [destination_events.SendMessage(Digests(event.region, event.first, event.digests))]

    def replaced(self, worker: int) -> list[destination_events.Instruction]:
        """Another worker has taken the place of *worker*, and does what that did not end."""
        return [self._instruct(part, owner) for part, owner in self._asked.items() if owner == worker]
