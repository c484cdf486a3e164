# SPDX-License-Identifier: Apache-2.0
"""Pages into a guest's memory files: the last step of a migration's way, and of a snapshot's."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

import numpy as np

from parmig import linux
from parmig.errors import MemoryFullError
from parmig.ram.bits import Index, Runs, index_of_runs, set_bits, test_bits
from parmig.ram.blocks import PAGE_BYTES, BlockMapping
from parmig.ram.extents import allocated_mask, has_data
from parmig.ram.regions import SPAN_PAGES
from parmig.ram.shared import SharedArea
from parmig.transport.base import Buffer
from parmig.units import MIB

WRITE_RUN_PAGES = 8
"""Runs from here on are placed with pwrite(2), shorter ones all at once through the mapping. Into
fresh tmpfs memory pwrite reaches 2.3 GiB/s (the kernel allocates as it copies), a store 1.1 GiB/s
(a page fault each); on pages that exist both are copies, and the system call costs about 2 pages."""

SPACE_MARGIN_BYTES = 64 * MIB
"""A store into a full tmpfs is a SIGBUS, a write a plain error: with less free space than this,
everything is written."""


class PagePlacer:
    """Places pages in memory files, and notes in *shared* which of them exist.

    Args:
        blocks: mappings of the blocks, by number.
        shared: its bits say which pages exist.
    """

    def __init__(self, blocks: Sequence[BlockMapping], shared: SharedArea) -> None:
        self._blocks = blocks
        self._shared = shared
        self._writable = [not linux.is_hugetlbfs(mapping.fd) for mapping in blocks]

    def place(self, block: int, runs: Runs, raw: memoryview) -> None:
        """Place pages that lie one after the other in *raw*: long runs one by one, short ones together.

        Raises:
            MemoryFullError: no space left in the memory file.
        """
        lengths = runs[:, 1] - runs[:, 0]
        starts = np.cumsum(lengths) - lengths
        long = lengths >= (WRITE_RUN_PAGES if self._has_room(block, len(raw)) else 1)
        for (first, end), at in zip(runs[long].tolist(), starts[long].tolist(), strict=True):
            self.place_run(block, first, raw[at * PAGE_BYTES : (at + end - first) * PAGE_BYTES])
        short = ~long
        if short.any():
            pages = np.frombuffer(raw, dtype=np.uint8).reshape(-1, PAGE_BYTES)
            source = index_of_runs(np.stack((starts[short], starts[short] + lengths[short]), axis=1))
            self._blocks[block].pages[index_of_runs(runs[short])] = pages[source]

    def place_run(self, block: int, first_page: int, data: Buffer) -> None:
        """Place the pages in *data* from *first_page* on.

        Raises:
            MemoryFullError: no space left in the memory file.
        """
        mapping = self._blocks[block]
        if not self._writable[block]:
            mapping.buffer[first_page * PAGE_BYTES : first_page * PAGE_BYTES + len(data)] = data
            return
        at = mapping.file_offset_bytes + first_page * PAGE_BYTES
        view = memoryview(data)
        while view:
            try:
                written = os.pwrite(mapping.fd, view, at)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise MemoryFullError(
                        f"no space left in the memory file of block {mapping.block.name!r} at byte {at}: "
                        f"the guest needs up to {mapping.block.size_bytes} bytes there; make room on its file system"
                    ) from error
                raise
            view, at = view[written:], at + written

    def place_zero(self, block: int, index: Index) -> None:
        """Make pages zero, without allocating those that do not exist."""
        existing = index[test_bits(self._shared.bits[block], index)]
        self._blocks[block].pages[existing] = 0

    def note_placed(self, block: int, index: Index) -> None:
        """Note that pages exist; they may come in any order."""
        ascending = len(index) < 2 or bool((index[1:] > index[:-1]).all())
        set_bits(self._shared.bits[block], index if ascending else np.unique(index))

    def _has_room(self, block: int, size_bytes: int) -> bool:
        """Whether storing through the mapping is safe: hugetlbfs reserved it, others must have space."""
        if not self._writable[block]:
            return True
        found = os.fstatvfs(self._blocks[block].fd)
        return not found.f_blocks or found.f_bavail * found.f_frsize > size_bytes + SPACE_MARGIN_BYTES


def note_existing(blocks: Sequence[BlockMapping], shared: SharedArea) -> None:
    """Enter into *shared* which pages the destination's memory files already have. Once, before workers start."""
    for number, mapping in enumerate(blocks):
        for first in range(0, mapping.block.pages, SPAN_PAGES):
            pages = min(SPAN_PAGES, mapping.block.pages - first)
            if has_data(mapping, first, pages):
                set_bits(shared.bits[number], np.flatnonzero(allocated_mask(mapping, first, pages)) + first)
