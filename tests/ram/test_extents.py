# SPDX-License-Identifier: Apache-2.0
"""What exists of a memory file is told by page, without allocating."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parmig.linux import files, uffd
from parmig.ram.blocks import PAGE_BYTES, BlockMemory, RamBlock
from parmig.ram.reach.mapped import BlockMapping
from parmig.ram.regions import SPAN_PAGES
from tests.huge import HUGE_BYTES, UNIT_PAGES, huge_file, huge_memfd, hugetlbfs, more_huge_pages, taken_huge_pages
from tests.support import allocated_pages, content, mapped, pages_below

PAGES = 150


@settings(deadline=None, max_examples=50)
@given(pages_below(PAGES), pages_below(PAGES), st.integers(0, 3), st.data())
def test_written_pages_exist_and_punched_ones_do_not(
    written: set[int], punched: set[int], offset_pages: int, data: st.DataObject
) -> None:
    with mapped(PAGES, offset_pages=offset_pages) as (memory,):
        for page in written:
            memory.pages[page] = content(page)[0]
        for page in punched:
            files.punch_hole(memory.fd, memory.file_offset_bytes + page * 4096, 4096)
        first = data.draw(st.integers(0, PAGES - 1))
        count = data.draw(st.integers(1, PAGES - first))
        wanted = {page for page in written - punched if first <= page < first + count}
        found = np.flatnonzero(memory.allocated(first, count)) + first
        assert found.tolist() == sorted(wanted)
        assert memory.has_data(first, count) == bool(wanted)


@settings(deadline=None, max_examples=50)
@given(pages_below(PAGES), pages_below(PAGES - 8), st.integers(0, 8))
def test_of_the_pages_that_matter_those_that_exist_are_told(
    written: set[int], asked: set[int], first_page: int
) -> None:
    with mapped(PAGES) as (memory,):
        for page in written:
            memory.pages[page] = content(page)[0]
        among = np.zeros(PAGES - 8, dtype=np.bool_)
        among[list(asked)] = True
        found = memory.allocated(first_page, PAGES - 8, among)
        assert set(np.flatnonzero(found & among).tolist()) == {page for page in asked if page + first_page in written}


def test_a_page_that_another_process_wrote_exists() -> None:
    with mapped(8) as (memory,):
        os.pwrite(memory.fd, content(5)[0].tobytes(), memory.file_offset_bytes + 5 * 4096)
        assert np.flatnonzero(memory.allocated(0, 8)).tolist() == [5]


def test_allocated_zero_memory_exists() -> None:
    with mapped(10) as (memory,):
        memory.pages[3] = 0
        assert np.flatnonzero(memory.allocated(0, 10)).tolist() == [3]


def test_looking_allocates_nothing() -> None:
    with mapped(64) as (memory,):
        memory.allocated(0, 64)
        memory.has_data(0, 64)
        assert allocated_pages(memory) == 0


# -- how much is asked ----------------------------------------------------------------------------------


class Asked:
    """Counts what the kernel is asked: pages by mincore(2), calls of lseek(2)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, in_memory: bool = True) -> None:
        self.mincore_calls = self.mincore_pages = self.seeks = 0
        real_mincore, real_lseek = files.mincore, os.lseek

        def mincore(address: int, pages: int) -> npt.NDArray[np.bool_]:
            self.mincore_calls += 1
            self.mincore_pages += pages
            return real_mincore(address, pages) & in_memory

        def lseek(fd: int, at: int, how: int) -> int:
            assert how == os.SEEK_DATA
            self.seeks += 1
            return real_lseek(fd, at, how)

        monkeypatch.setattr(files, "mincore", mincore)
        monkeypatch.setattr(os, "lseek", lseek)


def test_of_a_few_pages_nothing_but_those_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with mapped(SPAN_PAGES) as (memory,):
        memory.pages[40_000:40_003] = 1
        asked = Asked(monkeypatch)
        among = np.zeros(SPAN_PAGES, dtype=np.bool_)
        among[[9, 40_000, 40_001, 40_002]] = True
        found = memory.allocated(0, SPAN_PAGES, among)
        assert np.flatnonzero(found).tolist() == [40_000, 40_001, 40_002]
        assert (asked.mincore_calls, asked.mincore_pages, asked.seeks) == (2, 4, 1)


def test_of_many_scattered_pages_all_are_asked_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    with mapped(SPAN_PAGES) as (memory,):
        memory.pages[::4, 0] = 1
        asked = Asked(monkeypatch)
        among = np.zeros(SPAN_PAGES, dtype=np.bool_)
        among[1000::4] = True
        assert memory.allocated(0, SPAN_PAGES, among)[among].all()
        assert asked.mincore_calls == 1
        assert asked.mincore_pages < SPAN_PAGES - 1000
        assert asked.seeks == 0


