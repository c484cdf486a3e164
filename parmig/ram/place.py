# SPDX-License-Identifier: Apache-2.0
"""Places pages in a guest's memory: the last step of the page path, in a migration and in a restore."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from parmig.ram.bits import (
    Index,
    Runs,
    any_set,
    ascending,
    clear_bits,
    index_of_runs,
    long_and_short,
    set_bits,
    test_bits,
)
from parmig.ram.blocks import PAGE_BYTES
from parmig.ram.page_digests import PlacedDigests
from parmig.ram.reach.reach import Reach
from parmig.ram.reach.tables import TableBudget, tables_of_worker
from parmig.ram.regions import SPAN_PAGES
from parmig.ram.shared import SharedArea
from parmig.transport.transport import Buffer


class PagePlacer:
    """Places pages, and notes in *shared* which of them exist.

    Args:
        blocks: the blocks, by number.
        shared: its bits record which pages are known to exist. The memory need not be empty. If it has a table of
            digests, each page is read back once it was placed.
    """

    def __init__(self, blocks: Sequence[Reach], shared: SharedArea) -> None:
        self._blocks = blocks
        self._shared = shared
        self._digests = PlacedDigests(shared, blocks) if shared.page_digests else None
        self._tables = TableBudget(blocks, tables_of_worker(shared.workers))

    def place(self, block: int, runs: Runs, raw: memoryview) -> None:
        """Place pages that lie one after the other in *raw*.

        Raises:
            MemoryFullError: no space left in the memory.
        """
        self._blocks[block].write(runs, raw, self._shared.bits[block])

    def targets(self, block: int, runs: Runs, index: Index) -> list[memoryview]:
        """Where the pages *index* can be stored as they arrive: one piece for each of *runs*.

        Empty if they cannot: a page does not exist yet, or this process cannot store to the memory.

        Raises:
            MemoryFullError: no space left in the memory.
        """
        exist = bool(test_bits(self._shared.bits[block], index).all())
        return self._blocks[block].targets(runs, exist=exist)

    def place_run(self, block: int, first_page: int, data: Buffer) -> None:
        """Place the pages in *data* from *first_page* on.

        Raises:
            MemoryFullError: no space left in the memory.
        """
        self._blocks[block].write_run(first_page, memoryview(data))

    def place_zero(self, block: int, runs: Runs) -> None:
        """Make the pages of *runs* zero, without allocating those that do not exist. The runs may come in any order."""
        reach, bits = self._blocks[block], self._shared.bits[block]
        long, short = long_and_short(runs)
        self._clear(block, index_of_runs(short))
        for first, end in long.tolist():
            if any_set(bits, first, end) or reach.has_data(first, end - first):
                self._clear(block, np.arange(first, end))

    def _clear(self, block: int, index: Index) -> None:
        bits = self._shared.bits[block]
        self._note_existing(block, ascending(index[~test_bits(bits, index)]))
        for part in self._tables.portions(ascending(index[test_bits(bits, index)])):
            self._tables.use(block, part)
            gone = self._blocks[block].clear(part)
            clear_bits(bits, gone)
            if self._digests is not None:
                self._digests.forget(block, gone)
                self._digests.note(block, part[test_bits(bits, part)])

    def note_placed(self, block: int, index: Index) -> None:
        """Note that pages exist; they may come in any order."""
        index = ascending(index)
        set_bits(self._shared.bits[block], index)
        self._tables.use(block, index)
        if self._digests is not None:
            self._digests.note(block, index)

    def end_first_round(self) -> None:
        """Take note that the first round is in place."""
        self._tables.relax()

    def read_page(self, block: int, page: int) -> bytes:
        """A page as it is now, zero where there is none."""
        data = bytearray(PAGE_BYTES)
        self._blocks[block].read_span(page, memoryview(data))
        return bytes(data)

    def _note_existing(self, block: int, index: Index) -> None:
        """Note which of the pages *index* exist. Nothing was placed in them yet, but the memory may hold older data."""
        reach, bits = self._blocks[block], self._shared.bits[block]
        while len(index):  # a loop over spans
            first = int(index[0])
            part, index = np.split(index, [np.searchsorted(index, first + SPAN_PAGES)])
            pages = int(part[-1]) + 1 - first
            if reach.has_data(first, pages):
                among = np.zeros(pages, dtype=np.bool_)
                among[part - first] = True
                set_bits(bits, part[reach.allocated(first, pages, among)[part - first]])
