# SPDX-License-Identifier: Apache-2.0
"""What every dirty tracker promises, asked of each through the DirtyScanner and a real memory file.

The guest is this process: it writes through a mapping of its own, which for ``pagemap`` is registered
with userfaultfd, and for ``bitmap`` it keeps account and adds it to the shared bitmap in sync(). Or it is a
virtual CPU, whose stores KVM records.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parmig import linux
from parmig.errors import GuestRefusedError, HostRefusedError, UsageError
from parmig.ram import bits
from parmig.ram.blocks import PAGE_BYTES, BlockMapping, BlockMemory, RamBlock
from parmig.ram.dirty import DirtyScanner
from parmig.ram.dirty_log import DirtyLog, Segment
from parmig.ram.regions import Region, cut
from parmig.ram.shared import SharedArea
from parmig.ram.trackers.base import DirtyTracker
from parmig.ram.trackers.registry import TRACKERS, log_area_bytes, open_tracker
from tests.kvm.machines import StoringVm, needs_kvm
from tests.support import content

NO_PAGEMAP = linux.probe_write_tracking()
KINDS = [
    pytest.param(kind, marks=pytest.mark.skipif(kind == "pagemap" and NO_PAGEMAP is not None, reason=str(NO_PAGEMAP)))
    for kind in TRACKERS
] + [pytest.param(kind, marks=needs_kvm) for kind in ("KVM log", "KVM ring")]
every_tracker = pytest.mark.parametrize("kind", KINDS)

BLOCKS_PAGES = (200, 330)
REGION_PAGES = 64
Page = tuple[int, int]


class Found:
    """What one pass over some regions found."""

    def __init__(self) -> None:
        self.data: list[Page] = []
        self.holes: list[Page] = []
        self.skipped = 0


class Guest:
    """Two blocks of memory with a dirty log of *kind*, and a model of what the destination was told."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.memory: list[BlockMemory] = []
        self.maps: list[mmap.mmap] = []
        self.pages: list[np.ndarray] = []
        self.destination = [np.full((count, PAGE_BYTES), 255, dtype=np.uint8) for count in BLOCKS_PAGES]
        self._unsynced: list[set[int]] = [set() for _ in BLOCKS_PAGES]
        self._stack = ExitStack()
        self._uffd = self.log_fd = -1

    def __enter__(self) -> Guest:
        for number, count in enumerate(BLOCKS_PAGES):
            fd = os.memfd_create(f"guest-{number}", os.MFD_CLOEXEC)
            self._stack.callback(os.close, fd)
            os.ftruncate(fd, count * PAGE_BYTES)
            self.memory.append(BlockMemory(RamBlock(f"ram{number}", count * PAGE_BYTES), fd))
            self.maps.append(mmap.mmap(fd, count * PAGE_BYTES))
            self.pages.append(np.frombuffer(self.maps[-1], dtype=np.uint8).reshape(-1, PAGE_BYTES))
        self.mappings = [BlockMapping(one) for one in self.memory]
        self._start_log()
        self.regions = cut([one.block for one in self.memory], REGION_PAGES)
        self.shared = SharedArea(-1, workers=2, blocks=[one.block for one in self.memory], regions=len(self.regions))
        self.tracker, self.scanner = self.open_scanner()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._uffd >= 0:
            os.close(self._uffd)
        del self.scanner
        self._stack.close()
        self.tracker.close()
        for mapping in self.mappings:
            mapping.close()
        self.shared.close()
        if self.log_fd >= 0:
            os.close(self.log_fd)
        self.pages.clear()
        for one in self.maps:
            one.close()

    def _start_log(self) -> None:
        segments: tuple[tuple[Segment, ...], ...] = ()
        if self.kind == "pagemap":
            self._uffd = linux.userfaultfd()
            linux.uffd_enable(self._uffd, linux.UFFD_TRACKING_FEATURES)
            for pages in self.pages:
                linux.uffd_register_wp(self._uffd, pages.ctypes.data, pages.nbytes)
            # Two segments in one block, as a VMM that maps a block in pieces has.
            addresses = [pages.ctypes.data for pages in self.pages]
            segments = (
                (Segment(0, BLOCKS_PAGES[0], addresses[0]),),
                (Segment(0, 100, addresses[1]), Segment(100, BLOCKS_PAGES[1] - 100, addresses[1] + 100 * PAGE_BYTES)),
            )
        self.log = DirtyLog(self.kind, pid=os.getpid() if segments else 0, segments=segments)
        size = log_area_bytes(self.log, [mapping.block for mapping in self.mappings])
        if self.kind == "bitmap":
            size = sum(bits.bits_for(count) for count in BLOCKS_PAGES)
        if size:
            self.log_fd = os.memfd_create("log", os.MFD_CLOEXEC)
            os.ftruncate(self.log_fd, size)

    def open_scanner(self) -> tuple[DirtyTracker, DirtyScanner]:
        tracker = open_tracker(self.log, self.log_fd, self.mappings)
        return tracker, DirtyScanner(self.regions, self.mappings, tracker, self.shared)

    # -- the guest's side -----------------------------------------------------------------------

    def write(self, block: int, page: int, tag: int = 1) -> None:
        self.pages[block][page] = content(tag)[0]
        self._unsynced[block].add(page)

    def write_zero(self, block: int, page: int) -> None:
        self.pages[block][page] = 0
        self._unsynced[block].add(page)

    def punch(self, block: int, first: int, count: int) -> None:
        linux.punch_hole(self.memory[block].fd, first * PAGE_BYTES, count * PAGE_BYTES)
        self._unsynced[block] |= set(range(first, first + count))

    def remove(self, block: int, first: int, count: int) -> None:
        self.maps[block].madvise(mmap.MADV_REMOVE, first * PAGE_BYTES, count * PAGE_BYTES)
        self._unsynced[block] |= set(range(first, first + count))

    def sync(self) -> None:
        if self.kind != "bitmap":
            return
        with mmap.mmap(self.log_fd, 0) as area:
            at = 0
            for written, count in zip(self._unsynced, BLOCKS_PAGES, strict=True):
                for page in written:
                    area[at + page // 8] |= 1 << page % 8
                written.clear()
                at += bits.bits_for(count)

    # -- a worker's side ------------------------------------------------------------------------

    def find(
        self,
        numbers: Sequence[int] | None = None,
        *,
        first_pass: bool = False,
        scanner: DirtyScanner | None = None,
        tracker: DirtyTracker | None = None,
        before_copy: Callable[[], None] = lambda: None,
        after_copy: Callable[[], None] = lambda: None,
    ) -> Found:
        """Find and "send" as MigrationRamSend does, page contents taken after the scan."""
        scanner, tracker = scanner or self.scanner, tracker or self.tracker
        self.sync()
        found = Found()
        for dirty in scanner.find(range(len(self.regions)) if numbers is None else numbers, first_pass=first_pass):
            block = dirty.region.block
            known = self.shared.bits[block]
            assert dirty.num_dirty_pages == int(dirty.bit_map.sum())
            found.holes += [(block, page) for page in dirty.holes.tolist()]
            found.skipped += dirty.skipped_pages
            self.destination[block][dirty.holes] = 0
            bits.clear_bits(known, dirty.holes)
            tracker.sent(block, dirty.holes, None)
            index = np.flatnonzero(dirty.bit_map) + dirty.region.first_page
            found.data += [(block, page) for page in index.tolist()]
            before_copy()
            copies = self.mappings[block].pages[index]
            self.destination[block][index] = copies
            data = copies.any(axis=1)
            bits.set_bits(known, index[data])
            bits.clear_bits(known, index[~data])
            tracker.sent(block, index[data], copies[data])
            tracker.sent(block, index[~data], None)
            after_copy()
        return found

    def first_pass(self) -> Found:
        return self.find(first_pass=True)

    def count(self) -> int:
        self.sync()
        return self.scanner.count(range(len(self.regions)))

    def assert_arrived(self) -> None:
        for number, memory in enumerate(self.memory):
            here = np.frombuffer(os.pread(memory.fd, memory.block.size_bytes, 0), dtype=np.uint8).reshape(
                -1, PAGE_BYTES
            )
            differing = np.flatnonzero((here != self.destination[number]).any(axis=1))
            assert differing.tolist() == [], f"pages of block {number} that differ at the destination"


class KvmGuest(Guest):
    """The same, written to by a virtual CPU; what it discards is the monitor's to tell."""

    def _start_log(self) -> None:
        self.log_fd = os.memfd_create("log", os.MFD_CLOEXEC)
        os.ftruncate(self.log_fd, sum(bits.bits_for(count) for count in BLOCKS_PAGES))
        addresses = [pages.ctypes.data for pages in self.pages]
        self.vm = StoringVm(addresses, BLOCKS_PAGES, self.log_fd, ring=self.kind == "KVM ring")
        self._stack.callback(self.vm.close)
        self.log = self.vm.recorder.start("bitmap", "auto")

    def write(self, block: int, page: int, tag: int = 1) -> None:
        self.vm.store(block, page, content(tag).tobytes())

    def write_zero(self, block: int, page: int) -> None:
        self.vm.store(block, page, bytes(PAGE_BYTES))

    def sync(self) -> None:
        for slot, discarded in zip(self.vm.slots, self._unsynced, strict=True):
            for page in discarded:
                self.vm.recorder.mark(slot.first_bit + page, slot.first_bit + page + 1)
            discarded.clear()
        self.vm.recorder.sync()


def rig(kind: str) -> Guest:
    return KvmGuest(kind) if kind.startswith("KVM") else Guest(kind)


@pytest.fixture
def guest(kind: str) -> Iterator[Guest]:
    with rig(kind) as one:
        yield one


ALL_PAGES = {(block, page) for block, count in enumerate(BLOCKS_PAGES) for page in range(count)}


@every_tracker
def test_the_first_pass_tells_every_page_as_data_or_hole(guest: Guest) -> None:
    written = {(0, 0), (0, 63), (0, 64), (0, 199), (1, 3), (1, 329)}
    for block, page in written:
        guest.write(block, page)
    found = guest.first_pass()
    assert set(found.data) == written
    assert set(found.holes) == ALL_PAGES - written
    assert len(found.data) + len(found.holes) == len(ALL_PAGES)
    assert found.skipped == len(found.holes)
    guest.assert_arrived()


@every_tracker
def test_clean_memory_has_nothing_to_report(guest: Guest) -> None:
    for page in range(0, 200, 3):
        guest.write(0, page)
    guest.first_pass()
    for _ in range(3):
        found = guest.find()
        assert (found.data, found.holes) == ([], [])
    assert guest.count() == 0


@every_tracker
def test_a_written_page_is_reported_once(guest: Guest) -> None:
    for page in range(200):
        guest.write(0, page)
    guest.first_pass()
    for page in (0, 1, 63, 64, 130, 199):
        guest.write(0, page, tag=2)
    found = guest.find()
    assert found.data == [(0, page) for page in (0, 1, 63, 64, 130, 199)]
    assert found.holes == []
    guest.assert_arrived()
    assert guest.find().data == []


@every_tracker
def test_only_the_regions_asked_for_are_consumed(guest: Guest) -> None:
    for page in range(200):
        guest.write(0, page)
    guest.first_pass()
    guest.write(0, 10, tag=2)
    guest.write(0, 100, tag=2)
    assert guest.find([0]).data == [(0, 10)]
    assert guest.find([0]).data == []
    assert guest.find([1]).data == [(0, 100)]


@every_tracker
def test_a_page_written_while_pages_are_read_is_reported_the_next_time(guest: Guest) -> None:
    for page in range(64):
        guest.write(0, page)
    guest.find([0], first_pass=True, after_copy=lambda: guest.write(0, 5, tag=2))
    assert guest.find([0], after_copy=lambda: guest.write(0, 5, tag=3)).data == [(0, 5)]
    assert guest.find([0], before_copy=lambda: guest.write(0, 6, tag=3)).data == [(0, 5)]
    assert guest.find([0]).data == [(0, 6)]
    assert guest.find([0]).data == []


@every_tracker
def test_a_page_written_between_scan_and_copy_is_never_lost(guest: Guest) -> None:
    for page in range(64):
        guest.write(0, page)
    guest.find(first_pass=True, before_copy=lambda: guest.write(0, 7, tag=9))
    guest.write(0, 7, tag=10)
    guest.find(before_copy=lambda: guest.write(0, 7, tag=11))
    guest.find()
    guest.assert_arrived()


@every_tracker
def test_a_page_that_changes_and_changes_back_around_its_copy_is_not_missed(guest: Guest) -> None:
    for page in range(64):
        guest.write(0, page, tag=1)
    guest.first_pass()
    guest.find()  # the digest tracker keeps a digest of the group from here on
    guest.write(0, 9, tag=2)
    found = guest.find(before_copy=lambda: guest.write(0, 9, tag=3), after_copy=lambda: guest.write(0, 9, tag=1))
    assert found.data == [(0, 9)]
    assert np.array_equal(guest.destination[0][9], content(3)[0])
    assert guest.find().data == [(0, 9)]
    guest.assert_arrived()


@every_tracker
def test_a_region_that_was_empty_is_found_when_it_gets_memory(guest: Guest) -> None:
    guest.write(0, 0)
    guest.first_pass()
    guest.write(1, 70)
    guest.write(1, 71)
    assert guest.count() == (2 if guest.tracker.name != "digest" else 3)  # page 0 was never scanned again
    found = guest.find()
    assert found.data == [(1, 70), (1, 71)]
    assert found.holes == []
    assert guest.find().data == []
    guest.write(1, 71, tag=2)
    guest.write(1, 80, tag=2)
    assert guest.find().data == [(1, 71), (1, 80)]
    guest.assert_arrived()


@every_tracker
def test_a_region_that_got_memory_late_counts_as_clean_when_it_rests(guest: Guest) -> None:
    guest.first_pass()
    guest.write(1, 70)
    guest.find()
    guest.find()
    assert guest.count() == 0


@every_tracker
def test_a_hole_in_an_armed_region_that_gets_memory_is_found(guest: Guest) -> None:
    guest.write(0, 0)
    guest.first_pass()
    guest.write(0, 1)
    assert guest.find().data == [(0, 1)]
    guest.assert_arrived()


@every_tracker
@pytest.mark.parametrize("how", [Guest.punch, Guest.remove], ids=["punch_hole", "MADV_REMOVE"])
def test_punched_pages_arrive_as_holes_where_the_destination_has_data(
    guest: Guest, how: Callable[[Guest, int, int, int], None]
) -> None:
    for page in range(60, 140):
        guest.write(0, page)
    guest.first_pass()
    how(guest, 0, 62, 4)
    how(guest, 0, 10, 20)  # was a hole before: the destination need not hear of it
    found = guest.find()
    assert found.data == []
    assert found.holes == [(0, 62), (0, 63), (0, 64), (0, 65)]
    assert found.skipped == 0
    guest.assert_arrived()
    again = guest.find()
    assert (again.data, again.holes) == ([], [])


@every_tracker
def test_a_whole_block_that_is_punched_arrives_as_holes(guest: Guest) -> None:
    for page in range(200):
        guest.write(0, page)
    guest.first_pass()
    guest.punch(0, 0, 200)
    assert guest.find().holes == [(0, page) for page in range(200)]
    guest.assert_arrived()


@every_tracker
def test_pages_punched_and_filled_again_with_the_same_bytes_arrive(guest: Guest) -> None:
    for page in range(64):
        guest.write(0, page, tag=page)
    guest.first_pass()
    guest.find()
    guest.punch(0, 0, 64)
    guest.find()
    for page in range(64):
        guest.write(0, page, tag=page)
    assert guest.find().data == [(0, page) for page in range(64)]
    guest.assert_arrived()


@every_tracker
def test_a_page_written_and_then_punched_is_a_hole_and_no_data(guest: Guest) -> None:
    for page in range(64):
        guest.write(0, page)
    guest.first_pass()
    guest.write(0, 5, tag=2)
    guest.punch(0, 5, 1)
    found = guest.find()
    assert (found.data, found.holes) == ([], [(0, 5)])


@every_tracker
def test_nothing_that_looks_allocates(guest: Guest) -> None:
    guest.write(0, 5)
    guest.write(1, 300)
    before = [os.fstat(memory.fd).st_blocks for memory in guest.memory]
    guest.first_pass()
    guest.find()
    guest.count()
    assert [os.fstat(memory.fd).st_blocks for memory in guest.memory] == before


@every_tracker
def test_the_count_is_what_is_found(guest: Guest) -> None:
    for page in range(200):
        guest.write(0, page)
    guest.first_pass()
    for page in (1, 2, 3, 77, 199):
        guest.write(0, page, tag=2)
    guest.write(1, 200, tag=2)  # in a region that was empty
    if guest.tracker.name != "digest":
        assert guest.count() == guest.count() == 6  # counting consumes nothing
    found = guest.find()
    assert len(found.data) == 6
    if guest.tracker.name != "digest":
        assert guest.count() == 0
    else:
        assert guest.count() == 6  # what the last scan found, and all of what it has never scanned


@every_tracker
def test_a_count_after_the_first_pass_is_no_promise_of_a_clean_guest(guest: Guest) -> None:
    """Policy pauses on a small count: a guest that was never scanned must not look clean."""
    for page in range(200):
        guest.write(0, page)
    guest.find(first_pass=True, after_copy=lambda: [guest.write(0, page, tag=2) for page in range(150)] and None)
    assert guest.count() >= 150


@every_tracker
def test_the_count_forgets_what_was_scanned_since_in_other_pieces(guest: Guest) -> None:
    for page in range(200):
        guest.write(0, page)
    guest.first_pass()
    for page in range(64, 128):
        guest.write(0, page, tag=2)
    for pieces in ([0], [1], [2], [3]):
        guest.find(pieces)
    guest.find([0, 1, 2, 3])
    assert guest.count() == 0


@every_tracker
def test_two_workers_on_disjoint_regions_do_not_take_each_others_pages(guest: Guest) -> None:
    for page in range(200):
        guest.write(0, page)
    guest.first_pass()
    tracker, scanner = guest.open_scanner()
    for page in (0, 63, 64, 127, 128, 199):
        guest.write(0, page, tag=2)
    assert guest.find([1, 3]).data == [(0, 64), (0, 127), (0, 199)]
    assert guest.find([0, 2], scanner=scanner, tracker=tracker).data == [(0, 0), (0, 63), (0, 128)]
    # Regions may move to the other worker between rounds.
    guest.write(0, 64, tag=3)
    assert guest.find([1], scanner=scanner, tracker=tracker).data == [(0, 64)]
    assert guest.find().data == []
    guest.assert_arrived()
    del scanner
    tracker.close()


operations = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 1), st.integers(0, 199), st.integers(1, 3)),
        st.tuples(st.just("fill"), st.integers(0, 1), st.integers(0, 2), st.integers(1, 2)),
        st.tuples(st.just("zero"), st.integers(0, 1), st.integers(0, 199), st.just(0)),
        st.tuples(st.just("punch"), st.integers(0, 1), st.integers(0, 136), st.integers(1, 64)),
        st.tuples(st.just("find"), st.integers(0, 9), st.integers(0, 9), st.just(0)),
    ),
    max_size=25,
)


