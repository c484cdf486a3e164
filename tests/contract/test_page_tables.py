# SPDX-License-Identifier: Apache-2.0
"""The ``pagemap`` tracker where the owner's page tables lack what the memory file has: whole tables of it.

Each test runs on this kernel, and as on those that have no category for a page table that is missing.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator

import numpy as np
import pytest

from parmig.linux import pagemap
from parmig.ram.blocks import PAGE_BYTES
from tests.contract.test_trackers import ALL_PAGES, NO_PAGEMAP, Guest, Page
from tests.kernels import record, without_page_tables
from tests.support import content

pytestmark = pytest.mark.skipif(NO_PAGEMAP is not None, reason=str(NO_PAGEMAP))

TABLE_PAGES = 512
MADV_PAGEOUT = 21


class LargeGuest(Guest):
    """Blocks of several page tables each."""

    blocks_pages = (4 * TABLE_PAGES, 5 * TABLE_PAGES + 8)
    region_pages = TABLE_PAGES
    split_page = 2 * TABLE_PAGES

    def fill_by_another(self) -> None:
        """Fill all of it as a restore does: nothing of it is in the guest's page tables."""
        for number, memory in enumerate(self.memory):
            os.pwrite(memory.fd, content(number, self.blocks_pages[number]).tobytes(), 0)

    def read_all(self) -> None:
        for pages in self.pages:
            assert pages[:, 7].all()

    def whole_table(self, block: int) -> range:
        """Pages that one page table of this process maps, and nothing else does."""
        first = -(self.pages[block].ctypes.data // PAGE_BYTES) % TABLE_PAGES
        return range(first, first + TABLE_PAGES)

    def zap(self, block: int, pages: range) -> None:
        """Unmap pages, whose content stays; a page table of which nothing is left goes, too (Linux 6.14)."""
        self.maps[block].madvise(mmap.MADV_DONTNEED, pages.start * PAGE_BYTES, len(pages) * PAGE_BYTES)


def everything(guest: Guest) -> list[Page]:
    return [(block, page) for block, count in enumerate(guest.blocks_pages) for page in range(count)]


@pytest.fixture(params=["this kernel", "missing tables are nothing"])
def guest(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[LargeGuest]:
    if request.param != "this kernel":
        without_page_tables(monkeypatch)
    with LargeGuest("pagemap") as one:
        yield one


@pytest.mark.parametrize("halves", [False, True], ids=["find", "scan and take"])
def test_cold_memory_of_a_guest_that_was_restored_is_sent_once(guest: LargeGuest, halves: bool) -> None:
    def later() -> list[Page]:
        if halves:
            guest.scan()
        found = guest.take() if halves else guest.find()
        assert found.holes == []
        return found.data

    guest.fill_by_another()
    if halves:
        guest.scan()
    first = guest.take(first_pass=True) if halves else guest.first_pass()
    assert sorted(first.data) == everything(guest)
    assert guest.count() == 0
    assert later() == []
    guest.read_all()
    assert guest.count() == 0
    assert later() == []
    assert guest.find(holes=False).data == []
    guest.write(1, 700, tag=9)
    guest.write(0, 3, tag=9)
    assert later() == [(0, 3), (1, 700)]
    guest.assert_arrived()


@pytest.mark.parametrize("advice", [mmap.MADV_DONTNEED, MADV_PAGEOUT], ids=["MADV_DONTNEED", "MADV_PAGEOUT"])
def test_memory_that_is_unmapped_or_swapped_out_when_it_is_armed_is_sent_once(guest: LargeGuest, advice: int) -> None:
    """Without swap, MADV_PAGEOUT changes nothing."""
    for block, pages in enumerate(guest.pages):
        pages[:] = content(block + 1, len(pages))
        guest.maps[block].madvise(advice)
    assert sorted(guest.first_pass().data) == everything(guest)
    guest.read_all()
    for holes in (True, False):
        found = guest.find(holes=holes)
        assert (found.data, found.holes) == ([], [])
    guest.assert_arrived()


@pytest.mark.parametrize("holes", [True, False])
def test_what_was_written_and_then_unmapped_between_two_scans_is_found(guest: LargeGuest, holes: bool) -> None:
    guest.fill_by_another()
    guest.read_all()
    guest.first_pass()
    table = guest.whole_table(0)
    guest.pages[0][table.start : table.stop] = content(5, TABLE_PAGES)
    guest.zap(0, table)
    guest.pages[1][3:9] = content(6, 6)
    guest.zap(1, range(3, 9))  # its page table stays
    found = guest.find(holes=holes)
    assert found.data == [*((0, page) for page in table), *((1, page) for page in range(3, 9))]
    guest.assert_arrived()
    assert guest.find(holes=holes).data == []


def test_unmapping_what_is_clean_is_no_news(guest: LargeGuest) -> None:
    guest.fill_by_another()
    guest.read_all()
    guest.first_pass()
    for block, count in enumerate(guest.blocks_pages):
        guest.zap(block, range(count))
    found = guest.find()
    assert (found.data, found.holes) == ([], [])


def test_an_entry_that_is_neither_mapped_nor_marked_is_dirty(monkeypatch: pytest.MonkeyPatch) -> None:
    """No kernel here tells it apart from WRITTEN: so say that nothing is WRITTEN at all."""
    real = pagemap.scan

    def nothing_is_written(*where: object, **how: int) -> Iterator[pagemap.PageRegions]:
        for regions in real(*where, **how):  # type: ignore[arg-type]
            regions["categories"] &= np.uint64(~pagemap.PAGE_IS_WRITTEN & 0xFFFF)
            yield regions

    with Guest("pagemap") as guest:
        for block, page in sorted(ALL_PAGES):
            guest.write(block, page)
        guest.first_pass()
        guest.write(0, 5, tag=2)
        guest.maps[0].madvise(mmap.MADV_DONTNEED, 5 * PAGE_BYTES, PAGE_BYTES)
        monkeypatch.setattr(pagemap, "scan", nothing_is_written)
        assert guest.find().data == [(0, 5)]


def test_whatever_is_armed_missing_page_tables_are_too(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = record(monkeypatch)
    with Guest("pagemap") as guest:
        guest.write(0, 0)
        for step in (guest.first_pass, guest.find, lambda: guest.find(holes=False)):
            asked.clear()
            step()
            assert any(call.arms and call.matches(0) for call in asked)
