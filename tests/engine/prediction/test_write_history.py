# SPDX-License-Identifier: Apache-2.0
"""Distinct pages in windows."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from parmig.engine.prediction.write_history import WriteHistory


@given(st.lists(st.sets(st.integers(0, 11)), min_size=1, max_size=9))
def test_each_window_counts_its_distinct_pages(intervals: list[set[int]]) -> None:
    history = WriteHistory(12)
    for pages in intervals:
        history.add(np.array(sorted(pages), dtype=np.int64))

    assert len(history) == len(intervals)
    assert history.seen_pages == len(set().union(*intervals))
    for length in range(1, len(intervals) + 1):
        expected = [len(set().union(*intervals[at : at + length])) for at in range(len(intervals) - length + 1)]
        assert history.windows(length).tolist() == expected
