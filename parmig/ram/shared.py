# SPDX-License-Identifier: Apache-2.0
"""What the worker processes of one side share besides guest memory: counters, limits, and some bits for each page.

It is one memory file, which the coordinator makes and every worker maps. Most of it needs no lock: each counter has
one writer, and only the owner of a region in a round uses what belongs to the region, with a fence between owners.
The exceptions have a record lock: the rate limit, and the end of a snapshot file.
"""

from __future__ import annotations

import fcntl
import itertools
import mmap
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import msgspec
import numpy as np
import numpy.typing as npt

from parmig.errors import ProtocolError
from parmig.ram.bits import Bits, bits_for
from parmig.ram.blocks import RamBlock
from parmig.ram.regions import Region
from parmig.units import NS_PER_MS, NS_PER_S

_LIMIT_WORDS = 8
_COUNTERS, _COUNTER_WORDS = 9, 10  # the fields of WorkerCounters, and the last batch in place
_PATH_WORDS = 2  # at most as many paths as workers; each has a rate and an instant, like the first two words of limits
_CODECS, _CODEC_WORDS = 256, 4

NOT_ARMED, FRESH, ARMED, LOST = 0, 1, 2, 3
"""State of a region's dirty tracking: not begun; begun by a scan, and its pages not read yet; begun and read; perhaps
begun, but its worker has died, so nobody knows what was read.
"""

NOBODY_YET = -1
"""In place of the last batch in place: the send worker of a receiver that was killed must begin anew."""

CATCH_UP_NS = 50 * NS_PER_MS
"""How much lost time a worker may make up for. On a busy machine it wakes some milliseconds after its instant; without
making up for them, they cost 7 % of 28 MiB/s."""


class WorkerCounters(msgspec.Struct):
    """Totals of one worker since it started.

    Attributes:
        handled_pages: pages that need nothing more in their round.
        waiting_ns: time without work: no instruction, no credit, or over the rate limit.
        huge_bytes: (destination) memory that was provided in huge pages.
    """

    handled_pages: int = 0
    sent_pages: int = 0
    zero_pages: int = 0
    skipped_pages: int = 0
    wire_bytes: int = 0
    scan_ns: int = 0
    busy_ns: int = 0
    waiting_ns: int = 0
    huge_bytes: int = 0

    def minus(self, before: WorkerCounters) -> WorkerCounters:
        """The difference to *before*."""
        return WorkerCounters(
            *(
                now - then
                for now, then in zip(msgspec.structs.astuple(self), msgspec.structs.astuple(before), strict=True)
            )
        )


class CodecFigures(msgspec.Struct, frozen=True):
    """What one codec did. Codec 0 has the batches that went as they are.

    Attributes:
        batches: that were sent in this codec.
        raw_bytes: size of their pages.
        encoded_bytes: what was sent of these.
        busy_ns: processor time for encoding or decoding, also for samples and for batches that did not become shorter.
    """

    batches: int = 0
    raw_bytes: int = 0
    encoded_bytes: int = 0
    busy_ns: int = 0


class CodecCounters:
    """Counts what each codec does in one worker, the only one that writes to *table*: CodecFigures by codec number."""

    def __init__(self, table: npt.NDArray[np.int64]) -> None:
        self._table = table

    def count(self, codec: int, raw_bytes: int, encoded_bytes: int) -> None:
        """Count a batch."""
        self._table[codec, :3] += (1, raw_bytes, encoded_bytes)

    def spend(self, codec: int, busy_ns: int) -> None:
        """Count time."""
        self._table[codec, 3] += busy_ns


