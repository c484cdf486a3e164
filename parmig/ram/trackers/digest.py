# SPDX-License-Identifier: Apache-2.0
"""No tracker at all: pages are compared by 64-bit xxh3 with what was sent.

For hosts that allow nothing else. Every scan reads all memory (about 8 GiB/s a core), in two steps:
one digest per 64 pages, and only where that differs one per page. The digests are of the very bytes
that were sent, never of live memory, so a page that changes and changes back cannot be missed.
Costs 8 bytes a page and 16 bytes per 64 pages in memory that the send workers share.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import xxhash

from parmig.ram.bits import Index, Mask
from parmig.ram.blocks import PAGE_BYTES, WORD_PAGES, Pages, RamBlock
from parmig.ram.reach.reach import Reach
from parmig.ram.regions import Region
from parmig.ram.trackers.tracker import DirtyTracker, Scan

Digests = npt.NDArray[np.uint64]

_digest = xxhash.xxh3_64_intdigest
_ZERO_PAGE = np.uint64(_digest(bytes(PAGE_BYTES)))


def digest_area_bytes(blocks: Sequence[RamBlock]) -> int:
    """Bytes of shared memory that the tracker needs for *blocks*."""
    return sum(_words(block) * (WORD_PAGES + 2) * 8 for block in blocks)


def _words(block: RamBlock) -> int:
    return -(-block.pages // WORD_PAGES)


def _groups_of(span: Region) -> slice:
    """The groups of *span*, which begins with one and ends with one or with its block."""
    return slice(span.first_page // WORD_PAGES, -(-span.end_page // WORD_PAGES))


def _digest_pages(pages: Pages) -> Digests:
    """The digest of each page: a loop in C (``map``), about 0.7 µs a page with the hashing."""
    return np.fromiter(map(_digest, np.ascontiguousarray(pages)), dtype=np.uint64, count=len(pages))


class DigestTracker(DirtyTracker):
    """Compares live pages with the digests of what was sent.

    Args:
        fd: shared memory of :func:`digest_area_bytes` bytes, zero at first; used, not owned.
        blocks: the guest's blocks, by number.
    """

    name = "digest"
    needs_copy = True

    def __init__(self, fd: int, blocks: Sequence[Reach]) -> None:
        self._blocks = blocks
        self._map = mmap.mmap(fd, digest_area_bytes([mapping.block for mapping in blocks]))
        whole = np.frombuffer(self._map, dtype=np.uint64)
        self._pages: list[Digests] = []
        self._groups: list[Digests] = []
        self._counts: list[Digests] = []  # per group, what its last scan found, whoever made it
        at = 0
        for mapping in blocks:
            words = _words(mapping.block)
            self._pages.append(whole[at : at + words * WORD_PAGES])
            at += words * WORD_PAGES
            for parts in (self._groups, self._counts):
                parts.append(whole[at : at + words])
                at += words

    def arm(self, span: Region) -> None:
        # A digest of zero means "nothing was sent": every page will differ.
        self._pages[span.block][span.first_page : span.end_page] = 0
        self._groups[span.block][_groups_of(span)] = 0
        # Nothing is known of a span that was never scanned: all that exists may have been written since.
        self._note_counts(span, self._allocated(span))

    def _allocated(self, span: Region) -> Mask:
        return self._blocks[span.block].allocated(span.first_page, span.pages)

    def _note_counts(self, span: Region, dirty: Mask) -> None:
        starts = np.arange(0, span.pages, WORD_PAGES)
        self._counts[span.block][_groups_of(span)] = np.add.reduceat(dirty, starts, dtype=np.uint64)

    def scan(self, span: Region, *, holes: bool = True) -> Scan | None:
        present = self._allocated(span)
        sent = self._pages[span.block][span.first_page : span.end_page]
        # Holes are zero pages; they changed when something else was sent. Nothing sent (0): a hole since the arming.
        dirty: Mask = ~present & (sent != _ZERO_PAGE) & (sent != 0)
        for first in range(0, span.pages, WORD_PAGES):  # a loop over groups of 64 pages
            group = slice(first, min(first + WORD_PAGES, span.pages))
            if present[group].any():
                dirty[group] |= self._differing(span, group, present[group], sent[group])
            else:  # its pages go out as zero: what is kept of the group no longer equals what was sent
                self._groups[span.block][(span.first_page + first) // WORD_PAGES] = 0
        self._note_counts(span, dirty)
        return Scan(dirty, ~present) if dirty.any() or not present.all() else None

    def _differing(self, span: Region, group: slice, present: Mask, sent: Digests) -> Mask:
        """Which present pages of one group differ from what was sent.

        A group's digest is kept only when it is of bytes that all equal what was sent, taken from
        one private copy; so an equal digest later proves that every page still is what was sent.
        """
        reach = self._blocks[span.block]
        first, end = span.first_page + group.start, span.first_page + group.stop
        groups, number = self._groups[span.block], first // WORD_PAGES
        whole = bool(present.all())
        if whole and groups[number] and _digest(reach.look(np.arange(first, end)).data) == groups[number]:
            return np.zeros(len(present), dtype=np.bool_)
        copies = reach.look(np.flatnonzero(present) + first)
        differs = np.zeros(len(present), dtype=np.bool_)
        differs[present] = _digest_pages(copies) != sent[present]
        groups[number] = _digest(copies.data) if whole and not differs.any() else 0
        return differs

    def count(self, span: Region) -> int:
        """What the last scans of this span found: looking would cost as much as scanning."""
        return int(self._counts[span.block][_groups_of(span)].sum())

    def sent(self, block: int, index: Index, copies: Pages | None) -> None:
        self._pages[block][index] = _ZERO_PAGE if copies is None else _digest_pages(copies)

    def close(self) -> None:
        self._pages.clear()
        self._groups.clear()
        self._counts.clear()
        self._map.close()
