# SPDX-License-Identifier: Apache-2.0
"""Digests of pages: equal for equal pages, different for damage, and no memory for pages without any."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parmig.ram.bits import bits_for, set_bits
from parmig.ram.blocks import PAGE_BYTES, BlockMemory, RamBlock
from parmig.ram.page_digests import MemoryDigests, PlacedDigests, digest_pages, pack, unpack
from parmig.ram.place import PagePlacer
from parmig.ram.reach.mapped import BlockMapping
from parmig.ram.shared import SharedArea

PAGES = 4096
BLOCK = RamBlock("ram", PAGES * PAGE_BYTES)


@pytest.fixture
def reach(tmp_path: Path) -> Iterator[BlockMapping]:
    fd = os.memfd_create("test")
    os.ftruncate(fd, BLOCK.size_bytes)
    mapping = BlockMapping(BlockMemory(BLOCK, fd))
    yield mapping
    mapping.close()
    os.close(fd)


@pytest.fixture
def shared() -> Iterator[SharedArea]:
    area = SharedArea(-1, workers=1, blocks=[BLOCK], regions=8, page_digests=True)
    yield area
    area.close()


def random_pages(count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, PAGE_BYTES), dtype=np.uint8)


def test_a_page_of_zeros_has_digest_0_and_the_digest_of_a_page_depends_on_that_page_alone() -> None:
    pages = random_pages(200)
    pages[7] = 0
    digests = digest_pages(pages)
    assert digests[7] == 0
    assert len(set(digests.tolist())) == 200
    assert digest_pages(pages[150:151])[0] == digests[150]


def test_digests_are_the_same_in_every_version() -> None:
    """Both sides may have different versions."""
    page = (np.arange(PAGE_BYTES) % 251).astype(np.uint8).reshape(1, -1)
    assert digest_pages(page)[0] == 0xA15E01F80EBA2A02


@settings(max_examples=300)
@given(st.dictionaries(st.integers(0, PAGE_BYTES * 8 - 1), st.none(), min_size=1, max_size=8), st.booleans())
def test_flipped_bits_change_the_digest(bits: dict[int, None], random: bool) -> None:
    page = random_pages(1) if random else np.zeros((1, PAGE_BYTES), dtype=np.uint8)
    damaged = page.copy()
    for bit in bits:
        damaged[0, bit // 8] ^= 1 << bit % 8
    assert digest_pages(page)[0] != digest_pages(damaged)[0]


def test_swapped_words_change_the_digest() -> None:
    page = random_pages(1)
    swapped = page.copy().reshape(-1, 8)
    swapped[[0, 1]] = swapped[[1, 0]]
    assert digest_pages(page)[0] != digest_pages(swapped.reshape(1, -1))[0]


def test_the_top_bits_of_two_words_do_not_cancel_out() -> None:
    """With one product a word they would: the keys are odd."""
    page = np.zeros((1, PAGE_BYTES), dtype=np.uint8)
    page[0, [7, 15]] = 0x80
    assert digest_pages(page)[0] != 0


def test_packed_digests_come_back() -> None:
    digests = digest_pages(random_pages(5))
    assert unpack(pack(digests)).tolist() == digests.tolist()


def test_what_is_placed_cleared_and_placed_again_has_the_digests_of_the_memory(
    reach: BlockMapping, shared: SharedArea
) -> None:
    placer = PagePlacer([reach], shared)
    placed = PlacedDigests(shared, [reach])
    sent = np.zeros(bits_for(PAGES), dtype=np.uint8)
    set_bits(sent, np.arange(PAGES))
    memory = MemoryDigests([reach], [sent])
    for first, count in ((0, 100), (600, 700), (50, 3), (2000, 1)):
        placer.place_run(0, first, memoryview(random_pages(count, first).reshape(-1).data))
        placer.note_placed(0, np.arange(first, first + count))
    for zero in ([[10, 11]], [[650, 1200]], [[3000, 4096]]):
        placer.place_zero(0, np.array(zero))
    assert placed.of_pages(0, 0, PAGES).tolist() == memory.of_pages(0, 0, PAGES).tolist()
    assert np.count_nonzero(placed.of_pages(0, 0, PAGES)) == 100 - 1 + 700 - 550 + 1
    for first in range(0, PAGES, 512):
        assert placed.of_region(0, first, 512) == memory.of_region(0, first, 512)


def test_bytes_that_were_stored_wrongly_are_found(reach: BlockMapping, shared: SharedArea) -> None:
    """What counts is the memory, not what came in."""
    placer = PagePlacer([reach], shared)
    pages = random_pages(4)
    placer.place_run(0, 8, memoryview(pages.reshape(-1).data))
    reach.pages[9, 100] ^= 1
    placer.note_placed(0, np.arange(8, 12))
    there = PlacedDigests(shared, [reach]).of_pages(0, 8, 4)
    assert np.flatnonzero(there != digest_pages(pages)).tolist() == [1]


def test_looking_at_pages_without_memory_allocates_nothing(reach: BlockMapping, shared: SharedArea) -> None:
    before = os.fstat(shared.fd).st_blocks, os.fstat(reach.fd).st_blocks
    assert not PlacedDigests(shared, [reach]).of_pages(0, 0, PAGES).any()
    memory = MemoryDigests([reach], [np.zeros(bits_for(PAGES), dtype=np.uint8)])
    assert not memory.of_pages(0, 0, PAGES).any()
    assert (os.fstat(shared.fd).st_blocks, os.fstat(reach.fd).st_blocks) == before


def test_pages_that_were_never_there_take_no_place_in_the_table(reach: BlockMapping, shared: SharedArea) -> None:
    before = os.fstat(shared.fd).st_blocks
    PagePlacer([reach], shared).place_zero(0, np.array([[0, PAGES]]))
    assert os.fstat(shared.fd).st_blocks <= before + 8  # one page, of the bits
