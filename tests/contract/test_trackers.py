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

from parmig.errors import GuestRefusedError, HostRefusedError, UsageError
from parmig.linux import files, pagemap, uffd
from parmig.ram import bits
from parmig.ram.bits import Index, Mask, Runs, index_of_runs
from parmig.ram.blocks import PAGE_BYTES, BlockMemory, Pages, RamBlock
from parmig.ram.dirty_log import DirtyLog, Segment
from parmig.ram.dirty_scanner import DirtyScanner
from parmig.ram.outlets.outlet import Outlet
from parmig.ram.reach.mapped import BlockMapping
from parmig.ram.reach.open_reach import open_reach
from parmig.ram.reach.reach import Reach
from parmig.ram.regions import Region, cut
from parmig.ram.send import MigrationRamSend
from parmig.ram.shared import SharedArea
from parmig.ram.trackers.registry import TRACKERS, log_area_bytes, open_tracker
from parmig.ram.trackers.tracker import DirtyTracker, Scan
from parmig.units import MIB
from tests.kvm.machines import StoringVm, needs_kvm
from tests.support import content

NO_PAGEMAP = uffd.probe_write_tracking()
PRIVATE = "private memory, "
KINDS = [
    pytest.param(kind, marks=pytest.mark.skipif("pagemap" in kind and NO_PAGEMAP is not None, reason=str(NO_PAGEMAP)))
    for kind in (*TRACKERS, *(f"{PRIVATE}{kind}" for kind in ("pagemap", "digest")))
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


class Destination(Outlet):
    """Keeps what it is told in memory that held something else, and notes what that was."""

    def __init__(self, mappings: Sequence[Reach], tracker: DirtyTracker, images: Sequence[Pages]) -> None:
        self._mappings, self._tracker, self._images = mappings, tracker, images
        self.found = Found()
        self.before_copy: Callable[[], None] = lambda: None
        self.after_copy: Callable[[], None] = lambda: None

    def emit(self, block: int, round_: int, data: Index, zero: Runs) -> int:
        self.before_copy()
        copies = np.empty((len(data), PAGE_BYTES), dtype=np.uint8)
        self._mappings[block].read(data, copies)
        self._tracker.sent(block, data, copies)
        self._images[block][data] = copies
        self._images[block][index_of_runs(zero)] = 0
        self.found.data += [(block, page) for page in data.tolist()]
        self.found.holes += [(block, page) for page in index_of_runs(zero).tolist()]
        self.after_copy()
        return int(copies.nbytes)

    def fence(self, round_: int) -> None:
        pass

    @property
    def waiting_ns(self) -> int:
        return 0


class Worker:
    """A send worker without a channel.

    Args:
        wrap: what its scanner sees in place of the tracker.
    """

    def __init__(self, guest: Guest, wrap: Callable[[DirtyTracker], DirtyTracker] = lambda tracker: tracker) -> None:
        self.tracker = wrap(open_tracker(guest.log, guest.log_fd, guest.mappings))
        self.outlet = Destination(guest.mappings, self.tracker, guest.destination)
        self.scanner = DirtyScanner(guest.regions, guest.mappings, self.tracker, guest.shared)
        self.ram = MigrationRamSend(
            worker=0,
            regions=guest.regions,
            blocks=guest.mappings,
            tracker=self.tracker,
            outlet=self.outlet,
            shared=guest.shared,
            batch_bytes=4 * MIB,
        )

    def close(self) -> None:
        self.tracker.close()


class Guest:
    """Two blocks of memory with a dirty log of *kind*, and a model of what the destination was told."""

    blocks_pages: tuple[int, int] = BLOCKS_PAGES
    region_pages = REGION_PAGES
    page_bytes = PAGE_BYTES
    split_page = 100
    """Where the second block is mapped in two segments, as a VMM that maps a block in pieces has."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.memory: list[BlockMemory] = []
        self.maps: list[mmap.mmap] = []
        self.pages: list[np.ndarray] = []
        self.destination = [np.full((count, PAGE_BYTES), 255, dtype=np.uint8) for count in self.blocks_pages]
        self._unsynced: list[set[int]] = [set() for _ in self.blocks_pages]
        self._stack = ExitStack()
        self._uffd = self.log_fd = -1

    def make_file(self, name: str) -> int:
        return os.memfd_create(name, os.MFD_CLOEXEC)

    def _make_memory(self) -> None:
        for number, count in enumerate(self.blocks_pages):
            fd = self.make_file(f"guest-{number}")
            self._stack.callback(os.close, fd)
            os.ftruncate(fd, count * PAGE_BYTES)
            self.memory.append(BlockMemory(RamBlock(f"ram{number}", count * PAGE_BYTES, self.page_bytes), fd))
            self.maps.append(mmap.mmap(fd, count * PAGE_BYTES))
            self.pages.append(np.frombuffer(self.maps[-1], dtype=np.uint8).reshape(-1, PAGE_BYTES))

    def __enter__(self) -> Guest:
        self._make_memory()
        self.mappings = [open_reach(item) for item in self.memory]
        self._start_log()
        self.regions = cut([one.block for one in self.memory], self.region_pages)
        self.shared = SharedArea(-1, workers=2, blocks=[one.block for one in self.memory], regions=len(self.regions))
        self.worker = Worker(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._uffd >= 0:
            os.close(self._uffd)
        self._stack.close()
        self.worker.close()
        del self.worker
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
            self._uffd = uffd.create()
            uffd.enable(self._uffd, uffd.UFFD_TRACKING_FEATURES)
            for pages in self.pages:
                uffd.register_wp(self._uffd, pages.ctypes.data, pages.nbytes)
            one, other = (pages.ctypes.data for pages in self.pages)
            at, end = self.split_page, self.blocks_pages[1]
            segments = (
                (Segment(0, self.blocks_pages[0], one),),
                (Segment(0, at, other), Segment(at, end - at, other + at * PAGE_BYTES)),
            )
        self.log = DirtyLog(self.kind, pid=os.getpid() if segments else 0, segments=segments)
        size = log_area_bytes(self.log, [mapping.block for mapping in self.mappings])
        if self.kind == "bitmap":
            size = sum(bits.bits_for(count) for count in self.blocks_pages)
        if size:
            self.log_fd = os.memfd_create("log", os.MFD_CLOEXEC)
            os.ftruncate(self.log_fd, size)

    # -- the guest's side -----------------------------------------------------------------------

    def write(self, block: int, page: int, tag: int = 1) -> None:
        self.pages[block][page] = content(tag)[0]
        self._unsynced[block].add(page)

    def write_zero(self, block: int, page: int) -> None:
        self.pages[block][page] = 0
        self._unsynced[block].add(page)

    def punch(self, block: int, first: int, count: int) -> None:
        files.punch_hole(self.memory[block].fd, first * PAGE_BYTES, count * PAGE_BYTES)
        self._unsynced[block] |= set(range(first, first + count))

    def remove(self, block: int, first: int, count: int) -> None:
        self.maps[block].madvise(mmap.MADV_REMOVE, first * PAGE_BYTES, count * PAGE_BYTES)
        self._unsynced[block] |= set(range(first, first + count))

    def allocated_pages(self, block: int) -> int:
        """How many pages the block really has."""
        return os.fstat(self.memory[block].fd).st_blocks * 512 // PAGE_BYTES

    def sync(self) -> None:
        if self.kind != "bitmap":
            return
        with mmap.mmap(self.log_fd, 0) as area:
            at = 0
            for written, count in zip(self._unsynced, self.blocks_pages, strict=True):
                for page in written:
                    area[at + page // 8] |= 1 << page % 8
                written.clear()
                at += bits.bits_for(count)

    # -- a worker's side ------------------------------------------------------------------------

    @property
    def everything(self) -> range:
        return range(len(self.regions))

    def find(
        self,
        numbers: Sequence[int] | None = None,
        *,
        first_pass: bool = False,
        holes: bool = True,
        worker: Worker | None = None,
        before_copy: Callable[[], None] = lambda: None,
        after_copy: Callable[[], None] = lambda: None,
    ) -> Found:
        """Find and send, page contents taken after the scan."""
        worker = worker or self.worker
        with self._sending(worker, before_copy, after_copy) as found:
            numbers = self.everything if numbers is None else numbers
            worker.ram.migrate_ram_iterate(1, numbers, first_pass=first_pass, holes=holes)
        return found

    def scan(self, numbers: Sequence[int] | None = None, *, worker: Worker | None = None) -> None:
        """The first half of :meth:`find`."""
        self.sync()
        (worker or self.worker).scanner.scan(self.everything if numbers is None else numbers)

    def take(
        self, numbers: Sequence[int] | None = None, *, first_pass: bool = False, worker: Worker | None = None
    ) -> Found:
        """The second half of :meth:`find`: send what was found."""
        worker = worker or self.worker
        with self._sending(worker) as found:
            for dirty in worker.scanner.take(self.everything if numbers is None else numbers, first_pass=first_pass):
                worker.ram.migrate_ram_send(dirty, first_pass=first_pass)
        return found

    @contextmanager
    def _sending(
        self,
        worker: Worker,
        before_copy: Callable[[], None] = lambda: None,
        after_copy: Callable[[], None] = lambda: None,
    ) -> Iterator[Found]:
        self.sync()
        outlet = worker.outlet
        found = outlet.found = Found()
        outlet.before_copy, outlet.after_copy = before_copy, after_copy
        skipped = worker.ram.counters.skipped_pages
        yield found
        worker.ram.fence(1)
        found.skipped = worker.ram.counters.skipped_pages - skipped

    def first_pass(self) -> Found:
        return self.find(first_pass=True)

    def count(self) -> int:
        self.sync()
        return self.worker.scanner.count(self.everything).pages

    def assert_arrived(self) -> None:
        for number, reach in enumerate(self.mappings):
            here = np.empty((reach.block.pages, PAGE_BYTES), dtype=np.uint8)
            reach.read_span(0, here.data.cast("B"))
            differing = np.flatnonzero((here != self.destination[number]).any(axis=1))
            assert differing.tolist() == [], f"pages of block {number} that differ at the destination"


class PrivateGuest(Guest):
    """The same, in private memory of this process that no file is behind."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind.removeprefix(PRIVATE))

    def _make_memory(self) -> None:
        for number, count in enumerate(self.blocks_pages):
            area = mmap.mmap(-1, count * PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            area.madvise(mmap.MADV_NOHUGEPAGE)
            self.maps.append(area)
            self.pages.append(np.frombuffer(area, dtype=np.uint8).reshape(-1, PAGE_BYTES))
            segments = (Segment(0, count, self.pages[-1].ctypes.data),)
            block = RamBlock(f"ram{number}", count * PAGE_BYTES)
            self.memory.append(BlockMemory(block, pid=os.getpid(), segments=segments))

    def punch(self, block: int, first: int, count: int) -> None:
        self.maps[block].madvise(mmap.MADV_DONTNEED, first * PAGE_BYTES, count * PAGE_BYTES)

    remove = punch

    def allocated_pages(self, block: int) -> int:
        address = self.pages[block].ctypes.data
        with open("/proc/self/pagemap", "rb") as tables:
            return int(pagemap.existing(tables.fileno(), address, address + self.pages[block].nbytes).present.sum())


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
    if kind.startswith(PRIVATE):
        return PrivateGuest(kind)
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
    read_with_the_look_for_zeros = isinstance(guest, PrivateGuest)
    assert np.array_equal(guest.destination[0][9], content(2 if read_with_the_look_for_zeros else 3)[0])
    assert guest.find().data == [(0, 9)]
    guest.assert_arrived()


@every_tracker
def test_a_region_that_was_empty_is_found_when_it_gets_memory(guest: Guest) -> None:
    guest.write(0, 0)
    guest.first_pass()
    guest.write(1, 70)
    guest.write(1, 71)
    assert guest.count() == (2 if guest.worker.tracker.name != "digest" else 3)  # page 0 was never scanned again
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
@pytest.mark.parametrize("name", ["punch", "remove"])
def test_punched_pages_arrive_as_holes_where_the_destination_has_data(guest: Guest, name: str) -> None:
    how = getattr(guest, name)
    for page in range(60, 140):
        guest.write(0, page)
    guest.first_pass()
    how(0, 62, 4)
    how(0, 10, 20)  # was a hole before: the destination need not hear of it
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
    assert guest.allocated_pages(0) == 63, "reading the hole has filled it"


@every_tracker
def test_nothing_that_looks_allocates(guest: Guest) -> None:
    guest.write(0, 5)
    guest.write(1, 300)
    before = [guest.allocated_pages(block) for block in (0, 1)]
    guest.first_pass()
    guest.find()
    guest.count()
    assert [guest.allocated_pages(block) for block in (0, 1)] == before


@every_tracker
def test_the_count_is_what_is_found(guest: Guest) -> None:
    for page in range(200):
        guest.write(0, page)
    guest.first_pass()
    for page in (1, 2, 3, 77, 199):
        guest.write(0, page, tag=2)
    guest.write(1, 200, tag=2)  # in a region that was empty
    if guest.worker.tracker.name != "digest":
        assert guest.count() == guest.count() == 6  # counting consumes nothing
    found = guest.find()
    assert len(found.data) == 6
    if guest.worker.tracker.name != "digest":
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
    other = Worker(guest)
    for page in (0, 63, 64, 127, 128, 199):
        guest.write(0, page, tag=2)
    assert guest.find([1, 3]).data == [(0, 64), (0, 127), (0, 199)]
    assert guest.find([0, 2], worker=other).data == [(0, 0), (0, 63), (0, 128)]
    # Regions may move to the other worker between rounds, and what it finds is counted by all.
    guest.write(0, 64, tag=3)
    assert guest.find([1], worker=other).data == [(0, 64)]
    guest.find([0, 2, 3], worker=other)
    guest.find([1], worker=other)
    guest.sync()
    assert guest.worker.scanner.count(range(4)).pages == other.scanner.count(range(4)).pages == 0
    assert guest.find().data == []
    guest.assert_arrived()
    other.close()


# -- the two halves ------------------------------------------------------------------------------------


@every_tracker
def test_what_one_worker_scanned_another_takes_once(guest: Guest) -> None:
    for page in range(0, 200, 2):
        guest.write(0, page)
    other = Worker(guest)
    guest.scan([0, 2, 4, 6, 8])
    guest.scan([1, 3, 5, 7, 9], worker=other)
    first = guest.take([1, 3, 5, 7, 9], first_pass=True)
    second = guest.take([0, 2, 4, 6, 8], first_pass=True, worker=other)
    assert sorted(first.data + second.data) == [(0, page) for page in range(0, 200, 2)]
    assert set(first.holes + second.holes) == ALL_PAGES - set(first.data + second.data)
    guest.assert_arrived()
    assert (guest.take().data, guest.take(worker=other).data) == ([], [])
    guest.write(0, 2, tag=2)
    guest.write(0, 3, tag=2)  # was a hole
    guest.write(1, 70, tag=2)  # in a region that was empty
    guest.scan(worker=other)
    assert guest.take().data == [(0, 2), (0, 3), (1, 70)]
    assert guest.take(worker=other).data == []
    guest.scan()
    assert guest.take(worker=other).data == []
    guest.assert_arrived()
    other.close()


@every_tracker
def test_what_is_written_between_the_halves_is_sent_as_it_is_and_again(guest: Guest) -> None:
    for page in range(64):
        guest.write(0, page)
    guest.find(first_pass=True)
    guest.find()
    guest.write(0, 7, tag=2)
    guest.scan()
    guest.write(0, 7, tag=3)
    guest.write(0, 8, tag=3)
    assert guest.take().data == [(0, 7)]
    assert np.array_equal(guest.destination[0][7], content(3)[0])
    guest.scan()
    assert (0, 8) in guest.take().data
    guest.assert_arrived()


@every_tracker
def test_what_is_given_back_or_allocated_between_the_halves_arrives(guest: Guest) -> None:
    for page in range(70):
        guest.write(0, page)
    guest.find(first_pass=True)
    for page in range(60, 70):
        guest.write(0, page, tag=2)
    guest.scan()
    guest.punch(0, 62, 4)  # was found dirty
    guest.punch(0, 10, 4)  # was found clean
    guest.write(0, 100, tag=3)
    guest.write(1, 300, tag=3)
    found = guest.take()
    assert found.data == [(0, page) for page in (60, 61, 66, 67, 68, 69)]
    assert found.holes == [(0, 62), (0, 63), (0, 64), (0, 65)]
    guest.scan()
    guest.take()
    guest.assert_arrived()


class AllocatesMeanwhile(DirtyTracker):
    """A tracker at whose arming, or looking, the guest gets memory: just before it, or just after."""

    def __init__(self, tracker: DirtyTracker, moment: str, allocate: Callable[[], None]) -> None:
        self._tracker, self._moment, self._allocate = tracker, moment, allocate
        self.name, self.needs_copy = tracker.name, tracker.needs_copy
        self.reads_page_tables = tracker.reads_page_tables

    def _at(self, moment: str) -> None:
        if moment == self._moment:
            self._allocate()

    def arm(self, span: Region) -> Mask | None:
        self._at("before arming")
        had = self._tracker.arm(span)
        self._at("after arming")
        return had

    def scan(self, span: Region, *, holes: bool = True) -> Scan | None:
        return self._tracker.scan(span, holes=holes)

    def count(self, span: Region) -> int:
        return self._tracker.count(span)

    def sent(self, block: int, index: Index, copies: Pages | None) -> None:
        self._tracker.sent(block, index, copies)

    def close(self) -> None:
        self._tracker.close()


@every_tracker
@pytest.mark.parametrize("moment", ["before arming", "after arming"])
@pytest.mark.parametrize("halves", [False, True], ids=["find", "scan and take"])
def test_memory_that_is_allocated_while_a_region_is_armed_is_never_lost(kind: str, moment: str, halves: bool) -> None:
    """Were the file looked at before arming, memory between the two would be neither told nor recorded."""
    with rig(kind) as guest:
        guest.write(0, 0)

        def allocate() -> None:
            guest.write(0, 5)
            guest.write(0, 190)
            if moment == "before arming":
                guest.sync()

        worker = Worker(guest, lambda tracker: AllocatesMeanwhile(tracker, moment, allocate))
        numbers = [0, 1, 2, 3]
        if halves:
            guest.scan(numbers, worker=worker)
            guest.take(numbers, first_pass=True, worker=worker)
        else:
            guest.find(numbers, first_pass=True, worker=worker)
        if moment == "before arming":  # it was there when the file was looked at, and came along
            assert np.array_equal(guest.destination[0][5], content(1)[0])
        guest.find(first_pass=False)
        assert np.array_equal(guest.destination[0][5], content(1)[0])
        worker.close()


operations = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 1), st.integers(0, 199), st.integers(1, 3)),
        st.tuples(st.just("fill"), st.integers(0, 1), st.integers(0, 2), st.integers(1, 2)),
        st.tuples(st.just("zero"), st.integers(0, 1), st.integers(0, 199), st.just(0)),
        st.tuples(st.just("punch"), st.integers(0, 1), st.integers(0, 136), st.integers(1, 64)),
        st.tuples(st.just("find"), st.integers(0, 9), st.integers(0, 9), st.just(0)),
        st.tuples(st.just("halves"), st.integers(0, 1), st.just(0), st.just(0)),
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
        first, scanned = True, False
        for what, a, b, c in steps:
            if scanned and what in ("find", "halves"):  # both halves belong to one round
                guest.take(first_pass=first)
                first = scanned = False
            if what == "write":
                guest.write(a, b, c)
            elif what == "fill":
                for page in range(64 * b, 64 * b + 64):
                    guest.write(a, page, c)
            elif what == "zero":
                guest.write_zero(a, b)
            elif what == "punch":
                guest.punch(a, b, c)
            elif what == "halves":
                guest.scan()
                scanned = True
            elif first:
                guest.first_pass()
                first = False
            else:
                guest.find([number for number in range(len(guest.regions)) if number % 10 in (a, b)])
        if scanned:
            guest.take(first_pass=first)
        guest.find(first_pass=first and not scanned)
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
        with pytest.raises(GuestRefusedError, match="expected 32 bytes"):
            open_tracker(DirtyLog("bitmap"), fd, [mapping])
        with pytest.raises(HostRefusedError, match="--tracker digest"):
            open_tracker(DirtyLog("pagemap", pid=2**30), -1, [mapping])
        with pytest.raises(UsageError, match="'guess'; choose pagemap, bitmap, digest"):
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
        found = list(guest.worker.scanner.find([0, 1, 2, 3], first_pass=False))
        assert [one.region for one in found] == [Region(0, 0, 200)]
        assert np.flatnonzero(found[0].bit_map).tolist() == [3, 190]
