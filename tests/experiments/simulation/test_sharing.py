# SPDX-License-Identifier: Apache-2.0
"""How flows share: small cases by hand, and what always holds."""

from __future__ import annotations

import math

import pytest
import simpy
from hypothesis import given
from hypothesis import strategies as st

from parmig.experiments.simulation.flows import Flows
from parmig.experiments.simulation.sharing import FlowKind, Resource, Share, fair_shares, locked_bytes_per_s

LINK = Resource("link", "links", 100.0)
OTHER = Resource("other link", "links", 30.0)


def kind(*resources: int, most: float = math.inf, need: float = 1.0, lock: int = -1) -> FlowKind:
    return FlowKind(tuple((number, need) for number in resources), most, "a worker", lock)


def test_flows_share_a_link_alike() -> None:
    assert fair_shares([kind(0)], [4], [LINK]) == [Share(25.0, "links")]


def test_a_slow_flow_leaves_its_rest_to_the_others() -> None:
    shares = fair_shares([kind(0, most=10.0), kind(0)], [3, 1], [LINK])
    assert shares == [Share(10.0, "a worker"), Share(70.0, "links")]


def test_a_flow_is_as_fast_as_the_slower_of_its_links() -> None:
    shares = fair_shares([kind(0, 1), kind(0)], [1, 1], [LINK, OTHER])
    assert [share.bytes_per_s for share in shares] == [30.0, 70.0]


def test_a_kind_without_flows_takes_nothing() -> None:
    assert [share.bytes_per_s for share in fair_shares([kind(0), kind(0)], [0, 1], [LINK])] == [0.0, 100.0]


def test_a_lock_is_shared_with_less_and_less_gain() -> None:
    # Alone 10 bytes a second, 0.05 s of 0.1 s with the lock: 20 bytes a second at most.
    rates = [locked_bytes_per_s(workers, 0.05, 0.05) for workers in (1, 2, 3, 1000)]
    assert rates[:3] == pytest.approx([10.0, 16.0, 18.75])
    assert rates[3] == pytest.approx(20.0, rel=1e-2)
    lock = Resource("lock", "locks", 1.0)
    (share,) = fair_shares([kind(0, most=10.0, need=0.05, lock=0)], [2], [lock])
    assert share.bytes_per_s == pytest.approx(8.0)
    assert share.limit == "locks"


kinds = st.builds(
    lambda numbers, most, need: kind(*numbers, most=most, need=need),
    st.sets(st.integers(0, 2), min_size=1),
    st.floats(1.0, 1e3),
    st.floats(0.1, 10.0),
)


@given(
    st.lists(st.tuples(kinds, st.integers(0, 5)), min_size=1, max_size=5),
    st.lists(st.floats(1.0, 1e3), min_size=3, max_size=3),
)
def test_no_resource_is_used_up_twice_and_each_flow_has_a_limit(
    given_kinds: list[tuple[FlowKind, int]], capacities: list[float]
) -> None:
    resources = [Resource(str(number), str(number), capacity) for number, capacity in enumerate(capacities)]
    counts = [count for _, count in given_kinds]
    shares = fair_shares([each for each, _ in given_kinds], counts, resources)
    used = [0.0, 0.0, 0.0]
    for (each, count), share in zip(given_kinds, shares, strict=True):
        for number, need in each.needs:
            used[number] += count * share.bytes_per_s * need
    assert all(amount <= capacity * (1 + 1e-9) for amount, capacity in zip(used, capacities, strict=True))
    for (each, count), share in zip(given_kinds, shares, strict=True):
        full = any(used[number] >= capacities[number] * (1 - 1e-9) for number, _ in each.needs)
        assert not count or full or share.bytes_per_s == pytest.approx(each.most_bytes_per_s)


def test_flows_that_begin_later_slow_down_those_before() -> None:
    env = simpy.Environment()
    flows = Flows(env, [LINK])
    number = flows.add_kind(kind(0), "a guest")
    ends: dict[str, float] = {}

    def run(name: str, begin_s: float, size: float) -> simpy.events.ProcessGenerator:
        yield env.timeout(begin_s)
        yield flows.carry(number, size).done
        ends[name] = env.now

    env.process(run("first", 0.0, 400.0))
    env.process(run("second", 2.0, 100.0))
    env.run()
    # 200 bytes alone until 2 s; then 50 a second each, until the second one ends at 4 s; 100 bytes are left.
    assert ends == pytest.approx({"first": 5.0, "second": 4.0}, abs=0.05)
    assert flows.used_s() == pytest.approx({0: 5.0}, abs=0.05)
    assert flows.limited_s["a guest"] == pytest.approx({"links": 5.0}, abs=0.05)
