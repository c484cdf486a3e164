# SPDX-License-Identifier: Apache-2.0
"""Finds the pages that a guest has written since the last scan, from its dirty log, and sends nothing."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import Protocol, TypeVar

import numpy as np

from parmig.ram.bits import NO_INDEX, Index, index_of_runs
from parmig.ram.blocks import BlockMemory
from parmig.ram.dirty_log import DirtyLog
from parmig.ram.dirty_scanner import DirtyRegion, DirtyScanner
from parmig.ram.reach.open_reach import open_reach
from parmig.ram.regions import cut, region_pages_for
from parmig.ram.shared import SharedArea
from parmig.ram.trackers.registry import log_area_bytes, open_tracker


class _Closable(Protocol):
    def close(self) -> None: ...


_Resource = TypeVar("_Resource", bound=_Closable)

_COPY_PAGES = 1024
"""Pages that the ``digest`` tracker gets at once: 4 MiB, as in a batch."""


class WriteScan:
    """Scans all memory of one guest; a context manager.

    A page that the guest gave back is not written, and a page that did not exist before is.

    Args:
        memory: the guest's blocks; the descriptors are used, not owned.
        log: the dirty log that the guest has started.
        bitmap_fd: (``bitmap``) its descriptor; used, not owned.

    Raises:
        ParmigError: the memory or the log cannot be reached.
    """

    def __init__(self, memory: Sequence[BlockMemory], log: DirtyLog, bitmap_fd: int = -1) -> None:
        blocks = [item.block for item in memory]
        self._opened = contextlib.ExitStack()
        try:
            self._reaches = [self._open(open_reach(item)) for item in memory]
            regions = cut(blocks, region_pages_for(blocks, 1))
            shared = self._open(SharedArea(-1, workers=1, blocks=blocks, regions=len(regions)))
            area_bytes = log_area_bytes(log, blocks)
            if area_bytes:
                bitmap_fd = os.memfd_create("parmig-digests", os.MFD_CLOEXEC)
                self._opened.callback(os.close, bitmap_fd)
                os.ftruncate(bitmap_fd, area_bytes)
            self._tracker = self._open(open_tracker(log, bitmap_fd, self._reaches))
        except BaseException:
            self._opened.close()
            raise
        self._scanner = DirtyScanner(regions, self._reaches, self._tracker, shared)
        self._numbers = range(len(regions))
        self._firsts = np.cumsum([0, *(block.pages for block in blocks)]).tolist()

    def begin(self) -> None:
        """Forget what was written so far."""
        for dirty in self._scanner.find(self._numbers, first_pass=True):
            self._note(dirty, _written(dirty))

    def scan(self) -> Index:
        """The pages that were written since the last call: numbers over all blocks, ascending, each once.

        Raises:
            GuestError: the guest is gone.
        """
        parts = []
        for dirty in self._scanner.find(self._numbers, first_pass=False, holes=False):
            pages = _written(dirty)
            self._note(dirty, pages)
            parts.append(pages + self._firsts[dirty.region.block])
        return np.sort(np.concatenate(parts)) if parts else NO_INDEX

    def _note(self, dirty: DirtyRegion, pages: Index) -> None:
        """Show a tracker that compares contents what they are now."""
        if not self._tracker.needs_copy:
            return
        block = dirty.region.block
        for copied in np.split(pages, range(_COPY_PAGES, len(pages), _COPY_PAGES)):
            self._tracker.sent(block, copied, self._reaches[block].look(copied).copy())
        self._tracker.sent(block, index_of_runs(dirty.holes), None)

    def _open(self, resource: _Resource) -> _Resource:
        self._opened.callback(resource.close)
        return resource

    def close(self) -> None:
        """Release everything. The log belongs to the guest."""
        self._opened.close()

    def __enter__(self) -> WriteScan:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _written(dirty: DirtyRegion) -> Index:
    return np.flatnonzero(dirty.bit_map) + dirty.region.first_page
