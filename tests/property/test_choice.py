# SPDX-License-Identifier: Apache-2.0
"""The choice of ``--compress auto``, played against a link and codecs of any speed."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parmig.ram.codecs.choice import CALM_BATCHES, CLEARLY, FAST_NS_PER_BYTE, MEASURING_SHARE, Choice, Plan, Sample
from parmig.units import KIB, MIB, NS_PER_MS

BATCH = 4 * MIB
SAMPLE = 64 * KIB


@dataclass
class Channel:
    """A channel that is paced by its link, and codecs with a cost in ns a byte and a ratio each."""

    link: float
    codecs: dict[int, tuple[float, float]]
    choice: Choice = field(default_factory=Choice)
    now_ns: int = 1
    link_free_ns: int = 0
    measuring_ns: float = 0.0
    used: list[int] = field(default_factory=list)
    plans: list[Plan] = field(default_factory=list)

    def send(self, raw_bytes: int = BATCH, *, known: bool = False) -> int:
        """One batch; the channel holds one more than the one on the link."""
        plan = self.choice.plan(raw_bytes, self.now_ns, known=known)
        codec = self.choice.before(known=known) if plan is Plan.AS_BEFORE else 0
        if plan is Plan.SAMPLE:
            samples = [
                Sample(number, round(cost * SAMPLE), SAMPLE, round(ratio * SAMPLE))
                for number, (cost, ratio) in self.codecs.items()
                if ratio < 1
            ]
            spent_ns = sum(round(cost * SAMPLE) for cost, _ in self.codecs.values())
            self.now_ns += spent_ns
            self.measuring_ns += spent_ns
            codec = self.choice.sampled(samples, spent_ns, self.now_ns, known=known)
        cost, ratio = self.codecs[codec] if codec else (0.05, 1.0)
        self.now_ns += round(cost * raw_bytes)
        wire_bytes = max(1, round(ratio * raw_bytes))
        waited_ns = max(0, self.link_free_ns - self.now_ns)
        self.now_ns += waited_ns
        took_ns = round(wire_bytes * self.link)
        self.link_free_ns = self.now_ns + took_ns
        self.choice.passed(codec, wire_bytes, waited_ns, self.now_ns)
        if plan is Plan.TRIAL:
            self.choice.begin_trial()
        elif plan is Plan.MEASURE:
            self.now_ns = self.link_free_ns
            self.choice.end_trial(wire_bytes, took_ns, self.now_ns)
        if plan in (Plan.TRIAL, Plan.MEASURE):
            self.measuring_ns += took_ns
        self.used.append(codec)
        self.plans.append(plan)
        return codec


costs = st.floats(0.05, 20)
codecs = st.dictionaries(st.integers(1, 3), st.tuples(costs, st.floats(0.001, 1.01)), max_size=3)


@given(link=st.floats(0.1, 300), table=codecs, sizes=st.lists(st.integers(4096, BATCH), max_size=60))
def test_a_codec_is_used_only_if_it_clearly_saves_time(
    link: float, table: dict[int, tuple[float, float]], sizes: list[int]
) -> None:
    channel = Channel(link, table)
    for size in sizes:
        channel.send(size)
    for codec in set(channel.used) - {0}:
        cost, ratio = table[codec]
        # The link is never believed to be slower than the slowest that was seen: here it is the same all the time.
        assert cost + ratio * link < CLEARLY * link * 1.15 + 0.1


@given(link=st.floats(1.1 * FAST_NS_PER_BYTE, 300), table=codecs)
def test_the_best_codec_is_found_after_a_few_batches(link: float, table: dict[int, tuple[float, float]]) -> None:
    channel = Channel(link, table)
    for _ in range(12):
        channel.send()
    worth = {
        number: max(cost, ratio * link)
        for number, (cost, ratio) in table.items()
        if ratio < 1 and cost + ratio * link < 0.8 * CLEARLY * link
    }
    chosen = channel.used[-1]
    if worth:
        assert chosen
        cost, ratio = table[chosen]
        assert max(cost, ratio * link) <= 1.25 * min(worth.values())


@given(link=st.floats(0.1, 300), table=codecs, known=st.booleans())
def test_measuring_takes_a_small_share_of_the_time(
    link: float, table: dict[int, tuple[float, float]], known: bool
) -> None:
    channel = Channel(link, table)
    for _ in range(4):
        channel.send(known=known)
    began_ns, before_ns = channel.now_ns, channel.measuring_ns
    for _ in range(1000):
        channel.send(known=known)
    assert channel.measuring_ns - before_ns <= 0.05 * (channel.now_ns - began_ns) + 2 * BATCH * link * 1.2


def test_pages_go_as_they_are_over_a_link_that_keeps_up() -> None:
    channel = Channel(0.01, {1: (0.5, 0.1)})
    for _ in range(200):
        channel.send()
    assert set(channel.used) == {0}
    assert channel.plans[-1] is Plan.AS_IS
    assert not channel.choice.is_slow


def test_a_link_that_becomes_slow_is_noticed() -> None:
    channel = Channel(0.01, {1: (0.5, 0.1)})
    for _ in range(2 * CALM_BATCHES):
        channel.send()
    channel.link = 20.0
    for _ in range(20):
        channel.send()
    assert channel.used[-1] == 1
    assert channel.choice.is_slow


def test_a_link_that_becomes_fast_is_noticed() -> None:
    channel = Channel(20.0, {1: (2.0, 0.5)})
    for _ in range(10):
        channel.send()
    assert channel.used[-1] == 1
    channel.link = 0.1
    for _ in range(20 * MEASURING_SHARE):
        channel.send()
    assert channel.used[-1] == 0


def test_known_pages_are_judged_apart() -> None:
    channel = Channel(20.0, {1: (1.0, 1.01)})
    for _ in range(5):
        channel.send()
    channel.codecs = {3: (1.0, 0.01)}
    assert [channel.send(known=True) for _ in range(3)] == [3, 3, 3]
    channel.codecs = {1: (1.0, 1.01)}
    assert channel.send() == 0
    assert channel.choice.before(known=True) == 3


def test_a_short_round_has_no_trial() -> None:
    channel = Channel(20.0, {1: (1.0, 0.5)})
    for _ in range(10):
        channel.send()
    channel.now_ns += 10_000_000 * NS_PER_MS
    channel.choice.fenced(channel.now_ns)
    before = len(channel.plans)
    for _ in range(5):
        channel.send()
    assert not {Plan.TRIAL, Plan.MEASURE} & set(channel.plans[before:])


@pytest.mark.parametrize("known", [False, True])
def test_small_batches_are_not_measured(known: bool) -> None:
    channel = Channel(20.0, {1: (1.0, 0.5)})
    for _ in range(20):
        assert channel.send(64 * KIB, known=known) == 0
    assert set(channel.plans) == {Plan.AS_BEFORE}


def test_batches_before_and_in_a_trial_do_not_make_the_link_look_calm() -> None:
    choice = Choice()
    for now_ns in range(CALM_BATCHES):
        choice.passed(0, 4096, 0, now_ns)
    assert choice.plan(BATCH, 100, known=False) is Plan.TRIAL
    for now_ns in range(CALM_BATCHES):
        choice.passed(0, BATCH, 0, 100 + now_ns)
    choice.begin_trial()
    choice.end_trial(BATCH, 20 * BATCH, 200)
    assert choice.plan(BATCH, 300, known=False) is Plan.SAMPLE


def test_a_link_that_became_fast_has_no_more_trials() -> None:
    channel = Channel(20.0, {1: (2.0, 0.5)})
    for _ in range(10):
        channel.send()
    channel.link = 0.1
    for _ in range(20 * MEASURING_SHARE):
        channel.send()
    trials = channel.plans.count(Plan.TRIAL)
    for _ in range(20 * MEASURING_SHARE):
        channel.send()
    assert channel.plans.count(Plan.TRIAL) == trials
