# SPDX-License-Identifier: Apache-2.0
"""What every way to the memory of a block promises; the processes that own private memory are real ones."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from parmig.errors import GuestError, HostRefusedError, MemoryFullError
from parmig.linux import files, pagemap
from parmig.ram.bits import bits_for, runs_of_index, set_bits
from parmig.ram.blocks import PAGE_BYTES, BlockMemory, RamBlock
from parmig.ram.reach.mapped import BlockMapping
from parmig.ram.reach.open_reach import allocated_bytes, check_reachable, open_reach
from parmig.ram.reach.process import ProcessReach
from parmig.ram.reach.reach import Reach
from tests.contract.memory_owner import MemoryOwner
from tests.huge import HUGE_BYTES, UNIT_PAGES, more_huge_pages
from tests.support import content, index_of, pages_below

PAGES = 64
MAPPED = ["mapped", "disk"]
"""The file of "disk" lies where temporary files lie, on a disk on most hosts. Userfaultfd does not know those."""
KINDS = ["mapped", "anonymous", "pieces", "private"]
FILE_PAGE = 60
"""(private) a page that the file has and the process never wrote."""


def unnamed_file(kind: str) -> int:
    """A new file of the *kind* of a :class:`Place`."""
    if kind != "disk":
        return os.memfd_create(kind)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class Place:
    """A block, the way to it that is asked here, and its owner's own."""

    def __init__(self, kind: str, stack: ExitStack) -> None:
        self.kind = kind
        self._fd = -1
        if kind not in ("anonymous", "pieces"):
            self._fd = unnamed_file(kind)
            stack.callback(os.close, self._fd)
            os.ftruncate(self._fd, PAGES * PAGE_BYTES)
        if kind in MAPPED:
            self.memory = BlockMemory(RamBlock("pc.ram", PAGES * PAGE_BYTES), self._fd)
        else:
            if kind == "private":
                os.pwrite(self._fd, b"f" * PAGE_BYTES, FILE_PAGE * PAGE_BYTES)
            self.owner = MemoryOwner(kind, PAGES, fd=self._fd)
            stack.callback(self.owner.close)
            self.memory = self.owner.memory
        self.reach: Reach = open_reach(self.memory)
        stack.callback(self.reach.close)

    def store(self, page: int, byte: int) -> None:
        if self.kind in MAPPED:
            os.pwrite(self._fd, bytes([byte]) * PAGE_BYTES, page * PAGE_BYTES)
        else:
            self.owner.store(page, byte)

    def fetch(self, page: int) -> bytes:
        if self.kind in MAPPED:
            return os.pread(self._fd, PAGE_BYTES, page * PAGE_BYTES)
        return self.owner.fetch(page)

    def wipe(self) -> None:
        """Give all pages back."""
        if self.kind in MAPPED:
            files.punch_hole(self._fd, 0, PAGES * PAGE_BYTES)
        else:
            self.owner.wipe()

    def existing(self) -> set[int]:
        """Without what the file has: that is there from the start."""
        return set(np.flatnonzero(self.reach.allocated(0, PAGES)).tolist()) - ({FILE_PAGE} & self.own_file())

    def own_file(self) -> set[int]:
        return {FILE_PAGE} if self.kind == "private" else set()


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    with ExitStack() as stack:
        yield Place(request.param, stack)


def nothing_known() -> np.ndarray:
    return np.zeros(bits_for(PAGES), dtype=np.uint8)


def known(pages: set[int]) -> np.ndarray:
    bits = nothing_known()
    set_bits(bits, index_of(pages))
    return bits


def test_pages_that_were_written_exist_and_no_others(place: Place) -> None:
    assert place.existing() == set()
    assert place.reach.has_data(0, PAGES) == bool(place.own_file())
    for page in (0, 3, 4, 40):
        place.store(page, 7)
    assert place.existing() == {0, 3, 4, 40}
    assert place.reach.has_data(0, 1)
    assert place.reach.has_data(33, 20)
    assert not place.reach.has_data(5, 20)


