# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest

from parmig.ram.traces.trace import Trace
from parmig.ram.traces.trace_figures import WorkingSet, different_pages, rewritten_share, working_set_curve


def trace(*intervals: list[int], scanned_ns: list[int] | None = None) -> Trace:
    written = [np.array(pages, dtype=np.int64) for pages in intervals]
    return Trace(interval_ns=10**6, memory_pages=100, written=written, scanned_ns=scanned_ns or [])


def test_the_working_set_grows_with_the_time() -> None:
    curve = working_set_curve(trace([1, 2], [2, 3], [1], [1, 9], [50]))
    assert curve == [WorkingSet(1, 8 / 5), WorkingSet(2, 2.5), WorkingSet(4, 4.0)]


def test_a_page_of_an_earlier_interval_counts_as_rewritten() -> None:
    example = trace([1, 2], [2, 3], [1])
    assert different_pages(example) == 3
    assert rewritten_share(example) == pytest.approx(2 / 5)


def test_a_trace_without_pages_has_no_working_set() -> None:
    assert working_set_curve(trace()) == []
    assert (different_pages(trace()), rewritten_share(trace([]))) == (0, 0.0)


def test_intervals_that_share_a_scan_are_late() -> None:
    assert trace([1], [], [], scanned_ns=[11, 31, 31]).late_intervals == 1
    assert trace([1], [2]).late_intervals == 0
