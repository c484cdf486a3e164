# SPDX-License-Identifier: Apache-2.0
"""The curve of distinct pages, and how it is fitted."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parmig.engine.prediction.curve import Curve, Group, fit, nonnegative_least_squares

TIMES = [0.1 * 2**step for step in range(7)]


def test_a_random_guest_is_recognised_also_beyond_the_longest_time() -> None:
    true = Group(65536, 13.0)

    curve = fit(TIMES, [true.within(time_s) for time_s in TIMES], 65536)

    for time_s in (0.05, 1.0, 5.0, 20.0, 60.0):
        assert curve.within(time_s) == pytest.approx(true.within(time_s), rel=0.02)


def test_a_guest_that_writes_in_order_is_recognised() -> None:
    true = Group(10_000, 1.6, ordered=True)

    curve = fit(TIMES, [true.within(time_s) for time_s in TIMES], 65536)

    for time_s in (0.05, 0.8, 1.6, 6.0, 100.0):
        assert curve.within(time_s) == pytest.approx(true.within(time_s), rel=0.03)


def test_a_guest_that_writes_nothing_has_no_pages() -> None:
    assert fit([], [], 100).within(5.0) == 0
    assert fit([1.0, 2.0], [0, 0], 100).within(5.0) == 0


@given(st.lists(st.tuples(st.floats(0.01, 100), st.floats(0, 1e6)), min_size=1, max_size=8))
def test_each_fitted_curve_rises_from_zero_is_concave_and_bounded(points: list[tuple[float, float]]) -> None:
    curve = fit([time_s for time_s, _ in points], [pages for _, pages in points], 1e5)

    values = np.array([curve.within(time_s) for time_s in np.linspace(0, 200, 101)])
    steps = np.diff(values)
    assert values[0] == 0
    assert values.max() <= 1e5
    assert (steps >= -1e-6).all()
    assert (np.diff(steps) <= 1e-6 * max(1.0, values.max())).all()


@given(st.integers(0, 10_000))
def test_least_squares_find_what_was_mixed(seed: int) -> None:
    random = np.random.default_rng(seed)
    matrix = random.random((8, 5))
    mixed = random.random(5) * (random.random(5) < 0.6)

    result = nonnegative_least_squares(matrix, matrix @ mixed)

    assert (result >= 0).all()
    assert np.abs(matrix @ result - matrix @ mixed).max() < 1e-6


def test_least_squares_leave_out_what_would_be_negative() -> None:
    result = nonnegative_least_squares(np.eye(2), np.array([3.0, -1.0]))

    assert result.tolist() == [3.0, 0.0]


def test_a_curve_never_exceeds_the_memory() -> None:
    assert Curve((Group(math.inf, 1.0, ordered=True),), 10).within(1.0) == 10
