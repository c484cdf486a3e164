# SPDX-License-Identifier: Apache-2.0
"""What exists of a memory file is told by page, without allocating."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parmig import linux
from parmig.ram.bits import mask_of_runs, runs_of_mask
from parmig.ram.extents import allocated_runs, has_data, keep_allocated
from tests.support import allocated_pages, content, mapped, pages_below, runs_of

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
        found = allocated_runs(memory.fd, memory.file_offset_bytes, first, count)
        assert np.array_equal(found, runs_of(wanted))
        assert has_data(memory.fd, memory.file_offset_bytes, first, count) == bool(wanted)


@settings(deadline=None, max_examples=50)
@given(pages_below(PAGES), pages_below(PAGES - 8), st.integers(0, 8))
def test_only_pages_that_exist_are_kept(written: set[int], dirty: set[int], first_page: int) -> None:
    with mapped(PAGES) as (memory,):
        for page in written:
            memory.pages[page] = content(page)[0]
        mask = mask_of_runs(runs_of(dirty), PAGES - 8)
        keep_allocated(memory.fd, 0, first_page, runs_of_mask(mask), mask)
        assert set(np.flatnonzero(mask).tolist()) == {page for page in dirty if page + first_page in written}


@pytest.mark.parametrize("step", [2, 3])
def test_many_short_runs_are_kept_the_same_way(step: int) -> None:
    pages = 400
    with mapped(pages) as (memory,):
        for page in range(0, pages, 5):
            memory.pages[page] = content(1)[0]
        mask = np.zeros(pages, dtype=np.bool_)
        mask[::step] = True
        assert len(runs_of_mask(mask)) > 64
        keep_allocated(memory.fd, 0, 0, runs_of_mask(mask), mask)
        assert np.flatnonzero(mask).tolist() == list(range(0, pages, 5 * step))


def test_allocated_zero_memory_exists() -> None:
    with mapped(10) as (memory,):
        memory.pages[3] = 0
        assert allocated_runs(memory.fd, 0, 0, 10).tolist() == [[3, 4]]


def test_looking_allocates_nothing() -> None:
    with mapped(64) as (memory,):
        allocated_runs(memory.fd, 0, 0, 64)
        has_data(memory.fd, 0, 0, 64)
        assert allocated_pages(memory) == 0


def test_a_descriptor_without_a_file_is_an_error() -> None:
    read_end, write_end = os.pipe()
    try:
        with pytest.raises(OSError, match="seek"):
            allocated_runs(read_end, 0, 0, 1)
        with pytest.raises(OSError, match="seek"):
            has_data(read_end, 0, 0, 1)
    finally:
        os.close(read_end)
        os.close(write_end)
