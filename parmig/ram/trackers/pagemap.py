# SPDX-License-Identifier: Apache-2.0
"""Reads the page tables of the guest's process: PAGEMAP_SCAN over asynchronous userfaultfd write protection.

The guest's memory is registered with a userfaultfd. Any process that may read ``/proc/PID/pagemap`` scans and
re-protects a slice in one call. Facts used here (Linux 6.18, seen by experiment):

- an armed page that was never touched has a marker: it is reported as SWAPPED, not WRITTEN and not PRESENT;
- punching a hole leaves such a marker too, so a page that became zero that way shows only as
  "not PRESENT" and is reported as *unmapped*;
- an entry that is neither PRESENT nor SWAPPED was never armed or lost its marker, and counts as dirty. So does a
  whole page table that is missing: memory that another process filled, or that was written and then unmapped.
  Kernels before July 2026 neither report nor arm that when only WRITTEN is asked for ("fs/proc/task_mmu: report an
  unpopulated range as written"), so "not PRESENT" is always asked for beside it.

Huge pages (hugetlbfs) differ. Arming a page that is not PRESENT hangs kernels before May 2026 for ever ("hugetlb
self-deadlock in pagemap_scan_pte_hole"), so there only what is WRITTEN is re-armed, and what is not PRESENT is
asked for in a call that changes nothing. A missing entry is not dirty: the first store to it shows as WRITTEN, as the
first load does. Only MADV_DONTNEED on written huge pages of shared memory, which no monitor uses, would go unseen.
The kernel re-arms no part of a huge page.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import numpy as np

from parmig.errors import GuestError, GuestRefusedError, HostRefusedError
from parmig.linux import pagemap
from parmig.ram.bits import Index, Mask, index_of_runs
from parmig.ram.blocks import PAGE_BYTES, RamBlock
from parmig.ram.dirty_log import DirtyLog, Segment
from parmig.ram.regions import SPAN_PAGES, Region
from parmig.ram.trackers.tracker import DirtyTracker, Scan

_REARM = pagemap.PM_SCAN_WP_MATCHING | pagemap.PM_SCAN_CHECK_WPASYNC

_WRITTEN = {"mask": pagemap.PAGE_IS_WRITTEN, "returned": pagemap.PAGE_IS_WRITTEN}
"""The scan for which the kernel has a fast path."""

_WRITTEN_OR_UNMAPPED = {
    "inverted": pagemap.PAGE_IS_PRESENT,
    "anyof": pagemap.PAGE_IS_WRITTEN | pagemap.PAGE_IS_PRESENT,
    "returned": pagemap.PAGE_IS_WRITTEN | pagemap.PAGE_IS_PRESENT | pagemap.PAGE_IS_SWAPPED,
}

_MISSING = dict.fromkeys(("inverted", "mask", "returned"), pagemap.PAGE_IS_PRESENT | pagemap.PAGE_IS_SWAPPED)
_UNMAPPED = dict.fromkeys(("inverted", "mask", "returned"), pagemap.PAGE_IS_PRESENT)
_IN_TABLES = pagemap.PAGE_IS_PRESENT | pagemap.PAGE_IS_SWAPPED
_ARM = _WRITTEN_OR_UNMAPPED | {"returned": _IN_TABLES | pagemap.PAGE_IS_PFNZERO}
_ARM_HUGE = _WRITTEN | {"returned": _IN_TABLES | pagemap.PAGE_IS_PFNZERO}
"""Before it is armed, all that is present counts as written."""

_VECTOR_REGIONS = SPAN_PAGES // 8
"""Entries in the answer of one call: 24 bytes each, 192 KiB together. A span with more runs takes more calls."""


class PagemapTracker(DirtyTracker):
    """Scans slices of the page tables of another process.

    Args:
        log: from the guest; has the process, and where it maps each block.
        blocks: the guest's blocks, for their page sizes.

    Raises:
        GuestRefusedError: a block is not mapped in whole pages.
        HostRefusedError: the process's pagemap cannot be opened.
    """

    name = "pagemap"
    reads_page_tables = True

    def __init__(self, log: DirtyLog, blocks: Sequence[RamBlock]) -> None:
        for block, segments in zip(blocks, log.segments, strict=False):
            _check_borders(block, segments)
        self._huge = [block.unit_pages > 1 for block in blocks]
        self._pid = log.pid
        self._segments = log.segments
        self._vector = np.zeros(_VECTOR_REGIONS, dtype=pagemap.PAGE_REGION_DTYPE)
        try:
            self._fd = os.open(f"/proc/{log.pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise HostRefusedError(
                f"cannot read the page tables of process {log.pid}: {error.strerror}; "
                "run as the same user or as root, or choose --tracker digest"
            ) from error

    def _pieces(self, span: Region) -> Iterator[tuple[int, int, int]]:
        """Pieces of *span* as (page within span, first address, past-the-last address)."""
        for segment in _overlapping(self._segments[span.block], span):
            first = max(span.first_page, segment.first_page)
            end = min(span.end_page, segment.first_page + segment.pages)
            address = segment.address + (first - segment.first_page) * PAGE_BYTES
            yield first - span.first_page, address, address + (end - first) * PAGE_BYTES

    def _walk(
        self, start: int, end: int, vector: pagemap.PageRegions | None, **how: int
    ) -> Iterator[pagemap.PageRegions]:
        try:
            yield from pagemap.scan(self._fd, start, end, vector, **how)
        except OSError as error:
            raise GuestError(
                f"the dirty scan of process {self._pid} at {start:#x}-{end:#x} failed: {error.strerror}; expected "
                "memory that stays mapped and tracked, in pages that the kernel can track; or use --tracker digest"
            ) from error

    def arm(self, span: Region) -> Mask:
        in_tables: Mask = np.zeros(span.pages, dtype=np.bool_)
        how = _ARM_HUGE if self._huge[span.block] else _ARM
        for offset, start, end in self._pieces(span):
            for regions in self._walk(start, end, self._vector, flags=_REARM, **how):
                categories = regions["categories"]
                has_memory = (categories & _IN_TABLES != 0) & (categories & pagemap.PAGE_IS_PFNZERO == 0)
                in_tables[_index(regions[has_memory], start, offset)] = True
        return in_tables

    def scan(self, span: Region, *, holes: bool = True) -> Scan | None:
        result = Scan(np.zeros(span.pages, dtype=np.bool_), np.zeros(span.pages, dtype=np.bool_))
        huge = self._huge[span.block]
        # Without holes, two calls that skip clean memory: a single call would report everything that is unmapped.
        ordinary = [_WRITTEN_OR_UNMAPPED] if holes else [_WRITTEN, _MISSING]
        arming = [_WRITTEN] if huge else ordinary
        for offset, start, end in self._pieces(span):
            for how in arming:
                for regions in self._walk(start, end, self._vector, flags=_REARM, **how):
                    _add(result, regions, start, offset)
            if huge and holes:
                for regions in self._walk(start, end, self._vector, **_UNMAPPED):
                    result.unmapped[_index(regions, start, offset)] = True
        return result if result.dirty.any() or result.unmapped.any() else None

    def count(self, span: Region) -> int:
        pages = 0
        for _, start, end in self._pieces(span):
            for regions in self._walk(start, end, self._vector, **_WRITTEN):
                pages += int((regions["end"] - regions["start"]).sum()) // PAGE_BYTES
        return pages

    def close(self) -> None:
        os.close(self._fd)


def _overlapping(segments: Sequence[Segment], span: Region) -> Iterator[Segment]:
    for segment in segments:
        if segment.first_page < span.end_page and span.first_page < segment.first_page + segment.pages:
            yield segment


def _check_borders(block: RamBlock, segments: Sequence[Segment]) -> None:
    """Raise GuestRefusedError unless every segment is whole pages of the block, on their borders."""
    for segment in segments:
        places = (segment.address, segment.first_page * PAGE_BYTES, segment.pages * PAGE_BYTES)
        if any(place % block.page_size_bytes for place in places):
            raise GuestRefusedError(
                f"block {block.name!r}: {segment.pages} pages from {segment.first_page} on are mapped at "
                f"{segment.address:#x}, expected whole pages of {block.page_size_bytes} bytes on page borders; "
                "use --tracker digest"
            )


def _add(result: Scan, regions: pagemap.PageRegions, start: int, offset: int) -> None:
    """Add the kernel's *regions* (addresses from *start*, which is page *offset*) to *result*."""
    lengths = ((regions["end"] - regions["start"]) // PAGE_BYTES).astype(np.int64)
    categories = regions["categories"]
    present = (categories & pagemap.PAGE_IS_PRESENT) != 0
    written = (categories & pagemap.PAGE_IS_WRITTEN) != 0
    unknown = (categories & (pagemap.PAGE_IS_PRESENT | pagemap.PAGE_IS_SWAPPED)) == 0
    # One flat index; the verdict of a region is repeated for each of its pages.
    index = _index(regions, start, offset)
    result.dirty[index] = np.repeat(written | unknown, lengths)
    result.unmapped[index] = np.repeat(~present, lengths)


def _index(regions: pagemap.PageRegions, start: int, offset: int) -> Index:
    """The pages of the kernel's *regions*, which are disjoint and ascend; address *start* is page *offset*."""
    runs = np.stack((regions["start"], regions["end"]), axis=1).astype(np.int64)
    return index_of_runs((runs - start) // PAGE_BYTES + offset)
