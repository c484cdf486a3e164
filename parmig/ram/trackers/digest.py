# SPDX-License-Identifier: Apache-2.0
"""Needs no record of writes: compares pages, by 64-bit xxh3, with what was sent.

It is for hosts that allow nothing else. Every scan reads all memory (about 8 GiB/s a core), in two steps: it compares
one digest for 64 pages, and if that differs, one for each page. The digests are of the very bytes that were sent,
never of live memory, so a page that changes and changes back is not missed. The send workers share memory for the
digests: 8 bytes for each page, and 16 bytes for each 64 pages.
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
        self._counts: list[Digests] = []  # for each group: how many dirty pages its last scan found
        at = 0
        for mapping in blocks:
            words = _words(mapping.block)
            self._pages.append(whole[at : at + words * WORD_PAGES])
            at += words * WORD_PAGES
            for parts in (self._groups, self._counts):
                parts.append(whole[at : at + words])
                at += words

    def arm(self, span: Region) -> None:
        # A digest of zero means that nothing was sent, so every page will differ.
        self._pages[span.block][span.first_page : span.end_page] = 0
        self._groups[span.block][_groups_of(span)] = 0
        # Nothing is known of a span that was never scanned: every page that exists may have been written since.
        self._note_counts(span, self._allocated(span))

    def _allocated(self, span: Region) -> Mask:
        return self._blocks[span.block].allocated(span.first_page, span.pages)

    def _note_counts(self, span: Region, dirty: Mask) -> None:
        starts = np.arange(0, span.pages, WORD_PAGES)
        self._counts[span.block][_groups_of(span)] = np.add.reduceat(dirty, starts, dtype=np.uint64)

    def scan(self, span: Region, *, holes: bool = True) -> Scan | None:
        present = self._allocated(span)
        sent = self._pages[span.block][span.first_page : span.end_page]
        # A hole is a zero page, so it is dirty if other bytes were sent. 0: it has been a hole since it was armed.
        dirty: Mask = ~present & (sent != _ZERO_PAGE) & (sent != 0)
        for first in range(0, span.pages, WORD_PAGES):  # a loop over groups of 64 pages
            group = slice(first, min(first + WORD_PAGES, span.pages))
            if present[group].any():
                dirty[group] |= self._differing(span, group, present[group], sent[group])
            else:  # its pages are sent as zero pages, so the digest of the group no longer equals what was sent
                self._groups[span.block][(span.first_page + first) // WORD_PAGES] = 0
        self._note_counts(span, dirty)
        return Scan(dirty, ~present) if dirty.any() or not present.all() else None

    def _differing(self, span: Region, group: slice, present: Mask, sent: Digests) -> Mask:
        """Which present pages of one group differ from what was sent.

        The digest of a group is kept only if it is of bytes that all equal what was sent, taken from one private copy.
        An equal digest later therefore proves that every page still equals what was sent.
        """
        reach = self._blocks[span.block]
        first, end = span.first_page + group.start, span.first_page + group.stop
        groups, number = self._groups[span.block], first // WORD_PAGES
        whole = bool(present.all())
        if whole and groups[number] and _digest(reach.look(np.arange(first, end)).data) == groups[number]:
            return np.zeros(len(present), dtype=np.bool_)
        copies = reach.look(np.flatnonzero(present) + first).copy()  # it may be a view, to which the guest writes
        differs = np.zeros(len(present), dtype=np.bool_)
        differs[present] = _digest_pages(copies) != sent[present]
        groups[number] = _digest(copies.data) if whole and not differs.any() else 0
        return differs

    def count(self, span: Region) -> int:
        """How many dirty pages the last scans of this span found. Counting anew would cost as much as a scan."""
        return int(self._counts[span.block][_groups_of(span)].sum())

    def sent(self, block: int, index: Index, copies: Pages | None) -> None:
        self._pages[block][index] = _ZERO_PAGE if copies is None else _digest_pages(copies)

    def close(self) -> None:
        self._pages.clear()
        self._groups.clear()
        self._counts.clear()
        self._map.close()
