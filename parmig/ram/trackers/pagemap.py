# SPDX-License-Identifier: Apache-2.0
"""PAGEMAP_SCAN over asynchronous userfaultfd write protection: the guest's page tables are the log.

The guest's process registered its memory; any process that may read its ``/proc/PID/pagemap`` scans
and re-protects a slice in one call. Facts used here (Linux 6.18, seen by experiment):

- an armed page that was never touched has a marker: reported SWAPPED, not WRITTEN, not PRESENT;
- punching a hole leaves such a marker too, so a page that became zero that way shows only as
  "not PRESENT" and is handed up as *unmapped*;
- an entry that is neither PRESENT nor SWAPPED was never armed or lost its marker: treated as dirty.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import numpy as np

from parmig import linux
from parmig.errors import GuestError, HostRefusedError
from parmig.ram.bits import Index, Mask, index_of_runs
from parmig.ram.blocks import PAGE_BYTES
from parmig.ram.dirty_log import DirtyLog, Segment
from parmig.ram.regions import SPAN_PAGES, Region
from parmig.ram.trackers.base import DirtyTracker, Scan

_REARM = linux.PM_SCAN_WP_MATCHING | linux.PM_SCAN_CHECK_WPASYNC
_WRITTEN = {"mask": linux.PAGE_IS_WRITTEN, "returned": linux.PAGE_IS_WRITTEN}
"""The kernel's fast path: it takes untouched pages as WRITTEN too, and marks them."""

_WRITTEN_OR_UNMAPPED = {
    "inverted": linux.PAGE_IS_PRESENT,
    "anyof": linux.PAGE_IS_WRITTEN | linux.PAGE_IS_PRESENT,
    "returned": linux.PAGE_IS_WRITTEN | linux.PAGE_IS_PRESENT | linux.PAGE_IS_SWAPPED,
}

_MAPPED = {"mask": linux.PAGE_IS_PRESENT, "returned": linux.PAGE_IS_PRESENT}

_VECTOR_REGIONS = SPAN_PAGES // 8
"""Answer entries a call: 24 bytes each, 192 KiB; a span with more runs takes more calls."""


class PagemapTracker(DirtyTracker):
    """Scans slices of another process's page tables.

    Args:
        log: from the guest; names the process and where it maps each block.

    Raises:
        HostRefusedError: the process's pagemap cannot be opened.
    """

    name = "pagemap"

    def __init__(self, log: DirtyLog) -> None:
        self._pid = log.pid
        self._segments = log.segments
        self._vector = np.zeros(_VECTOR_REGIONS, dtype=linux.PAGE_REGION_DTYPE)
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

    def _walk(self, start: int, end: int, **how: int) -> Iterator[linux.PageRegions]:
        try:
            yield from linux.pagemap_scan(self._fd, start, end, self._vector, **how)
        except OSError as error:
            raise GuestError(
                f"dirty scan of process {self._pid} at {start:#x}-{end:#x} failed: {error.strerror}; "
                "its memory is no longer under write tracking (did the process end or remap it?)"
            ) from error

    def arm(self, span: Region) -> None:
        for _, start, end in self._pieces(span):
            for _ in self._walk(start, end, flags=_REARM, **_WRITTEN):
                pass

    def existing(self, span: Region) -> Mask:
        mapped: Mask = np.zeros(span.pages, dtype=np.bool_)
        for offset, start, end in self._pieces(span):
            for regions in self._walk(start, end, **_MAPPED):
                mapped[_index(regions, start, offset)] = True
        return mapped

    def scan(self, span: Region, *, holes: bool = True) -> Scan | None:
        found: Scan | None = None
        how = _WRITTEN_OR_UNMAPPED if holes else _WRITTEN
        for offset, start, end in self._pieces(span):
            for regions in self._walk(start, end, flags=_REARM, **how):
                if found is None:
                    found = Scan(np.zeros(span.pages, dtype=np.bool_), np.zeros(span.pages, dtype=np.bool_))
                _add(found, regions, start, offset)
        return found

    def count(self, span: Region) -> int:
        pages = 0
        for _, start, end in self._pieces(span):
            for regions in self._walk(start, end, **_WRITTEN):
                pages += int((regions["end"] - regions["start"]).sum()) // PAGE_BYTES
        return pages

    def close(self) -> None:
        os.close(self._fd)


def _overlapping(segments: Sequence[Segment], span: Region) -> Iterator[Segment]:
    for segment in segments:
        if segment.first_page < span.end_page and span.first_page < segment.first_page + segment.pages:
            yield segment


def _add(found: Scan, regions: linux.PageRegions, start: int, offset: int) -> None:
    """Enter the kernel's *regions* (addresses from *start*, which is page *offset*) into *found*."""
    lengths = ((regions["end"] - regions["start"]) // PAGE_BYTES).astype(np.int64)
    categories = regions["categories"]
    present = (categories & linux.PAGE_IS_PRESENT) != 0
    written = (categories & linux.PAGE_IS_WRITTEN) != 0
    unknown = (categories & (linux.PAGE_IS_PRESENT | linux.PAGE_IS_SWAPPED)) == 0
    # One flat index with its region's verdicts repeated.
    index = _index(regions, start, offset)
    found.dirty[index] = np.repeat(written | unknown, lengths)
    found.unmapped[index] = np.repeat(~present, lengths)


def _index(regions: linux.PageRegions, start: int, offset: int) -> Index:
    """The pages of the kernel's *regions*, which are disjoint and ascend; address *start* is page *offset*."""
    runs = np.stack((regions["start"], regions["end"]), axis=1).astype(np.int64)
    return index_of_runs((runs - start) // PAGE_BYTES + offset)
