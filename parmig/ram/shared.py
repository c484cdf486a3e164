# SPDX-License-Identifier: Apache-2.0
"""What the worker processes of one side share besides guest memory: counters, limits, a little per page.

One memory file, made by the coordinator, mapped by every worker. No locks are needed for most of it:
counters have one writer each, and everything per region is touched only by the region's owner of the
round, with a fence between owners. The exceptions have a record lock: the rate limit, and the end of a snapshot file.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import msgspec
import numpy as np
import numpy.typing as npt

from parmig.ram.bits import Bits, bits_for
from parmig.ram.blocks import RamBlock
from parmig.units import NS_PER_MS, NS_PER_S

_LIMIT_WORDS = 8
_COUNTER_WORDS = 8

NOT_ARMED, FRESH, ARMED = 0, 1, 2
"""A region's dirty tracking: not begun; begun by a scan after which its pages were not read yet; begun."""

CATCH_UP_NS = 50 * NS_PER_MS
"""On a busy machine a worker wakes some milliseconds after its instant. Lost each time, they took 7 % of 28 MiB/s."""


class WorkerCounters(msgspec.Struct):
    """Totals of one worker since it started.

    Attributes:
        handled_pages: pages of regions that were looked at and need nothing more in their round.
        waiting_ns: time without anything to do: no instruction, no credit, over the rate limit.
    """

    handled_pages: int = 0
    sent_pages: int = 0
    zero_pages: int = 0
    skipped_pages: int = 0
    wire_bytes: int = 0
    scan_ns: int = 0
    busy_ns: int = 0
    waiting_ns: int = 0

    def minus(self, before: WorkerCounters) -> WorkerCounters:
        """What was added since *before*."""
        return WorkerCounters(
            *(
                now - then
                for now, then in zip(msgspec.structs.astuple(self), msgspec.structs.astuple(before), strict=True)
            )
        )


class SharedArea:
    """The shared memory file of one side.

    Args:
        fd: an existing area, or -1 to make one; owned from here on.
        workers: how many worker slots it has.
        blocks: the agreed RAM blocks.
        regions: how many regions they were cut into.

    Attributes:
        armed: one byte a region, NOT_ARMED, FRESH or ARMED (source).
        bits: for each block, one bit a page (``ram.bits``): on the source "the destination holds
            something else than zero there", on the destination "this page is known to exist in the memory file".
        found: for each block, one bit a page: a scan reported the page, and it was not read yet (source).
    """

    def __init__(self, fd: int, *, workers: int, blocks: Sequence[RamBlock], regions: int) -> None:
        bits_bytes = [bits_for(block.pages) for block in blocks]
        head = (_LIMIT_WORDS + workers * _COUNTER_WORDS) * 8
        armed = -(-regions // 8) * 8
        size = head + armed + 2 * sum(bits_bytes)  # pages of bits that are never set take no memory
        if fd < 0:
            fd = os.memfd_create("parmig-shared", os.MFD_CLOEXEC)
            os.ftruncate(fd, size)
        self.fd = fd
        self._map = mmap.mmap(fd, size)
        whole: npt.NDArray[np.uint8] = np.frombuffer(self._map, dtype=np.uint8)
        words = whole[:head].view(np.int64)
        self._limit = words[:_LIMIT_WORDS]
        self._counters = words[_LIMIT_WORDS:].reshape(workers, _COUNTER_WORDS)
        self.armed: Bits = whole[head : head + regions]
        ends = head + armed + np.cumsum(bits_bytes * 2)
        parts = [whole[end - n : end] for n, end in zip(bits_bytes * 2, ends, strict=True)]
        self.bits: list[Bits] = parts[: len(blocks)]
        self.found: list[Bits] = parts[len(blocks) :]

    # -- counters -------------------------------------------------------------------------------

    def publish(self, worker: int, counters: WorkerCounters) -> None:
        """Show *counters* to whoever looks; called by that worker only."""
        self._counters[worker] = msgspec.structs.astuple(counters)

    def counters(self, worker: int) -> WorkerCounters:
        """What that worker published last."""
        return WorkerCounters(*self._counters[worker].tolist())

    # -- rate limit -----------------------------------------------------------------------------

    def set_rate(self, bytes_per_s: int) -> None:
        """Limit all workers together; 0 is no limit. Takes effect with each worker's next batch."""
        self._limit[0] = bytes_per_s

    def reserve(self, size_bytes: int) -> int:
        """Take *size_bytes* from the common budget.

        The bucket is a reservation on the clock: the next free instant moves on by size / rate, whoever takes, and
        what was reserved is sent at the end of its time (sending the first batch at once put 6 % on top of a transfer
        of 2.5 s). Who comes late makes up for up to CATCH_UP_NS; more than that beyond rate times time is never sent.

        Returns:
            the ``time.monotonic_ns()`` from which on they may be sent.
        """
        now = time.monotonic_ns()
        rate = int(self._limit[0])
        if rate <= 0:
            return now
        with self._alone():
            last = int(self._limit[1]) or now
            free = max(now - CATCH_UP_NS, last) + size_bytes * NS_PER_S // rate
            self._limit[1] = free
        return free

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """While inside, no other process is."""
        fcntl.lockf(self.fd, fcntl.LOCK_EX)  # a record lock: the kernel frees it when a worker dies
        try:
            yield
        finally:
            fcntl.lockf(self.fd, fcntl.LOCK_UN)

    # -- the end of a file that all of them append to -------------------------------------------

    @property
    def file_end_bytes(self) -> int:
        """Where the file ends now."""
        return int(self._limit[2])

    def begin_file(self, end_bytes: int) -> None:
        """What is appended begins at *end_bytes*; before the workers start."""
        self._limit[2] = end_bytes

    def take_space(self, size_bytes: int) -> int:
        """Move the end of the file on by *size_bytes*, which are the caller's alone; returns where they begin."""
        with self._alone():
            began = int(self._limit[2])
            self._limit[2] = began + size_bytes
        return began

    def close(self) -> None:
        """Unmap and close; views handed out must be gone."""
        del self._limit, self._counters, self.armed, self.bits, self.found
        try:
            self._map.close()
        except BufferError:
            pass  # a view is still held; the mapping goes with the process
        os.close(self.fd)
