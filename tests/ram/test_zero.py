# SPDX-License-Identifier: Apache-2.0
"""A page is zero exactly when all of its bytes are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parmig.ram.blocks import PAGE_BYTES
from parmig.ram.zero import zero_mask
from tests.support import index_of, pages_below

PAGES = 24


def words_of(pages: np.ndarray) -> np.ndarray:
    return pages.view(np.uint64)


@given(st.sets(st.tuples(st.integers(0, PAGES - 1), st.integers(0, PAGE_BYTES - 1)), max_size=12), pages_below(PAGES))
def test_exactly_the_pages_without_a_set_byte_are_zero(marks: set[tuple[int, int]], asked: set[int]) -> None:
    pages = np.zeros((PAGES, PAGE_BYTES), dtype=np.uint8)
    for page, byte in marks:
        pages[page, byte] = 1
    found = zero_mask(words_of(pages), index_of(asked))
    marked = {page for page, _ in marks}
    assert found.dtype == np.bool_
    assert found.tolist() == [page not in marked for page in sorted(asked)]


@pytest.mark.parametrize("byte", [0, 7, 8, 2047, 2048, PAGE_BYTES - 9, PAGE_BYTES - 8, PAGE_BYTES - 1])
@pytest.mark.parametrize("value", [1, 0x80])
def test_one_bit_anywhere_makes_a_page_not_zero(byte: int, value: int) -> None:
    pages = np.zeros((3, PAGE_BYTES), dtype=np.uint8)
    pages[1, byte] = value
    assert zero_mask(words_of(pages), index_of({0, 1, 2})).tolist() == [True, False, True]
    assert zero_mask(words_of(pages), index_of({1})).tolist() == [False]
    assert zero_mask(words_of(pages), index_of({0, 2})).tolist() == [True, True]


def test_no_pages_are_no_answer() -> None:
    assert zero_mask(words_of(np.zeros((1, PAGE_BYTES), dtype=np.uint8)), index_of(set())).tolist() == []
