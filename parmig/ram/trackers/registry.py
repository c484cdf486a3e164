# SPDX-License-Identifier: Apache-2.0
"""Trackers by name."""

from __future__ import annotations

from collections.abc import Sequence

from parmig.errors import UsageError
from parmig.ram.blocks import RamBlock
from parmig.ram.dirty_log import DirtyLog
from parmig.ram.reach.reach import Reach
from parmig.ram.trackers.bitmap import BitmapTracker
from parmig.ram.trackers.digest import DigestTracker, digest_area_bytes
from parmig.ram.trackers.nothing import NoTracker
from parmig.ram.trackers.pagemap import PagemapTracker
from parmig.ram.trackers.tracker import DirtyTracker

TRACKERS = (PagemapTracker.name, BitmapTracker.name, DigestTracker.name)


def log_area_bytes(log: DirtyLog, blocks: Sequence[RamBlock]) -> int:
    """Shared memory that the workers need besides the guest's own log: only digests need any."""
    return digest_area_bytes(blocks) if log.kind == DigestTracker.name else 0


def open_tracker(log: DirtyLog, log_fd: int, blocks: Sequence[Reach]) -> DirtyTracker:
    """The tracker that reads *log*.

    Args:
        log_fd: the monitor's bitmap, or the shared digests; -1 for pagemap.

    Raises:
        UsageError: no tracker of that name.
    """
    if log.kind == PagemapTracker.name:
        return PagemapTracker(log, [mapping.block for mapping in blocks])
    if log.kind == BitmapTracker.name:
        return BitmapTracker(log_fd, [mapping.block for mapping in blocks], log.rearm)
    if log.kind == DigestTracker.name:
        return DigestTracker(log_fd, blocks)
    if log.kind == NoTracker.name and not blocks:
        return NoTracker()
    raise UsageError(f"unknown dirty tracker {log.kind!r}; choose {', '.join(TRACKERS)}")
