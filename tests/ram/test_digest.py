# SPDX-License-Identifier: Apache-2.0
"""Digests are equal exactly when every byte is, and cost the destination no memory."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parmig.ram.blocks import PAGE_BYTES
from parmig.ram.reach.mapped import BlockMapping
from parmig.ram.region_digest import RegionDigester, combine
from parmig.ram.regions import Region, cut
from tests.support import allocated_pages, content, mapped

PAGES = 1100  # two chunks of 2 MiB and a piece


def digest(mapping: BlockMapping, region_pages: int = 576) -> str:
    regions = cut([mapping.block], region_pages)
    digester = RegionDigester()
    return combine({number: digester.digest(mapping, region) for number, region in enumerate(regions)}, len(regions))


@pytest.mark.parametrize("zeroed", [[0], [1099], [600], list(range(512, 1024)), list(range(1024, 1100))])
def test_sparse_and_allocated_zero_memory_have_the_same_digest(zeroed: list[int]) -> None:
    with mapped(PAGES, PAGES) as (sparse, allocated):
        allocated.pages[zeroed] = 0
        assert allocated_pages(allocated) > 0
        assert digest(sparse) == digest(allocated)
        sparse.pages[5] = allocated.pages[5] = content(5)[0]
        assert digest(sparse) == digest(allocated)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, PAGES * PAGE_BYTES - 1), st.integers(0, 7))
def test_one_bit_anywhere_changes_the_digest(at: int, bit: int) -> None:
    with mapped(PAGES) as (memory,):
        memory.pages[3] = content(3)[0]
        before = digest(memory)
        memory.buffer[at] ^= 1 << bit
        assert digest(memory) != before
        memory.buffer[at] ^= 1 << bit
        assert digest(memory) == before


def test_contents_that_change_places_change_the_digest() -> None:
    with mapped(PAGES, PAGES) as (one, other):
        one.pages[0], one.pages[1090] = content(1)[0], content(2)[0]
        other.pages[0], other.pages[1090] = content(2)[0], content(1)[0]
        assert digest(one) != digest(other)


def test_looking_allocates_nothing() -> None:
    with mapped(PAGES) as (memory,):
        memory.pages[700] = content(1)[0]
        digest(memory)
        assert allocated_pages(memory) == 1


def test_a_block_within_its_file_is_read_at_its_offset() -> None:
    with mapped(PAGES) as (one,), mapped(PAGES, offset_pages=7) as (other,):
        one.pages[9] = other.pages[9] = content(4)[0]
        assert digest(one) == digest(other)


def test_the_digest_of_all_ram_depends_on_order_and_number() -> None:
    assert combine({0: 1, 1: 2}, 2) != combine({0: 2, 1: 1}, 2)
    assert combine({0: 1, 1: 2}, 2) != combine({0: 1}, 1)
    assert combine({1: 2, 0: 1}, 2) == combine({0: 1, 1: 2}, 2)
    assert len(combine({}, 0)) == 32


def test_a_region_that_nobody_digested_is_an_error() -> None:
    with pytest.raises(KeyError):
        combine({0: 1}, 2)


def test_a_region_on_its_own_says_nothing_of_its_place() -> None:
    with mapped(PAGES) as (memory,):
        memory.pages[0] = memory.pages[64] = content(1)[0]
        digester = RegionDigester()
        assert digester.digest(memory, Region(0, 0, 64)) == digester.digest(memory, Region(0, 64, 64))