@every_tracker
@settings(max_examples=60, deadline=None)
@given(steps=operations)
def test_whatever_the_guest_does_the_last_pass_completes_the_destination(
    kind: str, steps: list[tuple[str, int, int, int]]
) -> None:
    with rig(kind) as guest:
        first = True
        for what, a, b, c in steps:
            if what == "write":
                guest.write(a, b, c)
            elif what == "fill":
                for page in range(64 * b, 64 * b + 64):
                    guest.write(a, page, c)
            elif what == "zero":
                guest.write_zero(a, b)
            elif what == "punch":
                guest.punch(a, b, c)
            elif first:
                guest.first_pass()
                first = False
            else:
                guest.find([number for number in range(len(guest.regions)) if number % 10 in (a, b)])
        guest.find(first_pass=first)
        guest.assert_arrived()
        again = guest.find()
        assert (again.data, again.holes) == ([], [])


@contextmanager
def a_file(size: int) -> Iterator[int]:
    fd = os.memfd_create("short", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, size)
        yield fd
    finally:
        os.close(fd)


def test_a_log_that_cannot_be_read_is_refused() -> None:
    with a_file(16) as fd, a_file(BLOCKS_PAGES[0] * PAGE_BYTES) as ram:
        mapping = BlockMapping(BlockMemory(RamBlock("ram0", BLOCKS_PAGES[0] * PAGE_BYTES), ram))
        with pytest.raises(GuestRefusedError, match="shorter than 32 bytes"):
            open_tracker(DirtyLog("bitmap"), fd, [mapping])
        with pytest.raises(HostRefusedError, match="--tracker digest"):
            open_tracker(DirtyLog("pagemap", pid=2**30), -1, [mapping])
        with pytest.raises(UsageError, match="'guess'; known are pagemap, bitmap, digest"):
            open_tracker(DirtyLog("guess"), -1, [mapping])
        mapping.close()


def test_regions_of_one_span_are_scanned_together() -> None:
    """The rig cuts on 64 pages; the scanner joins neighbours, so this is where spans are covered."""
    with Guest("bitmap") as guest:
        for page in range(200):
            guest.write(0, page)
        guest.first_pass()
        guest.write(0, 3, tag=2)
        guest.write(0, 190, tag=2)
        guest.sync()
        found = list(guest.scanner.find([0, 1, 2, 3], first_pass=False))
        assert [one.region for one in found] == [Region(0, 0, 200)]
        assert np.flatnonzero(found[0].bit_map).tolist() == [3, 190]
