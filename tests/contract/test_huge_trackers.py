# SPDX-License-Identifier: Apache-2.0
"""What the ``pagemap`` tracker promises, on huge pages: they are dirty, sent and given back as a whole."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from parmig.errors import GuestError, GuestRefusedError
from parmig.linux import pagemap, uffd
from parmig.ram.blocks import PAGE_BYTES, BlockMemory, RamBlock
from parmig.ram.dirty_log import DirtyLog, Segment
from parmig.ram.reach.mapped import BlockMapping
from parmig.ram.regions import Region
from parmig.ram.trackers.pagemap import PagemapTracker
from tests.contract.test_trackers import NO_PAGEMAP, Guest, Page, Worker
from tests.huge import HUGE_BYTES, UNIT_PAGES, huge_file, huge_memfd, hugetlbfs, more_huge_pages, taken_huge_pages
from tests.kernels import Asked, record
from tests.support import content

pytestmark = pytest.mark.skipif(NO_PAGEMAP is not None, reason=str(NO_PAGEMAP))

HUGE_PAGES = (4, 6)
"""Of the two blocks; a region is two of them."""


class HugeGuest(Guest):
    """A guest whose blocks lie in huge pages: of a file on hugetlbfs, or, without a directory, of a memfd."""

    blocks_pages = (HUGE_PAGES[0] * UNIT_PAGES, HUGE_PAGES[1] * UNIT_PAGES)
    region_pages = 2 * UNIT_PAGES
    page_bytes = HUGE_BYTES
    split_page = UNIT_PAGES

    def __init__(self, directory: Path | None) -> None:
        super().__init__("pagemap")
        self._directory = directory

    def make_file(self, name: str) -> int:
        return huge_memfd(name) if self._directory is None else huge_file(self._directory, name)

    def exists(self) -> list[int]:
        return [os.fstat(one.fd).st_blocks * 512 // HUGE_BYTES for one in self.memory]


@pytest.fixture(params=["hugetlbfs", "memfd"])
def guest(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[HugeGuest]:
    with more_huge_pages(sum(HUGE_PAGES) + 2):
        if request.param == "memfd":
            with HugeGuest(None) as one:
                yield one
        else:
            with hugetlbfs(tmp_path) as directory, HugeGuest(directory) as one:
                yield one


def whole(*pages: tuple[int, int]) -> list[Page]:
    """Every page of these huge pages (block, number)."""
    return [(block, page) for block, huge in pages for page in range(huge * UNIT_PAGES, (huge + 1) * UNIT_PAGES)]


def write(guest: HugeGuest, *pages: tuple[int, int], tag: int = 1) -> None:
    """Write one small page somewhere in each of these huge pages."""
    for block, huge in pages:
        guest.write(block, huge * UNIT_PAGES + (7 * huge + tag) % UNIT_PAGES, tag)


def fill(guest: HugeGuest, *pages: tuple[int, int], tag: int = 1) -> None:
    """Write all of these huge pages, so that none of their small pages is zero."""
    for block, huge in pages:
        part = slice(huge * UNIT_PAGES, (huge + 1) * UNIT_PAGES)
        guest.pages[block][part] = content(100 * tag + huge, UNIT_PAGES)


def test_the_first_pass_tells_every_page_and_allocates_none(guest: HugeGuest) -> None:
    fill(guest, (0, 0), (1, 3))
    found = guest.first_pass()
    assert found.data == whole((0, 0), (1, 3))
    rest = [(0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2), (1, 4), (1, 5)]
    assert sorted(found.holes) == whole(*rest)
    assert found.skipped == len(found.holes)
    assert guest.exists() == [1, 1]
    guest.assert_arrived()
    for _ in range(2):
        again = guest.find()
        assert (again.data, again.holes) == ([], [])
    assert guest.count() == 0
    assert taken_huge_pages(guest.find, 0) == 0
    assert guest.exists() == [1, 1]


def test_a_huge_page_that_was_written_is_reported_once_and_whole(guest: HugeGuest) -> None:
    fill(guest, *[(0, huge) for huge in range(4)])
    guest.first_pass()
    write(guest, (0, 0), (0, 3), tag=2)
    assert guest.count() == 2 * UNIT_PAGES
    assert guest.find().data == whole((0, 0), (0, 3))
    assert guest.find().data == []
    guest.assert_arrived()


@pytest.mark.parametrize("holes", [True, False])
def test_a_huge_page_that_gets_memory_late_is_found(guest: HugeGuest, holes: bool) -> None:
    fill(guest, (0, 0))
    guest.first_pass()
    fill(guest, (0, 1), tag=2)  # its region is armed, but it was not there to be armed
    assert guest.find(holes=holes).data == whole((0, 1))
    fill(guest, (1, 5), tag=3)  # in a region that was empty
    assert guest.find(holes=holes).data == whole((1, 5))
    write(guest, (0, 1), (1, 5), tag=4)
    assert guest.find(holes=holes).data == whole((0, 1), (1, 5))
    assert guest.find(holes=holes).data == []
    guest.assert_arrived()


def test_pages_written_while_pages_are_read_are_reported_the_next_time(guest: HugeGuest) -> None:
    fill(guest, (0, 0), (0, 1))
    guest.find(first_pass=True, after_copy=lambda: write(guest, (0, 1), tag=2))
    assert guest.find([0], before_copy=lambda: write(guest, (0, 1), tag=3)).data == whole((0, 1))
    assert guest.find([0]).data == whole((0, 1))
    assert guest.find().data == []
    guest.assert_arrived()


def test_huge_pages_that_were_given_back_arrive_as_holes_and_are_not_allocated_again(guest: HugeGuest) -> None:
    fill(guest, *[(0, huge) for huge in range(4)])
    guest.first_pass()
    write(guest, (0, 1), tag=2)
    guest.punch(0, UNIT_PAGES, 2 * UNIT_PAGES)  # one that was written, one that was clean
    found = guest.find()
    assert (found.data, sorted(found.holes)) == ([], whole((0, 1), (0, 2)))
    assert guest.exists() == [2, 0]
    again = guest.find()
    assert (again.data, again.holes) == ([], [])
    guest.assert_arrived()
    fill(guest, (0, 1), tag=5)
    assert guest.find().data == whole((0, 1))
    guest.assert_arrived()


def test_memory_that_another_process_filled_is_sent_once_though_it_is_never_mapped(guest: HugeGuest) -> None:
    """As of a guest that was restored, or moved here."""
    for memory in guest.memory:
        filler = BlockMapping(memory)
        filler.pages[: 2 * UNIT_PAGES] = content(1, 2 * UNIT_PAGES)
        filler.close()
    assert guest.first_pass().data == whole((0, 0), (0, 1), (1, 0), (1, 1))
    for _ in range(2):
        found = guest.find()
        assert (found.data, found.holes) == ([], [])
    guest.assert_arrived()


def test_one_worker_takes_what_another_scanned(guest: HugeGuest) -> None:
    other = Worker(guest)
    fill(guest, (0, 0), (1, 2))
    guest.scan([0, 1])
    guest.scan([2, 3, 4], worker=other)
    assert guest.take([2, 3, 4], first_pass=True).data == whole((1, 2))
    assert guest.take([0, 1], first_pass=True, worker=other).data == whole((0, 0))
    write(guest, (0, 0), tag=2)
    fill(guest, (1, 3), tag=3)
    guest.scan()
    guest.punch(1, 2 * UNIT_PAGES, UNIT_PAGES)
    found = guest.take(worker=other)
    assert (found.data, found.holes) == (whole((0, 0), (1, 3)), [])
    guest.scan()
    assert guest.take().holes == whole((1, 2))
    assert guest.exists() == [1, 1]
    guest.assert_arrived()
    other.close()


def test_no_huge_page_is_ever_armed_that_is_not_there(guest: HugeGuest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels before May 2026 hang in that call for ever, and what they hold stops the guest."""
    asked = record(monkeypatch)
    fill(guest, (0, 0), (1, 2))
    guest.first_pass()
    guest.scan()
    guest.punch(0, 0, UNIT_PAGES)
    guest.take()
    for holes in (True, False):
        write(guest, (1, 2), tag=2)
        guest.find(holes=holes)
    guest.count()
    arming = [call for call in asked if call.arms]
    assert len(arming) > 5
    absent = (0, pagemap.PAGE_IS_SWAPPED)
    assert not any(call.matches(categories) for call in arming for categories in absent)
    assert any(call.matches(0) for call in asked)  # they were asked for, in other calls
    assert Asked(pagemap.PM_SCAN_WP_MATCHING, 8, 8, 0).matches(0)  # and this is what would have been found


