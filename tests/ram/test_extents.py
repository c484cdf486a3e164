# SPDX-License-Identifier: Apache-2.0
"""What exists of a memory file is told by page, without allocating."""

from __future__ import annotations

import os

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from parmig import linux
from parmig.ram.extents import allocated_mask, has_data
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
            linux.punch_hole(memory.fd, memory.file_offset_bytes + page * 4096, 4096)
        first = data.draw(st.integers(0, PAGES - 1))
        count = data.draw(st.integers(1, PAGES - first))
        wanted = {page for page in written - punched if first <= page < first + count}
        found = np.flatnonzero(allocated_mask(memory, first, count)) + first
        assert found.tolist() == sorted(wanted)
        assert has_data(memory, first, count) == bool(wanted)


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
        found = allocated_mask(memory, first_page, PAGES - 8, among)
        assert set(np.flatnonzero(found & among).tolist()) == {page for page in asked if page + first_page in written}


def test_a_page_that_another_process_wrote_exists() -> None:
    with mapped(8) as (memory,):
        os.pwrite(memory.fd, content(5)[0].tobytes(), memory.file_offset_bytes + 5 * 4096)
        assert np.flatnonzero(allocated_mask(memory, 0, 8)).tolist() == [5]


def test_allocated_zero_memory_exists() -> None:
    with mapped(10) as (memory,):
        memory.pages[3] = 0
        assert np.flatnonzero(allocated_mask(memory, 0, 10)).tolist() == [3]


def test_looking_allocates_nothing() -> None:
    with mapped(64) as (memory,):
        allocated_mask(memory, 0, 64)
        has_data(memory, 0, 64)
        assert allocated_pages(memory) == 0
