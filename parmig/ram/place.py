# SPDX-License-Identifier: Apache-2.0
"""Pages into a guest's memory files: the last step of a migration's way, and of a snapshot's."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

import numpy as np

from parmig.errors import MemoryFullError
from parmig.linux import files
from parmig.ram.bits import Index, Runs, index_of_runs, set_bits, test_bits
from parmig.ram.blocks import PAGE_BYTES, BlockMapping
from parmig.ram.extents import allocated_mask, has_data
from parmig.ram.regions import SPAN_PAGES
from parmig.ram.shared import SharedArea
from parmig.transport.transport import Buffer

WRITE_RUN_PAGES = 8
"""Runs from here on are placed with pwrite(2), shorter ones all at once through the mapping where they exist. Into
fresh tmpfs memory pwrite reaches 2.3 GiB/s (the kernel allocates as it copies), a store 1.1 GiB/s
(a page fault each); on pages that exist both are copies, and the system call costs about 2 pages."""

MAX_TARGETS = 64
"""Runs of a batch that are stored where they belong as they come; of more, a piece each costs as much as the copy."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM)


class PagePlacer:
    """Places pages in memory files, and notes in *shared* which of them exist.

    Only pages that exist are stored to through the mapping. The others are written, or allocated before: where there is
    no room for one, a system call reports it, while a store would be a SIGBUS.

    Args:
        blocks: mappings of the blocks, by number.
        shared: its bits say which pages are known to exist; memory need not be empty.
    """

    def __init__(self, blocks: Sequence[BlockMapping], shared: SharedArea) -> None:
        self._blocks = blocks
        self._shared = shared

    def place(self, block: int, runs: Runs, raw: memoryview) -> None:
        """Place pages that lie one after the other in *raw*: short runs that exist all at once, others one by one.

        Raises:
            MemoryFullError: no space left in the memory file.
        """
        lengths = runs[:, 1] - runs[:, 0]
        starts = np.cumsum(lengths) - lengths
        together = lengths < WRITE_RUN_PAGES
        if together.any():
            exists = test_bits(self._shared.bits[block], index_of_runs(runs))
            together &= np.logical_and.reduceat(exists, starts)
        alone = ~together
        for (first, end), at in zip(runs[alone].tolist(), starts[alone].tolist(), strict=True):
            self.place_run(block, first, raw[at * PAGE_BYTES : (at + end - first) * PAGE_BYTES])
        if together.any():
            pages = np.frombuffer(raw, dtype=np.uint8).reshape(-1, PAGE_BYTES)
            source = index_of_runs(np.stack((starts[together], starts[together] + lengths[together]), axis=1))
            self._blocks[block].pages[index_of_runs(runs[together])] = pages[source]

    def targets(self, block: int, runs: Runs, index: Index) -> list[memoryview]:
        """Where the pages *index* lie in the mapping, a piece for each of *runs*.

        Empty where they cannot be stored there: some do not exist yet, or the runs are too many for their length.
        """
        if len(runs) > MAX_TARGETS or not test_bits(self._shared.bits[block], index).all():
            return []
        buffer = self._blocks[block].buffer
        return [buffer[first * PAGE_BYTES : end * PAGE_BYTES] for first, end in runs.tolist()]

    def place_run(self, block: int, first_page: int, data: Buffer) -> None:
        """Place the pages in *data* from *first_page* on.

        Raises:
            MemoryFullError: no space left in the memory file.
        """
        mapping = self._blocks[block]
        at = mapping.file_offset_bytes + first_page * PAGE_BYTES
        view = memoryview(data)
        try:
            if mapping.block.unit_pages > 1:  # hugetlbfs has no write(2)
                _allocate(mapping, at, len(view))
                mapping.buffer[first_page * PAGE_BYTES : first_page * PAGE_BYTES + len(view)] = view
                return
            while view:
                written = os.pwrite(mapping.fd, view, at)
                view, at = view[written:], at + written
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise MemoryFullError(
                f"the memory file of block {mapping.block.name!r} has no space left at byte {at} ({error.strerror}), "
                f"expected room for {mapping.block.size_bytes} bytes; free space on its file system"
            ) from error

    def place_zero(self, block: int, index: Index) -> None:
        """Make pages zero, without allocating those that do not exist."""
        bits = self._shared.bits[block]
        self._note_existing(block, _ascending(index[~test_bits(bits, index)]))
        self._blocks[block].pages[index[test_bits(bits, index)]] = 0

    def note_placed(self, block: int, index: Index) -> None:
        """Note that pages exist; they may come in any order."""
        set_bits(self._shared.bits[block], _ascending(index))

    def read_page(self, block: int, page: int) -> bytes:
        """A page as it is now, zero where there is none; through the mapping that would allocate it."""
        mapping = self._blocks[block]
        return os.pread(mapping.fd, PAGE_BYTES, mapping.file_offset_bytes + page * PAGE_BYTES)

    def _note_existing(self, block: int, index: Index) -> None:
        """Note which of the pages *index* exist, of which nothing is known yet: something was there before us."""
        mapping, bits = self._blocks[block], self._shared.bits[block]
        while len(index):  # a loop over spans
            first = int(index[0])
            part, index = np.split(index, [np.searchsorted(index, first + SPAN_PAGES)])
            pages = int(part[-1]) + 1 - first
            if has_data(mapping, first, pages):
                among = np.zeros(pages, dtype=np.bool_)
                among[part - first] = True
                set_bits(bits, part[allocated_mask(mapping, first, pages, among)[part - first]])


def _ascending(index: Index) -> Index:
    return index if len(index) < 2 or bool((index[1:] > index[:-1]).all()) else np.unique(index)


def _allocate(mapping: BlockMapping, offset_bytes: int, size_bytes: int) -> None:
    """Allocate the huge pages in which these bytes of the file lie, where they are not there yet."""
    page_bytes = mapping.block.page_size_bytes
    begin = offset_bytes // page_bytes * page_bytes
    end = -(-(offset_bytes + size_bytes) // page_bytes) * page_bytes
    files.allocate(mapping.fd, begin, end - begin)