class SharedArea:
    """The shared memory file of one side.

    Args:
        fd: an existing area, or -1 to make a new one; owned from here on.
        workers: how many worker slots it has.
        blocks: the agreed RAM blocks.
        regions: how many regions they were cut into.
        page_digests: keep a digest of each page (destination).

    Raises:
        ProtocolError: *fd* is an area of another size.

    Attributes:
        workers: how many worker slots it has.
        armed: one byte a region, NOT_ARMED, FRESH, ARMED or LOST (source).
        senders: one byte a region: the worker that sent it last, plus 1; 0: none (source).
        bits: for each block, one bit a page (``ram.bits``): on the source "the destination holds
            something else than zero there", on the destination "this page is known to exist".
        reported: for each block, one bit a page: a scan reported the page, and it was not read yet (source).
        page_digests: for each block, 8 bytes a page: the digest of what was placed there; empty if none are kept.
    """

    def __init__(
        self, fd: int, *, workers: int, blocks: Sequence[RamBlock], regions: int, page_digests: bool = False
    ) -> None:
        self.workers = workers
        bits_bytes = [bits_for(block.pages) for block in blocks]
        head = (_LIMIT_WORDS + workers * (_PATH_WORDS + _COUNTER_WORDS + _CODECS * _CODEC_WORDS)) * 8
        states = -(-regions // 8) * 8
        self._digests_at = head + 2 * states + 2 * sum(bits_bytes)
        digests_bytes = [8 * block.pages for block in blocks] if page_digests else []
        size = self._digests_at + sum(digests_bytes)  # pages that are never written take no memory
        if fd < 0:
            fd = os.memfd_create("parmig-shared", os.MFD_CLOEXEC)
            os.ftruncate(fd, size)
        elif os.fstat(fd).st_size != size:  # a shorter one would end this process by SIGBUS
            raise ProtocolError(f"a shared area has {os.fstat(fd).st_size} bytes, expected {size}")
        self.fd = fd
        self._map = mmap.mmap(fd, size)
        whole: npt.NDArray[np.uint8] = np.frombuffer(self._map, dtype=np.uint8)
        words = whole[:head].view(np.int64)
        ends_of_parts = np.cumsum((_LIMIT_WORDS, workers * _PATH_WORDS, workers * _COUNTER_WORDS))
        self._limit, paths, counters, codecs = np.split(words, ends_of_parts)
        self._paths = paths.reshape(workers, _PATH_WORDS)
        self._counters = counters.reshape(workers, _COUNTER_WORDS)
        self._codecs = codecs.reshape(workers, _CODECS, _CODEC_WORDS)
        self.armed: Bits = whole[head : head + regions]
        self.senders: Bits = whole[head + states : head + states + regions]
        ends = head + 2 * states + np.cumsum(bits_bytes * 2)
        parts = [whole[end - n : end] for n, end in zip(bits_bytes * 2, ends, strict=True)]
        self.bits: list[Bits] = parts[: len(blocks)]
        self.reported: list[Bits] = parts[len(blocks) :]
        self._firsts = np.cumsum([0, *(block.pages for block in blocks)]).tolist()
        table = whole[self._digests_at :].view(np.uint64)
        self.page_digests: list[npt.NDArray[np.uint64]] = (
            [table[first:end] for first, end in itertools.pairwise(self._firsts)] if page_digests else []
        )

    # -- counters -------------------------------------------------------------------------------

    def publish(self, worker: int, counters: WorkerCounters) -> None:
        """Publish the counters of *worker*. Only that worker calls this."""
        self._counters[worker, :_COUNTERS] = msgspec.structs.astuple(counters)

    def counters(self, worker: int) -> WorkerCounters:
        """What *worker* published last."""
        return WorkerCounters(*self._counters[worker, :_COUNTERS].tolist())

    def note_placed(self, worker: int, sequence: int) -> None:
        """(destination) All batches of *worker* up to *sequence* are in place. Who replaces it goes on there."""
        self._counters[worker, _COUNTERS] = sequence

    def placed(self, worker: int) -> int:
        """(destination) The last batch of *worker* that is in place."""
        return int(self._counters[worker, _COUNTERS])

    def forget_regions(self, numbers: Sequence[int], regions: Sequence[Region]) -> None:
        """(source) Whoever scanned *numbers* is gone: nothing is known of them but that they are to be sent anew."""
        self.armed[list(numbers)] = LOST
        for number in numbers:
            region = regions[number]
            self.reported[region.block][region.first_page // 8 : (region.end_page + 7) // 8] = 0

    def codec_counters(self, worker: int) -> CodecCounters:
        """Where *worker* counts what its codecs do."""
        return CodecCounters(self._codecs[worker])

    def codec_figures(self) -> dict[int, CodecFigures]:
        """What the codecs of all workers did, by number, for those that did anything."""
        totals = self._codecs.sum(axis=0)
        return {
            number: CodecFigures(*totals[number].tolist()) for number in np.flatnonzero(totals.any(axis=1)).tolist()
        }

    # -- digests of pages -----------------------------------------------------------------------

    def read_page_digests(self, block: int, first_page: int, pages: int) -> npt.NDArray[np.uint64]:
        """A copy of a part of ``page_digests``. It allocates nothing where nothing was placed."""
        digests: npt.NDArray[np.uint64] = np.empty(pages, dtype=np.uint64)
        os.preadv(self.fd, [digests.data], self._digests_at + 8 * (self._firsts[block] + first_page))
        return digests

    # -- rate limit -----------------------------------------------------------------------------

    def set_rate(self, bytes_per_s: int) -> None:
        """Limit the rate of all workers together; 0: no limit. It takes effect with each worker's next batch."""
        self._limit[0] = bytes_per_s

    def rate(self) -> int:
        """The limit of the rate of all workers together, in bytes a second; 0: no limit."""
        return int(self._limit[0])

    def set_path_rate(self, path: int, bytes_per_s: int) -> None:
        """Limit the rate of all workers on path number *path* together; as :meth:`set_rate`."""
        self._paths[path, 0] = bytes_per_s

    def is_limited(self, path: int) -> bool:
        """Whether there is a limit for all workers, or for those on path number *path*."""
        return bool(self._limit[0] > 0 or self._paths[path, 0] > 0)

    def reserve(self, size_bytes: int, path: int = 0) -> int:
        """Take *size_bytes* from the common budget, and from that of path number *path*.

        The budget is one instant on the clock. Each reservation moves it on by size / rate, and its bytes may be sent
        from the new instant on. (Sending the first batch at once added 6 % to the rate of a transfer of 2.5 s.) A
        worker that comes late makes up for at most CATCH_UP_NS, so never more than that is sent beyond the rate.

        Returns:
            the ``time.monotonic_ns()`` from which on they may be sent.
        """
        now = free = time.monotonic_ns()
        for budget in (self._limit, self._paths[path]):
            if (rate := int(budget[0])) > 0:
                with self._alone():
                    last = int(budget[1]) or now
                    budget[1] = max(now - CATCH_UP_NS, last) + size_bytes * NS_PER_S // rate
                    free = max(free, int(budget[1]))
        return free

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep all other processes out."""
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
        """Let appended data begin at *end_bytes*. Call it before the workers start."""
        self._limit[2] = end_bytes

    def take_space(self, size_bytes: int) -> int:
        """Append *size_bytes* for the caller alone, and return where they begin."""
        with self._alone():
            began = int(self._limit[2])
            self._limit[2] = began + size_bytes
        return began

    def close(self) -> None:
        """Unmap and close; views handed out must be gone."""
        del self._limit, self._paths, self._counters, self._codecs, self.armed, self.senders
        del self.bits, self.reported, self.page_digests
        try:
            self._map.close()
        except BufferError:
            pass  # a view is still held; the mapping goes with the process
        os.close(self.fd)
