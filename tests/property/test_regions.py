# SPDX-License-Identifier: Apache-2.0
"""Regions cover every page once on bitmap-word borders, and spans only join what lies together."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parmig.ram.blocks import PAGE_BYTES, WORD_PAGES, RamBlock
from parmig.ram.regions import REGION_BYTES_RANGE, REGIONS_PER_WORKER, SPAN_PAGES, Region, cut, region_pages_for
from parmig.units import GIB, MIB

sizes = st.lists(st.integers(1, 3000), min_size=1, max_size=4)
region_sizes = st.integers(1, 20).map(lambda words: words * WORD_PAGES)


def blocks_of(pages: list[int]) -> list[RamBlock]:
    return [RamBlock(f"ram{number}", count * PAGE_BYTES) for number, count in enumerate(pages)]


@given(sizes, region_sizes)
def test_regions_cover_every_page_once_and_share_no_word(pages: list[int], region_pages: int) -> None:
    regions = cut(blocks_of(pages), region_pages)
    for number, count in enumerate(pages):
        mine = [region for region in regions if region.block == number]
        assert [page for region in mine for page in range(region.first_page, region.end_page)] == list(range(count))
        assert all(region.first_page % WORD_PAGES == 0 for region in mine)
        assert all(region.pages == region_pages for region in mine[:-1])
        assert 0 < mine[-1].pages <= region_pages
    assert [region.block for region in regions] == sorted(region.block for region in regions)


@given(st.lists(st.tuples(st.integers(1, 40), st.sampled_from([1, 512, 262144])), min_size=1, max_size=4), region_sizes)
def test_no_region_and_no_span_ends_inside_a_huge_page(sizes: list[tuple[int, int]], region_pages: int) -> None:
    blocks = [
        RamBlock(f"ram{number}", count * unit * PAGE_BYTES, unit * PAGE_BYTES)
        for number, (count, unit) in enumerate(sizes)
    ]
    regions = cut(blocks, region_pages)
    for pieces in (list(regions), list(regions.spans(np.arange(len(regions))))):
        assert sum(piece.pages for piece in pieces) == sum(block.pages for block in blocks)
        for piece in pieces:
            unit = blocks[piece.block].unit_pages
            assert piece.first_page % unit == piece.pages % unit == 0
            assert piece.pages <= max(SPAN_PAGES, unit)
    assert all(region.pages < region_pages + blocks[region.block].unit_pages for region in regions)


@pytest.mark.parametrize("pages", [0, -64, 1, 63, 65, 100])
def test_regions_off_the_word_borders_are_refused(pages: int) -> None:
    with pytest.raises(ValueError, match="multiple of 64"):
        cut(blocks_of([128]), pages)


def flat(regions: Iterable[Region]) -> list[tuple[int, int]]:
    return [(region.block, page) for region in regions for page in range(region.first_page, region.end_page)]


@given(sizes, region_sizes, st.data())
def test_stretches_and_spans_keep_order_and_coverage(pages: list[int], region_pages: int, data: st.DataObject) -> None:
    regions = cut(blocks_of(pages), region_pages)
    chosen = data.draw(st.permutations(range(len(regions))))[: data.draw(st.integers(0, len(regions)))]
    if data.draw(st.booleans()):
        chosen = sorted(chosen)
    numbers = np.array(chosen, dtype=np.int64)
    for joined in (list(regions.stretches(numbers)), list(regions.spans(numbers))):
        assert flat(joined) == flat(regions[number] for number in chosen)
    for before, after in pairwise(regions.stretches(numbers)):
        assert (before.block, before.end_page) != (after.block, after.first_page)  # else they were joined
    for number in chosen:
        assert regions.number_of(regions[number].block, regions[number].end_page - 1) == number


@given(sizes, region_sizes)
def test_regions_are_a_sequence(pages: list[int], region_pages: int) -> None:
    regions = cut(blocks_of(pages), region_pages)
    everything = list(regions)
    assert len(everything) == len(regions)
    assert [regions[number] for number in range(-len(regions), 0)] == everything == regions[:]
    assert regions[1::2] == everything[1::2]
    for number in (len(regions), -len(regions) - 1):
        with pytest.raises(IndexError, match=f"region {number} of {len(regions)}"):
            regions[number]


def test_a_span_grows_to_its_limit_and_no_further() -> None:
    region_pages = 64 * MIB // PAGE_BYTES
    regions = cut(blocks_of([2 * SPAN_PAGES + region_pages]), region_pages)
    joined = list(regions.spans(np.arange(len(regions))))
    assert [span.pages for span in joined] == [SPAN_PAGES, SPAN_PAGES, region_pages]


def test_no_regions_make_no_spans() -> None:
    regions = cut(blocks_of([64]), 64)
    assert list(regions.spans(np.arange(0))) == list(regions.stretches(np.arange(0))) == []


@given(st.lists(st.integers(1, 4 << 20), min_size=1, max_size=4), st.integers(1, 64))
def test_the_size_of_a_region_suits_words_and_workers(pages: list[int], workers: int) -> None:
    found = region_pages_for(blocks_of(pages), workers)
    low, high = (limit // PAGE_BYTES for limit in REGION_BYTES_RANGE)
    assert found % WORD_PAGES == 0
    assert low <= found <= high
    assert found == low or sum(pages) // found >= workers * REGIONS_PER_WORKER


def test_known_sizes_of_regions() -> None:
    assert region_pages_for(blocks_of([64 * MIB // PAGE_BYTES]), 4) == 512
    assert region_pages_for(blocks_of([4 * GIB // PAGE_BYTES]), 4) == 64 * MIB // PAGE_BYTES
