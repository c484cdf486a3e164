# SPDX-License-Identifier: Apache-2.0
"""Which pairs of devices become paths, and which worker uses which path."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parmig.engine.paths.paths import ChosenPaths, DevicePair, choose_pairs, pair_up, spread
from parmig.linux.networks import DeviceAddress
from parmig.units import MIB
from parmig.values import Path

GBIT = 125_000_000


def pair(here: int, there: int, speed: int = 0) -> DevicePair:
    return DevicePair(Path(f"10.0.{there}.2", f"10.0.{here}.1"), (here, there), speed)


pairs = st.dictionaries(st.tuples(st.integers(1, 5), st.integers(1, 5)), st.sampled_from([0, GBIT, 10 * GBIT])).map(
    lambda drawn: [pair(*devices, speed) for devices, speed in drawn.items()]
)


@given(pairs)
def test_every_device_that_reaches_another_is_used(pairs: list[DevicePair]) -> None:
    chosen = choose_pairs(pairs, len(pairs))
    assert set(chosen) <= set(pairs)
    for side in (0, 1):
        assert {one.devices[side] for one in chosen} == {one.devices[side] for one in pairs}


@given(pairs)
def test_there_are_no_more_pairs_than_devices(pairs: list[DevicePair]) -> None:
    chosen = choose_pairs(pairs, len(pairs))
    assert len(chosen) <= len({one.devices[0] for one in pairs}) + len({one.devices[1] for one in pairs})


@given(pairs, st.integers(0, 30))
def test_at_most_so_many_pairs_are_chosen(pairs: list[DevicePair], most: int) -> None:
    every = choose_pairs(pairs, len(pairs))
    assert choose_pairs(pairs, most) == every[:most]


def test_devices_that_all_reach_each_other_are_used_once_each() -> None:
    assert choose_pairs([pair(1, 1), pair(1, 2), pair(2, 1), pair(2, 2)], 9) == [pair(1, 1), pair(2, 2)]


def test_one_device_may_serve_two() -> None:
    assert choose_pairs([pair(1, 7), pair(2, 7)], 9) == [pair(1, 7), pair(2, 7)]


def test_a_fast_pair_comes_first() -> None:
    assert choose_pairs([pair(1, 1, GBIT), pair(2, 2, 10 * GBIT)], 1) == [pair(2, 2, 10 * GBIT)]


speeds = st.lists(st.sampled_from([0, GBIT, 2 * GBIT, 10 * GBIT]), min_size=1, max_size=6)


@given(speeds, st.integers(0, 58))
def test_each_path_has_a_worker_and_the_rest_follow_the_speeds(speeds: list[int], more: int) -> None:
    workers = len(speeds) + more
    paths = spread(speeds, workers)
    assert len(paths) == workers
    assert set(paths) == set(range(len(speeds)))
    known = [speed for speed in speeds if speed]
    weights = [speed or (sum(known) / len(known) if known else 1) for speed in speeds]
    share = [weight / (paths.count(path) + 1) for path, weight in enumerate(weights)]
    # Nobody would gain by one worker from another path.
    for path, weight in enumerate(weights):
        if paths.count(path) > 1:
            assert weight / paths.count(path) >= max(share) * 0.999


@given(st.integers(1, 6), st.integers(0, 20))
def test_equal_paths_take_turns(paths: int, more: int) -> None:
    assert spread([0] * paths, paths + more) == [worker % paths for worker in range(paths + more)]


def test_a_pair_is_as_fast_as_its_slower_device() -> None:
    here, there = DeviceAddress(3, "10.0.0.1", 10 * GBIT), DeviceAddress(5, "10.0.0.2", GBIT)
    assert pair_up(here, there) == DevicePair(Path("10.0.0.2", "10.0.0.1"), (3, 5), GBIT)
    assert pair_up(DeviceAddress(3, "10.0.0.1"), there).bytes_per_s == GBIT
    assert pair_up(DeviceAddress(3, "fd00::1"), DeviceAddress(4, "fd00::2")).path == Path("[fd00::2]", "[fd00::1]")
    assert pair_up(DeviceAddress(3, "10.0.0.1"), DeviceAddress(5, "10.0.0.2")).bytes_per_s == 0


def test_the_choice_is_described() -> None:
    chosen = ChosenPaths((Path("10.0.0.2", "10.0.0.1"), Path("10.1.0.2", rate_bytes_per_s=MIB)), (0, 1, 0))
    assert chosen.describe([10 * GBIT, 0]) == (
        "paths: 10.0.0.1-10.0.0.2 (2 workers, 10 Gbit/s); 10.1.0.2 (1 worker, at most 1 MiB/s)"
    )
    assert chosen.of(2) == Path("10.0.0.2", "10.0.0.1")
    assert ChosenPaths().of(5) is None


@pytest.mark.parametrize("workers", [1, 4])
def test_one_path_has_all_workers(workers: int) -> None:
    assert spread([GBIT], workers) == [0] * workers