def test_only_what_is_asked_for_must_be_right(place: Place) -> None:
    place.store(20, 7)
    among = np.zeros(16, dtype=np.bool_)
    among[[3, 4, 5]] = True
    assert np.flatnonzero(place.reach.allocated(16, 16, among) & among).tolist() == [4]


def test_what_the_page_tables_had_is_not_asked_again(place: Place) -> None:
    place.store(1, 7)
    tables = np.zeros(PAGES, dtype=np.bool_)
    tables[1] = True
    exists = place.reach.allocated(0, PAGES, tables=tables)
    assert set(np.flatnonzero(exists).tolist()) == {1} | place.own_file()
    exists[:] = False
    assert tables[1]  # the answer is the caller's to change


def test_looking_allocates_nothing(place: Place) -> None:
    place.store(2, 9)
    data = memoryview(bytearray(b"x" * 8 * PAGE_BYTES))
    place.reach.read_span(0, data)
    assert bytes(data) == bytes(2 * PAGE_BYTES) + b"\x09" * PAGE_BYTES + bytes(5 * PAGE_BYTES)
    assert place.existing() == {2}


def test_a_page_that_the_owner_only_read_needs_not_be_sent(place: Place) -> None:
    if place.kind in (*MAPPED, "private"):
        pytest.skip("reading a hole of a file allocates it")
    assert place.fetch(5) == bytes(PAGE_BYTES)
    assert place.existing() == set()


def test_a_file_that_is_mapped_privately_shows_where_the_process_wrote_nothing() -> None:
    with ExitStack() as stack:
        place = Place("private", stack)
        data = memoryview(bytearray(PAGE_BYTES))
        place.reach.read_span(FILE_PAGE, data)
        assert bytes(data) == b"f" * PAGE_BYTES
        place.store(FILE_PAGE, 3)
        place.reach.read_span(FILE_PAGE, data)
        assert bytes(data) == b"\x03" * PAGE_BYTES


@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(pages=pages_below(PAGES), asked=pages_below(PAGES))
def test_pages_are_read_and_written_where_they_belong(place: Place, pages: set[int], asked: set[int]) -> None:
    place.wipe()
    index = index_of(pages)
    if pages:
        place.reach.write(runs_of_index(index), content(1, len(pages)).data.cast("B"), nothing_known())
    wanted = np.zeros((PAGES, PAGE_BYTES), dtype=np.uint8)
    wanted[sorted(place.own_file())] = ord("f")
    wanted[index] = content(1, len(pages))
    both = index_of(sorted(pages & asked))
    assert np.array_equal(place.reach.look(both), wanted[both])
    target = np.empty((len(both), PAGE_BYTES), dtype=np.uint8)
    place.reach.read(both, target)
    assert np.array_equal(target, wanted[both])
    everything = memoryview(bytearray(PAGES * PAGE_BYTES))
    place.reach.read_span(0, everything)
    assert bytes(everything) == wanted.tobytes()
    assert all(place.fetch(page) == wanted[page].tobytes() for page in (0, 31, 32, PAGES - 1))


def test_what_is_read_after_zero_pages_were_looked_for_is_what_was_looked_at_or_newer(place: Place) -> None:
    for page in (3, 4, 9):
        place.store(page, 0 if page == 4 else 5)
    index = index_of([3, 4, 9])
    assert place.reach.zero_mask(index).tolist() == [False, True, False]
    place.store(9, 6)
    target = np.empty((2, PAGE_BYTES), dtype=np.uint8)
    place.reach.read(index_of([3, 9]), target)
    assert target[0, 0] == 5
    assert target[1, 0] in (5, 6)
    assert place.reach.look(index_of([9]))[0, 0] == 6
    place.store(3, 8)
    assert place.reach.zero_mask(index_of([3])).tolist() == [False]
    place.reach.read(index_of([3, 9]), target)  # not only what was just looked at
    assert target[:, 0].tolist() == [8, 6]


