# SPDX-License-Identifier: Apache-2.0
"""Regions: ranges of pages of one block, cut on the borders of bitmap words. Workers get work in regions."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence
from typing import overload

import msgspec
import numpy as np

from parmig.ram.bits import Index
from parmig.ram.blocks import PAGE_BYTES, WORD_PAGES, RamBlock
from parmig.units import MIB

REGION_BYTES_RANGE = (2 * MIB, 64 * MIB)
"""Smallest and largest region. Small enough that idle workers find regions to take over, and large enough that
the cost of a region (one scan call, about 20 µs) stays under 1 % of the time to send it."""

REGIONS_PER_WORKER = 16
"""Regions that each worker should get at least: a worker that starts last costs at most 1/16."""

SPAN_PAGES = 1 << 16
"""Neighbouring regions are scanned in one call up to this many pages (256 MiB): a clean scan of
1 GiB takes 4 calls instead of 64, 0.9 instead of 2.4 ms."""


class Region(msgspec.Struct, frozen=True):
    """Pages ``[first_page, first_page + pages)`` of block number *block*."""

    block: int
    first_page: int
    pages: int

    @property
    def end_page(self) -> int:
        """Past the last page."""
        return self.first_page + self.pages


def region_pages_for(blocks: Sequence[RamBlock], workers: int) -> int:
    """Pages of a region for these blocks and this many workers: a power of two, whole bitmap words."""
    low, high = REGION_BYTES_RANGE
    wanted = sum(block.size_bytes for block in blocks) // (workers * REGIONS_PER_WORKER)
    size_bytes = low
    while size_bytes * 2 <= min(wanted, high):
        size_bytes *= 2
    return size_bytes // PAGE_BYTES


class Regions(Sequence[Region]):
    """All pages of all blocks as regions, each page once, in order. A region is computed when it is asked for.

    12 TiB have 196,608 regions: as objects in each worker they would take 16 MiB.

    Args:
        blocks_pages: pages of each block.
        steps: pages of a region of each block; its last region may be smaller.
    """

    def __init__(self, blocks_pages: Sequence[int], steps: Sequence[int]) -> None:
        self._blocks_pages = tuple(blocks_pages)
        self._steps = tuple(steps)
        counts = [-(-pages // step) for pages, step in zip(blocks_pages, steps, strict=True)]
        self._firsts = list(itertools.accumulate(counts, initial=0))  # number of the first region of each block

    def __len__(self) -> int:
        return self._firsts[-1]

    @overload
    def __getitem__(self, number: int) -> Region: ...

    @overload
    def __getitem__(self, number: slice) -> list[Region]: ...

    def __getitem__(self, number: int | slice) -> Region | list[Region]:
        if isinstance(number, slice):
            return [self[place] for place in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(f"region {number} of {len(self)}")
        number %= len(self)
        block = bisect.bisect_right(self._firsts, number) - 1
        return self._span(block, number, number + 1)

    def __iter__(self) -> Iterator[Region]:
        for block, (block_pages, step) in enumerate(zip(self._blocks_pages, self._steps, strict=True)):
            for page in range(0, block_pages, step):
                yield Region(block, page, min(step, block_pages - page))

    def _span(self, block: int, first: int, end: int) -> Region:
        step = self._steps[block]
        begin_page = (first - self._firsts[block]) * step
        end_page = min((end - self._firsts[block]) * step, self._blocks_pages[block])
        return Region(block, begin_page, end_page - begin_page)

    def stretches(self, numbers: Index) -> Iterator[Region]:
        """The regions *numbers*, with those joined that follow one another in the list and in a block."""
        for part in np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1) if len(numbers) else ():
            first, end = int(part[0]), int(part[-1]) + 1
            while first < end:
                block = bisect.bisect_right(self._firsts, first) - 1
                stop = min(end, self._firsts[block + 1])
                yield self._span(block, first, stop)
                first = stop

    def spans(self, numbers: Index) -> Iterator[Region]:
        """As :meth:`stretches`, cut into whole regions of up to SPAN_PAGES together. A larger region stays alone."""
        for whole in self.stretches(numbers):
            step = self._steps[whole.block]
            step *= max(1, SPAN_PAGES // step)
            for page in range(whole.first_page, whole.end_page, step):
                yield Region(whole.block, page, min(step, whole.end_page - page))

    def number_of(self, block: int, page: int) -> int:
        """The number of the region that has *page*."""
        return self._firsts[block] + page // self._steps[block]


def cut(blocks: Sequence[RamBlock], region_pages: int) -> Regions:
    """All pages of all blocks as regions.

    Args:
        region_pages: a multiple of 64, so that no two regions share a bitmap word. In blocks of huge pages it is
            rounded up to whole ones: the kernel tracks no part of one.

    Raises:
        ValueError: *region_pages* is not a positive multiple of 64.
    """
    if region_pages <= 0 or region_pages % WORD_PAGES:
        raise ValueError(f"a region has {region_pages} pages, expected a multiple of {WORD_PAGES}")
    steps = [-(-region_pages // block.unit_pages) * block.unit_pages for block in blocks]
    return Regions([block.pages for block in blocks], steps)
