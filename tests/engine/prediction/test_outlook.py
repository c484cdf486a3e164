# SPDX-License-Identifier: Apache-2.0
"""What is expected of a migration that is under way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parmig.engine.prediction.costs import Costs
from parmig.engine.prediction.outlook import downtimes_ahead_ns, outlook
from parmig.engine.prediction.rounds import Rounds
from parmig.engine.prediction.setting import MemoryFacts, Setting, page_costs
from parmig.engine.prediction.working_set import working_set_of_pattern
from parmig.engine.work.policy import Limits, RoundFacts, Verdict, decide
from parmig.ram.blocks import PAGE_BYTES
from parmig.units import GIB, MIB, NS_PER_MS, NS_PER_S

PAGES = GIB // PAGE_BYTES
LIMITS = Limits(100 * NS_PER_MS)


def rounds_of(rate_mib: float, pattern: str = "random", network_mib: int = 200) -> Rounds:
    """The first round of a guest of 1 GiB that writes so much."""
    setting = Setting(limits=LIMITS, rate_bytes_per_s=network_mib * MIB)
    pages = page_costs(MemoryFacts(PAGES, PAGES), setting, Costs())
    rounds = Rounds(working_set_of_pattern(pattern, rate_mib * MIB, PAGES).curve, pages, Costs().count_s)
    rounds.first(PAGES, 0)
    return rounds


@pytest.mark.parametrize(("rate_mib", "pattern"), [(20, "random"), (80, "random"), (80, "sequential"), (100, "hot")])
def test_after_two_rounds_the_time_left_is_known_to_a_third(rate_mib: float, pattern: str) -> None:
    rounds = rounds_of(rate_mib, pattern)
    rounds.next(0)
    began_s = rounds.elapsed_s
    expected = outlook(rounds.facts, LIMITS, PAGES, began_s)
    while decide(rounds.facts, LIMITS, 0) is Verdict.CONTINUE:
        rounds.next(0)

    assert expected.converges
    assert expected.round_s + expected.after_s == pytest.approx(rounds.elapsed_s - began_s, rel=0.33, abs=0.05)


def test_a_guest_that_outruns_the_network_is_seen_after_two_rounds() -> None:
    rounds = rounds_of(400)
    rounds.next(0)

    assert not outlook(rounds.facts, LIMITS, PAGES, rounds.elapsed_s).converges


def test_a_guest_that_can_be_paused_now_has_no_rounds_left() -> None:
    expected = outlook([RoundFacts(GIB, NS_PER_S, NS_PER_MS, 10)], LIMITS, PAGES, 1.0)

    assert (expected.converges, expected.rounds, expected.round_s, expected.after_s) == (True, 0, 0.0, 0.0)


@given(
    st.lists(
        st.builds(
            RoundFacts,
            sent_bytes=st.integers(0, GIB),
            duration_ns=st.integers(1, 100 * NS_PER_S),
            scan_ns=st.integers(0, NS_PER_S),
            remaining_pages=st.integers(0, PAGES),
            throttle_percent=st.integers(0, 99),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_whatever_the_rounds_were_there_is_an_outlook(facts: list[RoundFacts]) -> None:
    expected = outlook(facts, LIMITS, PAGES, 1.0)

    assert expected.round_s >= 0
    assert expected.after_s >= 0
    assert all(downtime_ns >= 0 for downtime_ns in downtimes_ahead_ns(facts, PAGES, 3))
