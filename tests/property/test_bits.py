# SPDX-License-Identifier: Apache-2.0
"""Every function of ram.bits does what the same operation on a Python set does."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parmig.ram import bits
from tests.support import index_of, pages_below, runs_of, sized_pages

Sized = tuple[int, set[int]]


def mask_of(pages: set[int], limit: int) -> bits.Mask:
    return np.array([page in pages for page in range(limit)], dtype=np.bool_)


def bitmap_of(pages: set[int], limit: int) -> bits.Bits:
    found = np.zeros(bits.bits_for(limit), dtype=np.uint8)
    for page in pages:
        found[page // 8] |= 1 << page % 8
    return found


def set_of(bitmap: bits.Bits) -> set[int]:
    return {8 * place + bit for place, byte in enumerate(bitmap.tolist()) for bit in range(8) if byte >> bit & 1}


@given(sized_pages())
def test_runs_of_a_mask_are_those_of_the_set(sized: Sized) -> None:
    limit, pages = sized
    found = bits.runs_of_mask(mask_of(pages, limit))
    assert found.shape == (len(runs_of(pages)), 2)
    assert np.array_equal(found, runs_of(pages))


@given(sized_pages())
def test_runs_of_an_index_are_those_of_the_set(sized: Sized) -> None:
    assert np.array_equal(bits.runs_of_index(index_of(sized[1])), runs_of(sized[1]))


@given(sized_pages())
def test_the_index_of_runs_is_every_page_in_order(sized: Sized) -> None:
    found = bits.index_of_runs(runs_of(sized[1]))
    assert found.tolist() == sorted(sized[1])
    assert found.dtype == np.int64


@given(st.lists(st.tuples(st.integers(0, 1 << 39), st.integers(1, 40)), max_size=8))
def test_the_index_of_runs_keeps_their_order_whatever_it_is(drawn: list[tuple[int, int]]) -> None:
    runs = np.array([(first, first + count) for first, count in drawn], dtype=np.int64).reshape(-1, 2)
    assert bits.index_of_runs(runs).tolist() == [page for first, count in drawn for page in range(first, first + count)]


@given(st.integers(0, 10_000))
def test_a_bitmap_is_whole_words_and_no_more_than_needed(pages: int) -> None:
    size = bits.bits_for(pages)
    assert size % 8 == 0
    assert 8 * size - 64 < pages <= 8 * size


@given(sized_pages(), st.data())
def test_the_mask_of_bits_is_a_slice_of_the_set(sized: Sized, data: st.DataObject) -> None:
    limit, pages = sized
    first = 8 * data.draw(st.integers(0, (limit - 1) // 8))
    count = data.draw(st.integers(1, limit - first))
    found = bits.mask_of_bits(bitmap_of(pages, limit), first, count)
    assert found.dtype == np.bool_
    assert found.tolist() == [page in pages for page in range(first, first + count)]


@given(sized_pages(), st.data())
def test_putting_a_mask_replaces_a_slice_up_to_the_end_of_its_last_byte(sized: Sized, data: st.DataObject) -> None:
    limit, pages = sized
    first = 8 * data.draw(st.integers(0, (limit - 1) // 8))
    count = data.draw(st.integers(1, limit - first))
    put = data.draw(pages_below(count))
    bitmap = bitmap_of(pages, limit)
    bits.put_mask(bitmap, first, mask_of(put, count))
    past = first + -(-count // 8) * 8
    outside = {page for page in pages if not first <= page < past}
    assert set_of(bitmap) == outside | {first + page for page in put}


@given(sized_pages(), st.data())
def test_asking_for_pages_tells_which_are_members(sized: Sized, data: st.DataObject) -> None:
    limit, pages = sized
    asked = sorted(data.draw(pages_below(limit)))
    found = bits.test_bits(bitmap_of(pages, limit), index_of(asked))
    assert found.dtype == np.bool_
    assert found.tolist() == [page in pages for page in asked]


@given(sized_pages(), st.data())
def test_setting_bits_is_a_union(sized: Sized, data: st.DataObject) -> None:
    limit, pages = sized
    more = data.draw(pages_below(limit))
    bitmap = bitmap_of(pages, limit)
    bits.set_bits(bitmap, index_of(more))
    assert set_of(bitmap) == pages | more


@given(sized_pages(), st.data())
def test_clearing_bits_is_a_difference(sized: Sized, data: st.DataObject) -> None:
    limit, pages = sized
    fewer = data.draw(pages_below(limit))
    bitmap = bitmap_of(pages, limit)
    bits.clear_bits(bitmap, index_of(fewer))
    assert set_of(bitmap) == pages - fewer


@given(sized_pages())
def test_all_shapes_lead_back_to_the_same_set(sized: Sized) -> None:
    limit, pages = sized
    runs = bits.runs_of_index(index_of(pages))
    mask = np.zeros(limit, dtype=np.bool_)
    mask[bits.index_of_runs(runs)] = True
    bitmap = np.zeros(bits.bits_for(limit), dtype=np.uint8)
    bits.set_bits(bitmap, bits.index_of_runs(bits.runs_of_mask(mask)))
    assert np.array_equal(bits.mask_of_bits(bitmap, 0, limit), mask_of(pages, limit))


@pytest.mark.parametrize("first", [0, 7, 8, 9])
@pytest.mark.parametrize("end", [23, 24, 25])
def test_runs_around_the_borders_of_bytes_are_set_and_cleared_exactly(first: int, end: int) -> None:
    pages = np.arange(first, end, dtype=np.int64)
    assert bits.is_one_run(pages)
    bitmap = np.zeros(bits.bits_for(64), dtype=np.uint8)
    bits.set_bits(bitmap, pages)
    assert np.flatnonzero(bits.mask_of_bits(bitmap, 0, 64)).tolist() == pages.tolist()
    bitmap[:] = 0xFF
    bits.clear_bits(bitmap, pages)
    assert np.flatnonzero(~bits.mask_of_bits(bitmap, 0, 64)).tolist() == pages.tolist()


def test_one_run_has_no_gap() -> None:
    assert bits.is_one_run(np.array([5]))
    assert bits.is_one_run(np.array([5, 6]))
    assert not bits.is_one_run(np.array([5, 7]))


@pytest.mark.parametrize("end", range(1, 34))
@pytest.mark.parametrize("first", [0, 8, 13])
def test_a_run_of_any_length_is_set_and_cleared_to_its_last_page(first: int, end: int) -> None:
    index = np.arange(first, first + end)
    found = np.zeros(8, dtype=np.uint8)
    bits.set_bits(found, index)
    assert np.flatnonzero(bits.mask_of_bits(found, 0, 64)).tolist() == index.tolist()
    found[:] = 0xFF
    bits.clear_bits(found, index)
    assert np.flatnonzero(~bits.mask_of_bits(found, 0, 64)).tolist() == index.tolist()


@st.composite
def short_and_long_runs(draw: st.DrawFn) -> bits.Runs:
    """Ascending runs; some of them are long."""
    lengths = st.one_of(st.integers(1, 20), st.integers(bits.LONG_RUN_PAGES - 9, 3 * bits.LONG_RUN_PAGES))
    drawn = draw(st.lists(st.tuples(st.integers(1, 700), lengths), max_size=6))
    ends = np.cumsum([gap + length for gap, length in drawn], dtype=np.int64)
    return np.array([(end - length, end) for end, (_, length) in zip(ends.tolist(), drawn, strict=True)]).reshape(-1, 2)


def pages_of(runs: bits.Runs) -> set[int]:
    return {page for first, end in runs.tolist() for page in range(first, end)}


@given(short_and_long_runs())
def test_runs_are_long_or_short(runs: bits.Runs) -> None:
    long, short = bits.long_and_short(runs)
    assert sorted([*long.tolist(), *short.tolist()]) == runs.tolist()
    assert all(end - first >= bits.LONG_RUN_PAGES for first, end in long.tolist())
    assert all(end - first < bits.LONG_RUN_PAGES for first, end in short.tolist())
    assert bits.page_count(runs) == len(pages_of(runs))


@given(st.lists(st.sets(st.integers(0, 60), max_size=20), max_size=4), st.randoms())
def test_runs_of_any_order_are_joined(parts: list[set[int]], random: Random) -> None:
    seen: set[int] = set()
    runs = []
    for part in parts:
        runs += runs_of(part - seen).tolist()
        seen |= part
    random.shuffle(runs)
    halves = [np.array(half, dtype=np.int64).reshape(-1, 2) for half in (runs[::2], runs[1::2])]
    assert np.array_equal(bits.join_runs(halves), runs_of(seen))
    assert len(bits.join_runs([])) == 0


@given(short_and_long_runs(), st.integers(1, 2000), st.integers(1, 4))
def test_portions_are_all_of_it_and_never_too_large(runs: bits.Runs, max_pages: int, max_runs: int) -> None:
    parts = list(bits.portions(runs, max_pages, max_runs))
    assert all(0 < len(part) <= max_runs and bits.page_count(part) <= max_pages for part in parts)
    assert sum(map(bits.page_count, parts)) == bits.page_count(runs)
    assert set().union(*map(pages_of, parts)) == pages_of(runs)


@given(short_and_long_runs(), st.integers(0, 4000), st.integers(0, 2000))
def test_runs_are_cleared_and_looked_for_in_a_bitmap(runs: bits.Runs, first: int, count: int) -> None:
    limit = 16_000
    bitmap = np.full(bits.bits_for(limit), 0xFF, dtype=np.uint8)
    bits.clear_runs(bitmap, runs)
    left = set_of(bitmap)
    assert left == set(range(len(bitmap) * 8)) - pages_of(runs)
    assert bits.any_set(bitmap, first, first + count) == bool(left & set(range(first, first + count)))
