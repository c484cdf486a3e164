# SPDX-License-Identifier: Apache-2.0
"""What is learned of a guest's writes."""

from __future__ import annotations

import numpy as np
import pytest

from parmig.engine.prediction.working_set import fit_history, fit_points, working_set_of_pattern
from parmig.engine.prediction.write_history import WriteHistory
from parmig.ram.blocks import PAGE_BYTES

PAGES = 4096


def written(pattern: str, random: np.random.Generator, number: int, at: int) -> np.ndarray:
    """The pages of *number* writes of a synthetic guest, as many writes after its start as *at*."""
    if pattern == "sequential":
        return (at + np.arange(number)) % PAGES
    if pattern == "hot":
        hot = random.random(number) < 0.9
        return np.where(hot, random.integers(0, PAGES // 10, number), random.integers(PAGES // 10, PAGES, number))
    return random.integers(0, PAGES, number)


@pytest.mark.parametrize("pattern", ["random", "hot", "sequential"])
def test_an_observed_pattern_has_the_curve_of_that_pattern(pattern: str) -> None:
    random = np.random.default_rng(5)
    history = WriteHistory(PAGES)
    for interval in range(40):
        history.add(np.unique(written(pattern, random, 100, interval * 100)))

    observed = fit_history(history, 0.1, PAGES)

    expected = working_set_of_pattern(pattern, 1000 * PAGE_BYTES, PAGES)
    for time_s in (0.1, 0.5, 2.0, 4.0):
        assert observed.pages_within(time_s) == pytest.approx(expected.pages_within(time_s), rel=0.06)
    assert observed.observed_s == pytest.approx(4.0)
    assert len(observed.alternatives) == 40
    assert 0 <= observed.spread_within(1.0) < 0.1


def test_a_bursting_guest_has_a_spread() -> None:
    random = np.random.default_rng(5)
    history = WriteHistory(PAGES)
    for interval in range(40):
        history.add(np.unique(random.integers(0, PAGES, 200 if interval // 5 % 2 else 0)))

    observed = fit_history(history, 0.1, PAGES)

    assert observed.spread_within(0.1) > 0.9
    assert observed.spread_within(2.0) < 0.2
    samples = [observed.sample(0.1, random) for _ in range(200)]
    assert min(samples) < 50 < 150 < max(samples)


def test_the_same_observation_says_the_same() -> None:
    history = WriteHistory(PAGES)
    for interval in range(10):
        history.add(np.arange(interval * 20, interval * 20 + 50))

    assert fit_history(history, 0.1, PAGES) == fit_history(history, 0.1, PAGES)


def test_a_few_counts_are_enough_for_a_curve() -> None:
    observed = fit_points([0.1, 1.0], [10, 100], PAGES)

    assert observed.pages_within(0.5) == pytest.approx(50, rel=0.02)
    assert observed.spread_within(0.5) == 0
    assert observed.resampled(np.random.default_rng(1)) == observed