@pytest.mark.parametrize("looked", [[3, 4, 9], [3, 9], [3, 4]], ids=["with a zero page", "all of them", "others"])
def test_pages_are_read_into_a_buffer_of_the_callers_own(place: Place, looked: list[int]) -> None:
    for page in (3, 4, 9):
        place.store(page, 0 if page == 4 else page)
    buffers = [np.zeros((2, PAGE_BYTES), dtype=np.uint8) for _ in range(3)]
    taken = []
    for buffer in buffers:
        place.reach.zero_mask(index_of(looked))
        taken.append(place.reach.exchange(index_of([3, 9]), buffer))
        place.store(3, len(taken))
    place.reach.zero_mask(index_of([3, 9]))  # changes nothing that was handed over
    assert [pages[:2, 0].tolist() for pages in taken] == [[3, 9], [1, 9], [2, 9]]
    assert (taken[0] is not buffers[0]) == (place.reach.reads_to_look and looked == [3, 9])
    assert len({pages.ctypes.data for pages in taken}) == 3


def test_pages_that_exist_are_made_zero(place: Place) -> None:
    for page in (1, 2, 50):
        place.store(page, 4)
    place.reach.clear(index_of([1, 50]))
    assert [place.fetch(page)[0] for page in (1, 2, 50)] == [0, 4, 0]


def test_short_and_long_runs_of_pages_that_exist_are_written(place: Place) -> None:
    pages = {0, 2, 3, 20, *range(30, 45)}
    for page in pages:
        place.store(page, 1)
    index = index_of(pages)
    place.reach.write(runs_of_index(index), content(3, len(pages)).data.cast("B"), known(pages))
    assert np.array_equal(place.reach.look(index), content(3, len(pages)))


@pytest.mark.parametrize("place", [*KINDS, "disk"], indirect=True)
def test_a_run_is_written_whatever_exists_in_it(place: Place) -> None:
    for page in (12, 13, 30):
        place.store(page, 1)
    for first, count, tag in ((0, 8, 1), (10, 30, 2), (0, PAGES, 3)):
        pages = content(tag, count)
        place.reach.write_run(first, pages.data.cast("B"))
        assert np.array_equal(place.reach.look(np.arange(first, first + count)), pages)
        assert [place.fetch(page) for page in (first, first + count - 1)] == [pages[0].tobytes(), pages[-1].tobytes()]


def test_views_and_targets_are_the_memory_or_are_not_given(place: Place) -> None:
    place.store(7, 1)
    runs = runs_of_index(index_of([7]))
    views, targets = place.reach.views(runs), place.reach.targets(runs, exist=True)
    assert (views is None) == (targets == []) == (place.kind not in MAPPED)
    if views is not None:
        targets[0][:] = b"\x0b" * PAGE_BYTES
        assert bytes(views[0]) == b"\x0b" * PAGE_BYTES == place.fetch(7)


@pytest.mark.parametrize("place", [*KINDS, "disk"], indirect=True)
def test_pages_that_exist_are_found_to_be_targets_and_absent_ones_are_not_made(place: Place) -> None:
    for page in (3, 4, 9):
        place.store(page, 1)
    there = np.array([[3, 5], [9, 10]])
    targets = place.reach.targets(there, exist=False)
    assert [len(target) for target in targets] in ([2 * PAGE_BYTES, PAGE_BYTES], [])
    assert bool(targets) == (place.kind == "mapped")
    for target in targets:
        target[:] = b"\x0b" * len(target)
    assert not targets or place.fetch(4) == place.fetch(9) == b"\x0b" * PAGE_BYTES
    assert place.reach.targets(np.array([[3, 5], [9, 11]]), exist=False) == []
    assert place.existing() == {3, 4, 9}


def test_every_way_can_be_checked_without_touching_memory(place: Place) -> None:
    check_reachable([place.memory])
    assert place.existing() == set()
    place.store(3, 1)
    assert allocated_bytes([place.memory]) >= PAGE_BYTES


# -- of a process only ------------------------------------------------------------------------------


@pytest.fixture
def owner() -> Iterator[MemoryOwner]:
    process = MemoryOwner("anonymous", PAGES)
    yield process
    process.close()


