# SPDX-License-Identifier: Apache-2.0
"""What a restarted destination holds is found out by digests: pages that differ are sent, and no others."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pytest

from parmig.ram.bits import mask_of_bits, set_bits
from parmig.ram.blocks import PAGE_BYTES
from parmig.ram.dirty_scanner import DirtyScanner
from parmig.ram.held_pages import HeldCheck, HeldDigests
from parmig.ram.page_digests import digest_pages
from parmig.ram.reach.mapped import BlockMapping
from parmig.ram.regions import cut
from parmig.ram.shared import ARMED, FRESH, LOST, NOT_ARMED, SharedArea
from parmig.ram.trackers.digest import DigestTracker, digest_area_bytes
from parmig.ram.trackers.nothing import NoTracker
from parmig.ram.trackers.tracker import DirtyTracker
from tests.support import allocated_pages, content, mapped

PAGES, REGION = 1500, 512


class Sides:
    """One block on two sides, and the check between them."""

    def __init__(self, stack: ExitStack, tracker: str) -> None:
        (self.here,), (self.there,) = (stack.enter_context(mapped(PAGES)) for _ in range(2))
        self.regions = cut([self.here.block], REGION)
        self.shared, self.far = (self.area(stack, digests=digests) for digests in (False, True))
        self.tracker = self.open_tracker(stack, tracker)
        self.check = HeldCheck(self.regions, [self.here], self.tracker, self.shared)
        self.shared.armed[:] = ARMED

    def area(self, stack: ExitStack, *, digests: bool) -> SharedArea:
        area = SharedArea(-1, workers=1, blocks=[self.here.block], regions=len(self.regions), page_digests=digests)
        stack.callback(area.close)
        return area

    def open_tracker(self, stack: ExitStack, name: str) -> DirtyTracker:
        if name == "none":
            return NoTracker()
        fd = os.memfd_create("digests")
        stack.callback(os.close, fd)
        os.ftruncate(fd, digest_area_bytes([self.here.block]))
        tracker = DigestTracker(fd, [self.here])
        stack.callback(tracker.close)
        return tracker

    def put(self, page: int, tag: int, *sides: BlockMapping) -> None:
        for side in sides or (self.here, self.there):
            os.pwrite(side.fd, bytes(content(tag)), page * PAGE_BYTES)

    def here_pages(self, pages: int) -> np.ndarray:
        return np.frombuffer(os.pread(self.here.fd, pages * PAGE_BYTES, 0), dtype=np.uint8).reshape(-1, PAGE_BYTES)

    def run(self) -> tuple[int, int, set[int]]:
        """Proven pages, pages to be sent again, and regions that are unarmed."""
        held = HeldDigests(self.far, [self.there])
        proven, again, unarmed = 0, 0, set()
        for number, region in enumerate(self.regions):
            found = self.check.check(number, 0, held.of_pages(0, region.first_page, region.pages))
            proven, again = proven + found.proven_pages, again + found.again_pages
            unarmed |= {number} if found.unarmed else set()
        return proven, again, unarmed

    def reported(self) -> list[int]:
        return np.flatnonzero(mask_of_bits(self.shared.reported[0], 0, PAGES)).tolist()

    def holds(self) -> list[int]:
        """The pages where the destination has something else than zero, as far as the source knows."""
        return np.flatnonzero(mask_of_bits(self.shared.bits[0], 0, PAGES)).tolist()


@pytest.fixture(params=["none", "digest"])
def sides(request: pytest.FixtureRequest) -> Iterator[Sides]:
    with ExitStack() as stack:
        yield Sides(stack, request.param)


def test_equal_pages_are_proven_and_the_others_reported(sides: Sides) -> None:
    for page in (0, 7, 511, 512, 1499):
        sides.put(page, page + 1)
    sides.put(3, 1, sides.here)  # lost on its way
    sides.put(600, 2, sides.there)  # became a hole here, or is damage there
    sides.put(7, 99, sides.here)  # written since
    set_bits(sides.shared.bits[0], np.array([3, 20]))  # what was known before counts no more
    assert sides.run() == (4, 3, set())
    assert sides.reported() == [3, 7, 600]
    assert sides.holds() == [0, 3, 7, 511, 512, 600, 1499]


def test_pages_that_are_reported_are_sent_and_a_hole_as_a_zero_page(sides: Sides) -> None:
    sides.put(3, 1, sides.here)
    sides.put(600, 2, sides.there)
    sides.run()
    scanner = DirtyScanner(sides.regions, [sides.here], sides.tracker, sides.shared)
    dirty = list(scanner.take([0, 1, 2], first_pass=False))
    assert [page for part in dirty for page in (np.flatnonzero(part.bit_map) + part.region.first_page).tolist()] == [3]
    assert [run for part in dirty for run in part.holes.tolist()] == [[600, 601]]


def test_what_was_begun_is_armed_and_what_nobody_knows_is_sent_anew_if_it_differs(sides: Sides) -> None:
    sides.put(1, 1, sides.here)
    sides.put(600, 2, sides.there)
    sides.shared.armed[:] = (FRESH, NOT_ARMED, LOST)
    assert sides.run() == (0, 2, {1})
    assert sides.shared.armed.tolist() == [ARMED, LOST, LOST]
    assert sides.reported() == [1]


def test_the_destination_knows_again_what_it_holds_and_allocates_nothing(sides: Sides) -> None:
    sides.put(600, 2, sides.there)
    sides.run()
    assert allocated_pages(sides.there) == 1
    assert np.flatnonzero(mask_of_bits(sides.far.bits[0], 0, PAGES)).tolist() == [600]
    assert sides.far.page_digests[0][600] == digest_pages(content(2))[0]
    assert np.count_nonzero(sides.far.page_digests[0]) == 1


def test_a_tracker_that_compares_content_begins_with_what_was_compared() -> None:
    """The page was sent and lost, and is as the destination has it when it is compared. Then it is as it was sent."""
    with ExitStack() as stack:
        sides = Sides(stack, "digest")
        for page in range(64):  # a whole group, of which the tracker keeps one digest
            sides.put(page, page + 1)
        sides.put(0, 99, sides.here)
        sides.tracker.sent(0, np.arange(64), sides.here_pages(64))
        whole = sides.regions[0]
        assert sides.tracker.scan(whole, holes=False) is not None  # the rest of the region is holes
        sides.put(0, 1, sides.here)
        assert sides.run()[:2] == (64, 0)
        sides.put(0, 99, sides.here)
        scan = sides.tracker.scan(whole)
        assert scan is not None
        assert np.flatnonzero(scan.dirty).tolist() == [0]
