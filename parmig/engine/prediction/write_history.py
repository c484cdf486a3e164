# SPDX-License-Identifier: Apache-2.0
"""Counts distinct pages in windows of all lengths, from the pages that were written in each interval.

For each interval, it is enough to know how long ago each of its pages was written before: a page counts in the window
that begins at interval a unless it was written earlier in the same window.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from parmig.ram.bits import Index

Counts = npt.NDArray[np.int64]


class WriteHistory:
    """Takes the written pages interval by interval. It keeps 4 bytes for each page of the memory.

    Args:
        pages: of the memory.
    """

    def __init__(self, pages: int) -> None:
        self._last = np.zeros(pages, dtype=np.int32)  # the interval of the last write, from 1; 0: never
        self._gaps: list[Counts] = []

    def __len__(self) -> int:
        return len(self._gaps)

    @property
    def seen_pages(self) -> int:
        """How many distinct pages were written in all intervals together."""
        return int(np.count_nonzero(self._last))

    def add(self, pages: Index) -> None:
        """One more interval, in which *pages* were written; each is named once."""
        number = len(self._gaps) + 1
        last = self._last[pages]
        gaps = np.where(last == 0, 0, number - last)  # 0: never before
        self._gaps.append(np.bincount(gaps, minlength=1).astype(np.int64))
        self._last[pages] = number

    def windows(self, length: int) -> Counts:
        """Distinct pages in each window of *length* intervals, by the interval at which it begins."""
        intervals = len(self._gaps)
        counts = np.zeros(max(0, intervals - length + 1), dtype=np.int64)
        for interval, gaps in enumerate(self._gaps):
            # A window that begins k intervals earlier counts the pages whose gap is longer than k, and the new ones.
            starts = np.arange(max(0, interval - length + 1), min(interval + 1, len(counts)))
            within = np.cumsum(gaps[1:])
            total = int(gaps.sum())
            back = interval - starts
            known = np.zeros(len(back), dtype=np.int64)
            if len(within):
                reached = np.minimum(back, len(within))
                known = np.where(reached > 0, within[reached - 1], 0)
            counts[starts] += total - known
        return counts
