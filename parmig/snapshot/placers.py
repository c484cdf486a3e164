# SPDX-License-Identifier: Apache-2.0
"""Places a snapshot's pages into memory, in a worker: each page from its place, or in the order of the stream."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import numpy as np

from parmig.errors import SnapshotError
from parmig.ram.bits import mask_of_bits, runs_of_index, runs_of_mask
from parmig.ram.blocks import PAGE_BYTES
from parmig.ram.place import PagePlacer
from parmig.ram.place_stream import StreamPlacer
from parmig.ram.reach.reach import Reach
from parmig.ram.regions import Region
from parmig.ram.shared import SharedArea, WorkerCounters
from parmig.snapshot.worker_setup import RestoreSetup
from parmig.stream.data_file import MigrationDataFile
from parmig.stream.ram_words import EncodedPage
from parmig.stream.stream_walk import StreamWalk
from parmig.transport.file import FileStream

BATCH_PAGES = 256
"""Pages that are read at once: 1 MiB, still in the cache when it is written. Into fresh tmpfs memory read(2) and
write(2) carry 2.0 GiB/s, write(2) from a mapping of the file 1.9, read(2) into the mapped memory 1.0."""


class MappedPlacer:
    """Reads pages from their places in the file.

    Args:
        setup: of the worker.
        fd: of the file; used, not owned.
        blocks: the blocks, by number.
        shared: its bits say which pages exist.
        check: called now and then; raises to end the work.
    """

    def __init__(
        self,
        setup: RestoreSetup,
        fd: int,
        blocks: Sequence[Reach],
        shared: SharedArea,
        check: Callable[[], None],
    ) -> None:
        self._setup = setup
        self._fd = fd
        self._placer = PagePlacer(blocks, shared)
        self._shared = shared
        self._check = check
        self._buffer = memoryview(bytearray(BATCH_PAGES * PAGE_BYTES))
        self.counters = WorkerCounters()

    def place(self, region: Region) -> None:
        """Make the pages of *region* equal to those in the file.

        Raises:
            SnapshotError: the file cannot be read.
            MemoryFullError: no space left in a memory file.
        """
        bitmap = memoryview(bytearray(-(-region.pages // 8)))
        self._read(self._setup.bitmap_offsets_bytes[region.block] + region.first_page // 8, bitmap)
        stored = mask_of_bits(np.frombuffer(bitmap, dtype=np.uint8), 0, region.pages)
        self._placer.place_zero(region.block, runs_of_mask(~stored) + region.first_page)
        index = np.flatnonzero(stored) + region.first_page
        for first in range(0, len(index), BATCH_PAGES):
            self._check()
            part = index[first : first + BATCH_PAGES]
            done = 0
            runs = runs_of_index(part)
            for begin, end in runs.tolist():
                size_bytes = (end - begin) * PAGE_BYTES
                at = self._setup.pages_offsets_bytes[region.block] + begin * PAGE_BYTES
                self._read(at, self._buffer[done : done + size_bytes])
                done += size_bytes
            self._placer.place(region.block, runs, self._buffer[:done])
            self.counters.handled_pages += len(part)
            self._shared.publish(self._setup.worker, self.counters)
        self._placer.note_placed(region.block, index)
        self.counters.sent_pages += len(index)
        self.counters.wire_bytes += len(index) * PAGE_BYTES
        self.counters.zero_pages += region.pages - len(index)
        self.counters.handled_pages += region.pages - len(index)
        self._shared.publish(self._setup.worker, self.counters)

    def _read(self, offset_bytes: int, target: memoryview) -> None:
        while target:
            try:
                count = os.preadv(self._fd, [target], offset_bytes)
            except OSError as error:
                raise SnapshotError(
                    f"{self._setup.file} cannot be read at byte {offset_bytes}: {error.strerror}"
                ) from error
            if not count:
                raise SnapshotError(
                    f"{self._setup.file} ends at byte {offset_bytes}; it was cut short while it was read"
                )
            target, offset_bytes = target[count:], offset_bytes + count


_ANY_PAGE = bytes(PAGE_BYTES)
"""The previous content of a page that is only checked: whether it can be decoded does not depend on that."""


class SequentialPlacer:
    """Reads the file from its start to the end of its pages. Takes the arguments of MappedPlacer."""

    def __init__(
        self,
        setup: RestoreSetup,
        fd: int,
        blocks: Sequence[Reach],
        shared: SharedArea,
        check: Callable[[], None],
    ) -> None:
        self._setup = setup
        self._fd = fd
        self._blocks = blocks
        self._shared = shared
        self._check = check
        self.counters = WorkerCounters()

    def place_all(self, *, check_only: bool) -> int:
        """Place all pages; returns where in the file the devices begin, in bytes.

        Args:
            check_only: follow the stream, and place nothing.

        Raises:
            StreamError: the stream is damaged.
            SnapshotError: the file cannot be read.
            MemoryFullError: no space left in a memory file.
        """
        data = MigrationDataFile(FileStream(self._fd, self._setup.file), self._setup.file)
        walk = StreamWalk(data)
        walk.head()
        placer = StreamPlacer(self._blocks, self._shared)
        for run in walk.pages():
            self._check()
            if not check_only:
                placer.place(run)
            elif isinstance(run, EncodedPage):
                run.decode(_ANY_PAGE)
            self.counters.sent_pages, self.counters.zero_pages = placer.data_pages, placer.zero_pages
            self.counters.handled_pages = placer.data_pages + placer.zero_pages
            self.counters.wire_bytes = data.position_bytes
            self._shared.publish(self._setup.worker, self.counters)
        return walk.devices_offset_bytes