def test_a_part_of_a_huge_page_is_an_error_and_no_endless_loop(guest: HugeGuest) -> None:
    fill(guest, (0, 0))
    with pytest.raises(GuestError, match="no progress"):
        guest.worker.tracker.arm(Region(0, 0, UNIT_PAGES // 2))


def test_a_block_whose_segments_are_not_whole_pages_is_refused_by_name(guest: HugeGuest) -> None:
    address = guest.log.segments[0][0].address
    blocks = [memory.block for memory in guest.memory]
    for wrong in (
        Segment(0, UNIT_PAGES + 8, address),
        Segment(8, UNIT_PAGES, address),
        Segment(0, UNIT_PAGES, address + PAGE_BYTES),
    ):
        with pytest.raises(GuestRefusedError, match=rf"block 'ram0': .* whole pages of {HUGE_BYTES} bytes.*--tracker"):
            PagemapTracker(DirtyLog("pagemap", os.getpid(), ((wrong,), ())), blocks)


def test_memory_in_huge_pages_that_nobody_told_of_is_refused(guest: HugeGuest) -> None:
    memory = guest.memory[0]
    for block in (
        RamBlock("ram0", memory.block.size_bytes),
        RamBlock("ram0", memory.block.size_bytes - PAGE_BYTES, HUGE_BYTES),
    ):
        with pytest.raises(GuestRefusedError, match=rf"'ram0'.* pages of {HUGE_BYTES} bytes"):
            BlockMapping(BlockMemory(block, memory.fd))


def test_huge_pages_that_the_host_lacks_are_an_error_and_no_signal(guest: HugeGuest) -> None:
    with os.fdopen(huge_memfd("too much"), "r+b") as file:
        os.ftruncate(file.fileno(), 1 << 40)
        with pytest.raises(GuestRefusedError, match=r"'pc.ram' cannot be mapped: .*huge pages"):
            BlockMapping(BlockMemory(RamBlock("pc.ram", 1 << 40, HUGE_BYTES), file.fileno()))


GIGANTIC = Path("/sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages")


def test_pages_of_1_gib_are_tracked_or_refused_but_never_hang() -> None:
    size = 1 << 30
    before = int(GIGANTIC.read_text()) if GIGANTIC.exists() else 0
    try:
        GIGANTIC.write_text(str(before + 1))
    except OSError as error:
        pytest.skip(f"no pages of 1 GiB here: {error}")
    try:
        if int(GIGANTIC.read_text()) == before:
            pytest.skip("the kernel has no page of 1 GiB to give")
        with os.fdopen(os.memfd_create("gigantic", os.MFD_HUGETLB | os.MFD_HUGE_1GB), "r+b") as file:
            os.ftruncate(file.fileno(), size)
            with mmap.mmap(file.fileno(), size) as area:
                pages = np.frombuffer(area, dtype=np.uint8)
                pages[0] = 1
                tracking_fd = uffd.create()
                uffd.enable(tracking_fd, uffd.UFFD_TRACKING_FEATURES)
                uffd.register_wp(tracking_fd, pages.ctypes.data, size)
                log = DirtyLog("pagemap", os.getpid(), ((Segment(0, size // PAGE_BYTES, pages.ctypes.data),),))
                tracker = PagemapTracker(log, [RamBlock("ram0", size, size)])
                span = Region(0, 0, size // PAGE_BYTES)
                refused = ""
                try:
                    tracker.arm(span)
                except GuestError as error:
                    refused = str(error)
                if refused:
                    assert "no progress" in refused
                else:
                    assert tracker.scan(span) is None
                    pages[1 << 29] = 1
                    found = tracker.scan(span)
                    assert found is not None
                    assert found.dirty.all()
                tracker.close()
                os.close(tracking_fd)
                del pages
    finally:
        GIGANTIC.write_text(str(before))
