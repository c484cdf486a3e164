# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest

from parmig.experiments.simulation.dirty_pages import DirtyPages, RandomDirtyPages, TracedDirtyPages, writes_of
from parmig.experiments.simulation.scenario import TOGETHER, Guests
from parmig.units import MIB

FIRSTS = np.array([0, 512, 1024, 1536, 2048])
PAGES = 8 * MIB // 4096


def dirty_pages(pattern: str, touched: str = "100%", layout: str = TOGETHER, rate: int = 2 * MIB) -> DirtyPages:
    guests = Guests(pattern=pattern, touched=touched, layout=layout)
    return RandomDirtyPages(writes_of(guests, 8 * MIB, rate), FIRSTS, bursts=pattern == "burst")


def test_writes_at_random_hit_some_pages_twice() -> None:
    # 512 pages a second among 2048.
    dirty = dirty_pages("random")
    assert dirty.count(range(4), 1.0) == pytest.approx(2048 * (1 - math.exp(-0.25)))
    assert dirty.scan((0,), 1.0) == pytest.approx(512 * (1 - math.exp(-0.25)))
    assert dirty.count((0,), 1.0) == 0
    assert dirty.count((0, 3), 2.0) == pytest.approx(512 * (2 - math.exp(-0.25) - math.exp(-0.5)))


def test_chance_moves_numbers_around_their_mean() -> None:
    guests = Guests(pattern="random", layout=TOGETHER)
    writes = writes_of(guests, 8 * MIB, 2 * MIB)
    drawn = [RandomDirtyPages(writes, FIRSTS, chance=np.random.default_rng(s)).count(range(4), 1.0) for s in range(200)]
    part = 1 - math.exp(-0.25)
    assert np.mean(drawn) == pytest.approx(2048 * part, rel=0.01)
    assert np.std(drawn) == pytest.approx(math.sqrt(2048 * part * (1 - part)), rel=0.15)


def test_writes_in_order_hit_each_page_once_a_turn() -> None:
    dirty = dirty_pages("sequential")
    assert [dirty.count(range(4), at_s) for at_s in (1.0, 3.0, 5.0)] == pytest.approx([512, 1536, 2048])


def test_hot_pages_are_at_the_start_of_those_that_are_touched() -> None:
    dirty = dirty_pages("hot", touched="50%", rate=64 * MIB)
    assert dirty.count((0,), 0.1) > 102 > dirty.count((1,), 0.1) > 0
    assert dirty.count((2, 3), 10.0) == 0


def test_scattered_pages_are_in_all_regions_alike() -> None:
    dirty = dirty_pages("random", touched="25%", layout="scattered", rate=64 * MIB)
    assert [dirty.count((number,), 100.0) for number in range(4)] == pytest.approx([128] * 4)


def test_bursts_write_as_much_in_half_of_the_time() -> None:
    burst, steady = dirty_pages("burst"), dirty_pages("random")
    assert burst.count(range(4), 0.5) == burst.count(range(4), 1.0) == pytest.approx(steady.count(range(4), 1.0))


def test_a_guest_that_does_not_write_has_no_dirty_pages() -> None:
    assert dirty_pages("random", rate=0).scan(range(4), 10.0) == 0


def test_a_trace_is_replayed_in_a_loop() -> None:
    written = [np.arange(0, 100), np.array([], dtype=np.int64), np.arange(2000, 2010)]
    dirty = TracedDirtyPages(written, 0.1, FIRSTS, seed=1)
    assert dirty.count(range(4), 0.05) == 50
    assert dirty.scan(range(4), 0.1) == 100
    assert dirty.count((3,), 0.25) == 5
    assert dirty.count(range(4), 0.35) == 10 + 50
    assert dirty.scan((0, 3), 100.0) == 110
    assert dirty.count(range(4), 100.0) == 0


def test_a_trace_of_more_memory_than_the_guest_has_is_cut() -> None:
    dirty = TracedDirtyPages([np.array([1, 5000])], 0.1, FIRSTS, seed=1)
    assert dirty.count(range(4), 1.0) == 1