def test_a_process_that_is_gone_is_named(owner: MemoryOwner) -> None:
    reach = open_reach(owner.memory)
    owner.store(0, 1)
    owner.close()
    for call in (
        lambda: reach.look(index_of([0])),
        lambda: reach.clear(index_of([0])),
        lambda: reach.read_span(0, memoryview(bytearray(PAGE_BYTES))),
    ):
        with pytest.raises((GuestError, MemoryFullError), match=f"process {owner.pid}"):
            call()
    with pytest.raises(GuestError, match=f"process {owner.pid}"):
        open_reach(owner.memory)
    reach.close()


def test_memory_of_somebody_else_is_refused_with_what_to_do(owner: MemoryOwner) -> None:
    if os.geteuid():
        pytest.skip("only root can become somebody else")
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.setgid(65534)
        os.setuid(65534)
        try:
            open_reach(owner.memory)
            said = "allowed"
        except HostRefusedError as error:
            said = str(error)
        os.write(write, said.encode())
        os._exit(0)
    os.close(write)
    said = os.read(read, 4096).decode()
    os.waitpid(child, 0)
    os.close(read)
    assert "CAP_SYS_PTRACE" in said
    assert f"process {owner.pid}" in said


def test_memory_that_is_not_mapped_any_more_is_an_error(owner: MemoryOwner) -> None:
    (segment,) = owner.segments
    wrong = BlockMemory(
        owner.memory.block, pid=owner.pid, segments=(type(segment)(0, segment.pages, segment.address + (1 << 44)),)
    )
    reach = open_reach(wrong)
    with pytest.raises(GuestError, match="no longer in the memory"):
        reach.look(index_of([0]))
    with pytest.raises(MemoryFullError, match="cannot be written"):
        reach.clear(index_of([0]))
    reach.close()


def test_on_older_kernels_the_entries_of_the_page_tables_are_read(
    owner: MemoryOwner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pagemap, "_PAGEMAP_SCAN", 0xC0606699)  # a number that no kernel has
    for page in (0, 7, PAGES - 1):
        owner.store(page, 1)
    reach = open_reach(owner.memory)
    assert np.flatnonzero(reach.allocated(0, PAGES)).tolist() == [0, 7, PAGES - 1]
    reach.close()


def test_a_page_that_was_given_back_does_not_exist(owner: MemoryOwner) -> None:
    reach = open_reach(owner.memory)
    owner.store(4, 1)
    owner.drop(4)
    assert not reach.has_data(0, PAGES)
    reach.close()


@pytest.mark.parametrize("with_file", [True, False], ids=["hugetlb file", "file unknown"])
def test_private_huge_pages(with_file: bool) -> None:
    units = 3
    with more_huge_pages(units + 1), ExitStack() as stack:
        fd = os.memfd_create("huge", os.MFD_HUGETLB)
        stack.callback(os.close, fd)
        os.ftruncate(fd, units * HUGE_BYTES)
        owner = MemoryOwner("private", units * UNIT_PAGES, HUGE_BYTES, fd)
        stack.callback(owner.close)
        memory = owner.memory if with_file else BlockMemory(owner.memory.block, pid=owner.pid, segments=owner.segments)
        reach = open_reach(memory)
        stack.callback(reach.close)
        owner.store(UNIT_PAGES + 3, 5)
        exists = reach.allocated(0, units * UNIT_PAGES)
        assert set(np.flatnonzero(exists) // UNIT_PAGES) == {1}
        data = memoryview(bytearray(2 * PAGE_BYTES))
        reach.read_span(UNIT_PAGES + 3, data)
        assert data[0] == 5
        assert not data[PAGE_BYTES]
        reach.write(
            np.array([[2, 4]]), content(9, 2).data.cast("B"), np.zeros(bits_for(units * UNIT_PAGES), dtype=np.uint8)
        )
        assert owner.fetch(3) == content(9, 2)[1].tobytes()
        assert set(np.flatnonzero(reach.allocated(0, units * UNIT_PAGES)) // UNIT_PAGES) == {0, 1}


def test_the_class_is_chosen_by_what_holds_the_bytes(place: Place) -> None:
    assert type(place.reach) is (BlockMapping if place.kind in MAPPED else ProcessReach)
