# SPDX-License-Identifier: Apache-2.0
"""Bounds the page tables with which a worker maps a guest's memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from parmig.ram.bits import Index
from parmig.ram.reach.reach import Reach

TABLE_PAGES = 512
"""A page table has 4 KiB and maps so many pages, 2 MiB."""

MOST_TABLES = 4096
"""Of one worker: 16 MiB of page tables, which map 8 GiB. A worker that handles less, as in most guests, drops none. To
drop those of 1 GiB takes a worker 65 ms, to map it once more 90 ms; of a larger guest, the first round becomes 6 %
slower at 1 GiB/s. Where 2 workers dropped theirs after round 1, 2 GiB went at 1390 in place of 1530 MiB/s and had a
pause of 36 in place of 14 ms (medians of 6 in turns): the final scan asks about pages, which takes 5 ns for a page that
is mapped and 100 ns for others."""

MOST_TABLES_OF_SIDE = 65536
"""Of all workers of a side: 256 MiB. Without a limit they need 24 GiB for 12 TiB."""


def tables_of_worker(workers: int) -> int:
    """How many page tables each of the *workers* of a side may have in use."""
    return min(MOST_TABLES, MOST_TABLES_OF_SIDE // workers)


class TableBudget:
    """Drops the page tables of *blocks* when too many may be in use.

    Args:
        most_tables: how many page tables may be in use.
    """

    def __init__(self, blocks: Sequence[Reach], most_tables: int) -> None:
        self._blocks = blocks
        self._most_tables = most_tables
        self._tables = 0
        self._used = [np.zeros(-(-reach.block.pages // TABLE_PAGES), dtype=np.bool_) for reach in blocks]
        self._limited = sum(map(len, self._used)) > most_tables  # else all tables together are within the budget

    def portions(self, index: Index) -> list[Index]:
        """Parts of *index*, which ascends, that need no more page tables each than may be in use."""
        table = np.cumsum(np.diff(index // TABLE_PAGES, prepend=index[:1] // TABLE_PAGES) != 0)
        return np.split(index, np.flatnonzero(np.diff(table // self._most_tables)) + 1)

    def use(self, block: int, index: Index) -> None:
        """Count the page tables of the pages *index*, which are about to be used; drop those before if they are many.

        A table counts once, however often its pages are used: random writes to a small guest drop nothing.
        """
        if not self._limited or not len(index):
            return
        numbers = index // TABLE_PAGES
        numbers = numbers[np.flatnonzero(np.diff(numbers, prepend=-1))]
        used = self._used[block]
        fresh = len(numbers) - int(np.count_nonzero(used[numbers]))
        if self._tables and self._tables + fresh > self._most_tables:
            self._drop()
            fresh = len(numbers)
        used[numbers] = True
        self._tables += fresh

    def relax(self) -> None:
        """Drop the tables now, at the end of the first round, if a later round may have to.

        Then they are full, and dropping them takes 65 ms per GiB. Later rounds leave sparse ones, which takes little.
        """
        if self._tables > self._most_tables // 8:
            self._drop()

    def _drop(self) -> None:
        for reach, used in zip(self._blocks, self._used, strict=True):
            reach.drop_tables()
            used[:] = False
        self._tables = 0
