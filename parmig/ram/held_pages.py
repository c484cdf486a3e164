# SPDX-License-Identifier: Apache-2.0
"""What the memory of a destination holds whose receiver was started again, and what of it the source still has to send.

The destination digests its memory page by page (:class:`HeldDigests`). The source compares that with its own memory
(:class:`HeldCheck`), which it has armed before: a page that is written after it was read here is found by the next
scan. So a page with equal digests needs nothing more, whatever became of the batches that were under way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from parmig.ram.bits import Index, put_mask, set_bits
from parmig.ram.blocks import PAGE_BYTES, Pages
from parmig.ram.page_digests import Digests, PageDigests, digest_pages
from parmig.ram.reach.reach import Reach
from parmig.ram.regions import Region, Regions
from parmig.ram.shared import ARMED, LOST, NOT_ARMED, SharedArea
from parmig.ram.trackers.tracker import DirtyTracker
from parmig.units import MIB

_PORTION_PAGES = 2 * MIB // PAGE_BYTES


class _Reader:
    """Copies the pages of a range that exist, a portion at a time."""

    def __init__(self) -> None:
        self._scratch: Pages = np.empty((_PORTION_PAGES, PAGE_BYTES), dtype=np.uint8)

    def existing(self, reach: Reach, first_page: int, pages: int) -> Iterator[tuple[Index, Pages]]:
        """Page numbers and content; the content lasts until the next portion. Nothing is allocated."""
        if not reach.has_data(first_page, pages):
            return
        index = np.flatnonzero(reach.allocated(first_page, pages)) + first_page
        for first in range(0, len(index), _PORTION_PAGES):
            part = index[first : first + _PORTION_PAGES]
            np.copyto(self._scratch[: len(part)], reach.look(part))
            yield part, self._scratch[: len(part)]


class HeldDigests(PageDigests):
    """(destination) Digests of the memory as it is now. What was looked at is known again, as if it had been placed.

    Args:
        shared: learns which pages exist, and their digests if it keeps any.
        blocks: the blocks, by number.
    """

    def __init__(self, shared: SharedArea, blocks: Sequence[Reach]) -> None:
        self._shared = shared
        self._blocks = blocks
        self._reader = _Reader()

    def of_pages(self, block: int, first_page: int, pages: int) -> Digests:
        digests: Digests = np.zeros(pages, dtype=np.uint64)
        for index, content in self._reader.existing(self._blocks[block], first_page, pages):
            digests[index - first_page] = digest_pages(content)
            set_bits(self._shared.bits[block], index)
        if self._shared.page_digests and digests.any():
            self._shared.page_digests[block][first_page : first_page + pages] = digests
        return digests


class Checked(NamedTuple):
    """What a check found.

    Attributes:
        proven_pages: pages with data that both sides hold alike.
        again_pages: pages that differ, which the round that follows sends.
        unarmed: pages differ in a region of which nothing was armed, or nobody knows what was. It is lost now, so all
            of it is to be sent anew.
    """

    proven_pages: int
    again_pages: int
    unarmed: bool


class HeldCheck:
    """(source) Compares the digests of the destination with the memory here, for one worker.

    Args:
        regions: all regions, by number; all that have memory were scanned.
        blocks: the blocks, by number.
        tracker: reads the dirty log.
        shared: learns what the destination has, and which pages the next round must send.
    """

    def __init__(self, regions: Regions, blocks: Sequence[Reach], tracker: DirtyTracker, shared: SharedArea) -> None:
        self._regions = regions
        self._blocks = blocks
        self._tracker = tracker
        self._shared = shared
        self._reader = _Reader()

    def check(self, number: int, first: int, held: Digests) -> Checked:
        """Check the pages of region *number* from its page *first* on, a multiple of 64.

        Args:
            held: their digests at the destination.
        """
        region, shared = self._regions[number], self._shared
        part = Region(region.block, region.first_page + first, len(held))
        here = self._digests(part)
        differs = here != held
        proven = int(np.count_nonzero(~differs & (held != 0)))
        again = int(np.count_nonzero(differs))
        if shared.armed[number] in (NOT_ARMED, LOST):
            if again:
                shared.armed[number] = LOST
            return Checked(proven, again, unarmed=again > 0)
        put_mask(shared.bits[part.block], part.first_page, differs | (held != 0))
        put_mask(shared.reported[part.block], part.first_page, differs)
        if part.end_page == region.end_page:
            shared.armed[number] = ARMED
        return Checked(proven, again, unarmed=False)

    def _digests(self, part: Region) -> Digests:
        """The digests of the memory here. A tracker that compares content begins with the content that was digested."""
        tracker = self._tracker
        if tracker.needs_copy:
            tracker.arm(part)
        digests: Digests = np.zeros(part.pages, dtype=np.uint64)
        for index, content in self._reader.existing(self._blocks[part.block], part.first_page, part.pages):
            digests[index - part.first_page] = digest_pages(content)
            if tracker.needs_copy:
                tracker.sent(part.block, index, content)
        return digests