@pytest.mark.parametrize("step", [1, 2, 5])
def test_pages_that_were_swapped_out_take_a_call_each_and_no_more(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """There need be no swap here: the kernel is made to say that nothing is in memory."""
    pages = 3000
    with mapped(pages) as (memory,):
        wanted = np.arange(7, pages, step)
        memory.pages[wanted] = 1
        asked = Asked(monkeypatch, in_memory=False)
        assert np.flatnonzero(memory.allocated(0, pages)).tolist() == wanted.tolist()
        assert asked.seeks <= len(wanted) + 1


def test_scattered_holes_take_a_call_each_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    with mapped(3000) as (memory,):
        memory.pages[::2] = 1
        asked = Asked(monkeypatch)
        assert np.flatnonzero(memory.allocated(0, 3000)).tolist() == list(range(0, 3000, 2))
        assert asked.seeks == 1500


# -- huge pages -----------------------------------------------------------------------------------------


@pytest.fixture(params=["hugetlbfs", "memfd"])
def huge(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BlockMapping]:
    """A block of 8 huge pages, from the second of its file on; nothing is allocated."""
    with more_huge_pages(16), hugetlbfs(tmp_path) as directory:
        fd = huge_memfd("ram0") if request.param == "memfd" else huge_file(directory, "ram0")
        os.ftruncate(fd, 9 * HUGE_BYTES)
        mapping = BlockMapping(BlockMemory(RamBlock("ram0", 8 * HUGE_BYTES, HUGE_BYTES), fd, HUGE_BYTES))
        try:
            yield mapping
        finally:
            mapping.close()
            os.close(fd)


def huge_pages(found: np.ndarray) -> list[int]:
    """The huge pages that *found* has, which must be whole."""
    rows = found.reshape(-1, UNIT_PAGES)
    assert (rows.all(axis=1) == rows.any(axis=1)).all()
    return np.flatnonzero(rows.all(axis=1)).tolist()


def test_huge_pages_exist_when_they_were_written_by_anybody_and_looking_allocates_none(huge: BlockMapping) -> None:
    assert huge_pages(huge.allocated(0, 8 * UNIT_PAGES)) == []
    assert not huge.has_data(0, 8 * UNIT_PAGES)
    other = BlockMapping(BlockMemory(huge.block, huge.fd, huge.file_offset_bytes))
    other.pages[3 * UNIT_PAGES + 5] = 1
    huge.pages[6 * UNIT_PAGES] = 1
    other.close()
    for _ in range(2):  # looking once changes nothing for the next time
        assert huge_pages(huge.allocated(0, 8 * UNIT_PAGES)) == [3, 6]
    files.punch_hole(huge.fd, huge.file_offset_bytes + 6 * HUGE_BYTES, HUGE_BYTES)
    assert huge_pages(huge.allocated(0, 8 * UNIT_PAGES)) == [3]
    assert [huge.has_data(page * UNIT_PAGES, UNIT_PAGES) for page in range(8)] == [page == 3 for page in range(8)]
    assert taken_huge_pages(lambda: huge.allocated(0, 8 * UNIT_PAGES), 0) == 0
    assert os.fstat(huge.fd).st_blocks * 512 == HUGE_BYTES


def test_a_part_of_a_huge_page_exists_as_the_whole_does(huge: BlockMapping) -> None:
    huge.pages[UNIT_PAGES] = 1
    found = huge.allocated(UNIT_PAGES - 10, 30)
    assert found.tolist() == 10 * [False] + 20 * [True]
    assert huge.has_data(UNIT_PAGES + 100, 1)
    assert not huge.has_data(UNIT_PAGES - 1, 1)
    among = np.zeros(3 * UNIT_PAGES, dtype=np.bool_)
    among[UNIT_PAGES + 3] = True
    assert huge.allocated(0, 3 * UNIT_PAGES, among)[among].all()


def test_where_userfaultfd_is_not_allowed_every_huge_page_is_said_to_exist(
    huge: BlockMapping, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(uffd, "create", refuse)
    assert huge.allocated(0, 2 * UNIT_PAGES).all()
    assert huge.has_data(0, PAGE_BYTES)


def test_the_kernel_counts_pages_in_memory() -> None:
    with mapped(PAGES, offset_pages=2) as (memory,):
        for page in (0, 5, 6):
            memory.pages[page] = content(page)[0]
        at = memory.file_offset_bytes
        counted = [files.cachestat(memory.fd, at + first * PAGE_BYTES, 2 * PAGE_BYTES) for first in (0, 5, 7)]
        assert counted in ([1, 2, 0], [None] * 3)  # None: Linux before 6.5
        assert allocated_pages(memory) == 3
