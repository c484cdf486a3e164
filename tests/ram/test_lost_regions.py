# SPDX-License-Identifier: Apache-2.0
"""Regions whose worker has died: all that exists is sent, whatever was armed and read of them before."""

from __future__ import annotations

import numpy as np
import pytest

from parmig.ram.bits import Mask
from parmig.ram.dirty_scanner import DirtyScanner
from parmig.ram.regions import Region, Regions
from parmig.ram.shared import ARMED, LOST
from parmig.ram.trackers.tracker import DirtyTracker, Scan
from tests.support import content, mapped, shared_area

PAGES = 64
REGION = Region(0, 0, PAGES)


class ArmedBefore(DirtyTracker):
    """Reads page tables of memory that was armed before: arming again shows only what was written since: page 3."""

    name = "armed before"
    reads_page_tables = True
    arms = 0

    def arm(self, span: Region) -> Mask:
        self.arms += 1
        return np.arange(span.pages) == 3

    def scan(self, span: Region, *, holes: bool = True) -> Scan | None:
        raise AssertionError("nobody knows what a scan would leave out")

    def count(self, span: Region) -> int:
        raise AssertionError("nobody knows what a count would leave out")


@pytest.mark.parametrize("in_two_steps", [False, True])
def test_all_that_exists_is_sent_again(in_two_steps: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    regions = Regions([PAGES], [PAGES])
    with mapped(PAGES) as blocks, shared_area(blocks, [REGION]) as shared:
        for page in (3, 5, 40):
            blocks[0].pages[page] = content(page)[0]
        real = blocks[0].allocated

        def allocated(first_page: int, pages: int, among: Mask | None = None, *, tables: Mask | None = None) -> Mask:
            """As for memory of a process, which is what its page tables have."""
            return real(first_page, pages, among) if tables is None else tables.copy()

        monkeypatch.setattr(blocks[0], "allocated", allocated)
        tracker = ArmedBefore()
        scanner = DirtyScanner(regions, blocks, tracker, shared)
        shared.armed[0] = ARMED
        shared.reported[0][:] = 0xFF
        shared.forget_regions([0], [REGION])
        assert shared.armed[0] == LOST
        assert not shared.reported[0].any()
        assert scanner.count([0]).pages == 3
        if in_two_steps:
            scanner.scan([0])
            (dirty,) = scanner.take([0], first_pass=True)
        else:
            (dirty,) = scanner.find([0], first_pass=True)
        assert np.flatnonzero(dirty.bit_map).tolist() == [3, 5, 40]
        assert sum(end - first for first, end in dirty.holes.tolist()) == PAGES - 3
        assert tracker.arms == 1
        assert shared.armed[0] == ARMED
