# SPDX-License-Identifier: Apache-2.0
"""Places a snapshot's pages into memory, in a worker: each page from its place, or in the order of the stream."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

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


@dataclass
class _Placer:
    """Reads a snapshot in a worker, and counts what it placed.

    Args:
        setup: of the worker.
        fd: of the file; used, not owned.
        blocks: the blocks, by number.
        shared: its bits say which pages exist.
        check: called now and then; raises to end the work.
    """

    setup: RestoreSetup
    fd: int
    blocks: Sequence[Reach]
    shared: SharedArea
    check: Callable[[], None]
    counters: WorkerCounters = field(default_factory=WorkerCounters, init=False)

    def _publish(self) -> None:
        self.counters.huge_bytes = sum(reach.huge_bytes for reach in self.blocks)
        self.shared.publish(self.setup.worker, self.counters)


@dataclass
class MappedPlacer(_Placer):
    """Reads pages from their places in the file."""

    def __post_init__(self) -> None:
        self._placer = PagePlacer(self.blocks, self.shared)
        self._buffer = memoryview(bytearray(BATCH_PAGES * PAGE_BYTES))

    def place(self, region: Region) -> None:
        """Make the pages of *region* equal to those in the file.

        Raises:
            SnapshotError: the file cannot be read.
            MemoryFullError: no space left in a memory file.
        """
        bitmap = memoryview(bytearray(-(-region.pages // 8)))
        self._read(self.setup.bitmap_offsets_bytes[region.block] + region.first_page // 8, bitmap)
        stored = mask_of_bits(np.frombuffer(bitmap, dtype=np.uint8), 0, region.pages)
        self._placer.place_zero(region.block, runs_of_mask(~stored) + region.first_page)
        index = np.flatnonzero(stored) + region.first_page
        self.blocks[region.block].provide(runs_of_index(index))
        for first in range(0, len(index), BATCH_PAGES):
            self.check()
            part = index[first : first + BATCH_PAGES]
            done = 0
            runs = runs_of_index(part)
            for begin, end in runs.tolist():
                size_bytes = (end - begin) * PAGE_BYTES
                at = self.setup.pages_offsets_bytes[region.block] + begin * PAGE_BYTES
                self._read(at, self._buffer[done : done + size_bytes])
                done += size_bytes
            self._placer.place(region.block, runs, self._buffer[:done])
            self.counters.handled_pages += len(part)
            self._publish()
        self._placer.note_placed(region.block, index)
        self.counters.sent_pages += len(index)
        self.counters.wire_bytes += len(index) * PAGE_BYTES
        self.counters.zero_pages += region.pages - len(index)
        self.counters.handled_pages += region.pages - len(index)
        self._publish()

    def _read(self, offset_bytes: int, target: memoryview) -> None:
        while target:
            try:
                count = os.preadv(self.fd, [target], offset_bytes)
            except OSError as error:
                raise SnapshotError(
                    f"{self.setup.file} cannot be read at byte {offset_bytes}: {error.strerror}"
                ) from error
            if not count:
                raise SnapshotError(
                    f"{self.setup.file} ends at byte {offset_bytes}; it was cut short while it was read"
                )
            target, offset_bytes = target[count:], offset_bytes + count


_ANY_PAGE = bytes(PAGE_BYTES)
"""The previous content of a page that is only checked: whether it can be decoded does not depend on that."""


class SequentialPlacer(_Placer):
    """Reads the file from its start to the end of its pages."""

    def place_all(self, *, check_only: bool) -> int:
        """Place all pages; returns where in the file the devices begin, in bytes.

        Args:
            check_only: follow the stream, and place nothing.

        Raises:
            StreamError: the stream is damaged.
            SnapshotError: the file cannot be read.
            MemoryFullError: no space left in a memory file.
        """
        data = MigrationDataFile(FileStream(self.fd, self.setup.file), self.setup.file)
        walk = StreamWalk(data)
        walk.head()
        placer = StreamPlacer(self.blocks, self.shared)
        for run in walk.pages():
            self.check()
            if not check_only:
                placer.place(run)
            elif isinstance(run, EncodedPage):
                run.decode(_ANY_PAGE)
            self.counters.sent_pages, self.counters.zero_pages = placer.data_pages, placer.zero_pages
            self.counters.handled_pages = placer.data_pages + placer.zero_pages
            self.counters.wire_bytes = data.position_bytes
            self._publish()
        return walk.devices_offset_bytes
