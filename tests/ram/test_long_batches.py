# SPDX-License-Identifier: Apache-2.0
"""Neighbouring pages that go as they are make long batches, where both sides have agreed on them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parmig.ram.blocks import PAGE_BYTES
from parmig.ram.credit import LONG_BATCH_RUNS, LONG_BATCH_TIMES, credit_bytes, long_batch_bytes, long_credit_bytes
from parmig.units import MIB
from tests.ram.recorder import BATCH_BYTES, BATCH_PAGES
from tests.ram.test_send import Source, arrived, sending, write
from tests.support import file_pages, pages_below

PAGES = 6 * LONG_BATCH_TIMES * BATCH_PAGES // 4
LONG_BYTES = long_batch_bytes(BATCH_BYTES)


def sizes(source: Source) -> list[int]:
    """Pages of each batch that has data."""
    return [header.raw_bytes // PAGE_BYTES for header in source.channel.headers if header.raw_bytes]


ranges = st.lists(st.tuples(st.integers(0, PAGES), st.integers(0, PAGES)), max_size=8).map(
    lambda ends: {page for first, end in ends for page in range(first, end)}
)
"""Pages in few runs, most of them long."""


@settings(deadline=None, max_examples=60)
@given(ranges, ranges | pages_below(PAGES), pages_below(PAGES))
def test_every_dirty_page_is_sent_once_in_batches_that_the_destination_accepts(
    first: set[int], second: set[int], gaps: set[int]
) -> None:
    with sending(PAGES, PAGES, long_bytes=LONG_BYTES) as source:
        for round_, written in enumerate((first, second - gaps), 1):
            source.channel.headers.clear()
            for block in (0, 1):
                write(source, block, written, round_)
            source.round(round_)
            assert source.channel.pages("data") == Counter((block, page) for block in (0, 1) for page in written)
            for header in source.channel.headers:
                long = len(header.data_runs) <= LONG_BATCH_RUNS
                assert header.raw_bytes <= (LONG_BYTES if long else BATCH_BYTES)
        for here, there in zip(source.mappings, arrived(source, compress="none", long_batches=True), strict=True):
            assert np.array_equal(file_pages(here), there)
        assert source.channel.buffers_out == 0


def test_one_run_makes_long_batches_and_the_rest_follows_at_the_fence() -> None:
    with sending(PAGES, long_bytes=LONG_BYTES) as source:
        write(source, 0, set(range(PAGES)), 1)
        source.round(1)
        assert sizes(source) == [LONG_BATCH_TIMES * BATCH_PAGES, PAGES - LONG_BATCH_TIMES * BATCH_PAGES]


@pytest.mark.parametrize("why", ["none agreed", "limited", "limited path", "compressed", "many runs"])
def test_other_batches_are_as_long_as_ever(why: str) -> None:
    long_bytes = 0 if why == "none agreed" else LONG_BYTES
    with sending(PAGES, long_bytes=long_bytes, compress="lz4" if why == "compressed" else "none") as source:
        if why == "limited":
            source.shared.set_rate(1 << 40)
        if why == "limited path":
            source.shared.set_path_rate(0, 1 << 40)
        gaps = set(range(10, PAGES, 11)) if why == "many runs" else set()
        write(source, 0, set(range(PAGES)) - gaps, 1)
        source.round(1)
        assert max(sizes(source)) == BATCH_PAGES


def test_a_channel_has_credit_for_two_long_batches() -> None:
    assert credit_bytes(4 * MIB) < 2 * long_batch_bytes(4 * MIB)
    assert long_credit_bytes(4 * MIB) > 2 * long_batch_bytes(4 * MIB)
