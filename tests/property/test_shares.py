# SPDX-License-Identifier: Apache-2.0
"""Whoever asks in whatever order: each region is handed out once a round."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parmig.engine.work.shares import (
    ALONE_DIRTY_PAGES,
    ALONE_PAGES,
    STICKY_PART,
    WHOLE_PAGES,
    Shares,
    assign,
    shares_of_round,
)


def lists(owned: Sequence[Sequence[int]]) -> list[list[int]]:
    """The same as lists, which can be compared."""
    return [list(regions) for regions in owned]


weights = st.lists(st.integers(1, 64), max_size=80)
workers = st.integers(1, 9)


@given(weights, workers)
def test_each_region_has_one_owner_and_owners_hold_stretches(weights: list[int], workers: int) -> None:
    owned = assign(weights, workers)
    assert len(owned) == workers
    assert [region for regions in owned for region in regions] == list(range(len(weights)))


@given(weights, workers)
def test_no_owner_has_more_than_its_part_and_a_region(weights: list[int], workers: int) -> None:
    part = sum(weights) / workers
    for regions in assign(weights, workers):
        assert sum(weights[region] for region in regions) <= part + max(weights, default=0)


@given(st.integers(1, 400), workers)
def test_equal_regions_are_spread_evenly(count: int, workers: int) -> None:
    sizes = [len(regions) for regions in assign([512] * count, workers)]
    assert max(sizes) - min(sizes) <= 1


def test_regions_without_weight_still_have_an_owner() -> None:
    assert lists(assign([0, 0, 0], 2)) == [[0, 1, 2], []]
    assert lists(assign([], 3)) == [[], [], []]


@given(weights, workers, st.booleans(), st.booleans(), st.randoms(use_true_random=False))
def test_each_region_is_handed_out_once(
    weights: list[int], workers: int, whole: bool, sticky: bool, random: object
) -> None:
    owned = assign(weights, workers)
    owner = {region: worker for worker, regions in enumerate(owned) for region in regions}
    shares = Shares(owned, whole=whole, sticky=sticky)
    taken: list[tuple[int, tuple[int, ...]]] = []
    active = list(range(workers))
    while active:
        worker = random.choice(active)  # type: ignore[attr-defined]
        bundle = shares.take(worker)
        if bundle:
            taken.append((worker, bundle))
        else:
            active.remove(worker)
            assert sticky or all(shares.take(other) == () for other in range(workers))
    assert sorted(region for _, bundle in taken for region in bundle) == list(range(len(weights)))
    assert all(shares.take(worker) == () for worker in range(workers))
    foreign = [
        sum(owner[region] != worker for who, bundle in taken if who == worker for region in bundle)
        for worker in range(workers)
    ]
    assert shares.stolen == foreign
    assert [[region for who, bundle in taken if who == worker for region in bundle] for worker in range(workers)] == (
        shares.taken
    )
    if sticky:
        assert all(
            sum(owner[region] == worker for region in shares.taken[worker]) >= len(regions) // STICKY_PART
            for worker, regions in enumerate(owned)
        )
    assert all(list(bundle) == sorted(bundle) for _, bundle in taken)


@given(st.integers(2, 200))
def test_an_idle_worker_takes_from_the_far_end_of_whoever_has_most_left(count: int) -> None:
    shares = Shares([[], [1000], list(range(count))])
    bundle = shares.take(0)
    assert bundle == tuple(range(count - len(bundle), count))
    assert 1 <= len(bundle) <= max(1, count // 8)


@given(st.integers(1, 200))
def test_whole_shares_are_handed_out_at_once(count: int) -> None:
    shares = Shares([list(range(count)), [count]], whole=True)
    assert shares.take(0) == tuple(range(count))
    assert shares.take(0) == (count,)
    assert shares.stolen == [1, 0]


@given(st.integers(1, 500))
def test_bundles_shrink_towards_the_end(count: int) -> None:
    shares = Shares([list(range(count))])
    sizes = []
    while bundle := shares.take(0):
        sizes.append(len(bundle))
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] <= max(1, count // 4)
    assert sizes[-1] == 1


def test_the_middle_of_a_region_decides_whose_it_is() -> None:
    assert lists(assign([1, 1], 2)) == [[0], [1]]
    assert lists(assign([1, 0], 2)) == [
        [],
        [0, 1],
    ]  # nothing lies behind the end of all weight, and somebody must have it
    assert lists(assign([1, 2, 1], 2)) == [[0], [1, 2]]


@given(st.integers(1, 200))
def test_an_eighth_of_what_is_left_is_taken_over_at_a_time(count: int) -> None:
    assert len(Shares([[], list(range(count))]).take(0)) == max(1, count // 8)


@pytest.mark.parametrize(
    ("dirty_pages", "total_pages", "paused", "alone"),
    [
        (ALONE_DIRTY_PAGES, ALONE_PAGES, True, True),
        (ALONE_DIRTY_PAGES + 1, ALONE_PAGES, True, False),
        (ALONE_DIRTY_PAGES, ALONE_PAGES + 1, True, False),
        (0, ALONE_PAGES, False, False),
    ],
)
def test_one_worker_does_a_round_of_the_pause_in_which_there_is_little_to_do(
    dirty_pages: int, total_pages: int, paused: bool, alone: bool
) -> None:
    shares = shares_of_round([[0], [1, 2], [3]], dirty_pages, total_pages, paused=paused)
    assert shares.workers == range(1 if alone else 3)
    assert shares.whole
    assert shares.take(0) == ((0, 1, 2, 3) if alone else (0,))
    assert shares.stolen == [0, 0, 0]


def taken_over(shares: Shares) -> int:
    """How many regions worker 1 takes over while worker 0 does nothing."""
    while shares.take(1):
        pass
    return shares.stolen[1]


@given(st.integers(1, 200))
def test_an_owner_that_remembers_its_regions_keeps_a_quarter_of_them(count: int) -> None:
    owned = [list(range(count)), []]
    kept = count // STICKY_PART
    many = {"dirty_pages": 10 * WHOLE_PAGES, "total_pages": 20 * WHOLE_PAGES, "paused": False}
    assert taken_over(Shares(owned)) == taken_over(shares_of_round(owned, **many)) == count
    assert taken_over(Shares(owned, sticky=True)) == count - kept
    assert taken_over(shares_of_round(owned, **many, sticky=True)) == count - kept


@pytest.mark.parametrize("paused", [False, True])
def test_many_dirty_pages_are_handed_out_in_bundles(paused: bool) -> None:
    assert shares_of_round([[0], [1]], WHOLE_PAGES, 4 * WHOLE_PAGES, paused=paused).whole
    assert not shares_of_round([[0], [1]], WHOLE_PAGES + 1, 4 * WHOLE_PAGES, paused=paused).whole


@given(st.integers(1, 6), st.integers(1, 40), st.integers(0, 2 * WHOLE_PAGES), st.sampled_from([512, ALONE_PAGES]))
def test_after_a_final_round_that_was_handed_out_whole_each_worker_gets_the_same_regions_again(
    workers: int, regions: int, dirty_pages: int, pages: int
) -> None:
    owned = assign([pages] * regions, workers)
    rounds = [
        shares_of_round(owned, dirty_pages, regions * pages, paused=True, rescan=rescan) for rescan in (False, True)
    ]
    assert rounds[1].whole
    if rounds[0].whole:
        taken = [[shares.take(worker) for worker in shares.workers] for shares in rounds]
        assert taken[0] == taken[1]
