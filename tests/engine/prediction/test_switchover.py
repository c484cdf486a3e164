# SPDX-License-Identifier: Apache-2.0
"""When ``--switchover predicted`` pauses."""

from __future__ import annotations

import msgspec
from hypothesis import assume, given
from hypothesis import strategies as st

from parmig.engine.prediction.switchover import decide_predicted
from parmig.engine.work.policy import EXTRA_ROUNDS, Limits, RoundFacts, Verdict, decide, expected_downtime_ns
from parmig.ram.blocks import PAGE_BYTES
from parmig.units import MIB, NS_PER_MS, NS_PER_S

PAGES = 65536
LIMITS = Limits(300 * NS_PER_MS, predicted=True)


def rounds(*remaining: int, rate_mib: int = 100) -> list[RoundFacts]:
    """Rounds that left so many pages, over a network of this rate."""
    sent = [PAGES, *remaining[:-1]]
    return [
        RoundFacts(pages * PAGE_BYTES, max(1, pages * PAGE_BYTES * NS_PER_S // (rate_mib * MIB)), NS_PER_MS, left)
        for pages, left in zip(sent, remaining, strict=True)
    ]


def decided(facts: list[RoundFacts], limits: Limits = LIMITS, elapsed_ns: int = NS_PER_S) -> Verdict:
    """What is done after the last of *facts*."""
    return decide_predicted(facts, limits, elapsed_ns, PAGES)


def test_it_waits_while_rounds_become_much_smaller() -> None:
    assert decided(rounds(6000)) is Verdict.CONTINUE
    assert decided(rounds(6000, 600)) is Verdict.CONTINUE


def test_it_pauses_where_rounds_have_become_as_small_as_they_get() -> None:
    assert decided(rounds(8200, 5300, 5020, 5000)) is Verdict.PAUSE


def test_it_pauses_in_a_quiet_moment() -> None:
    facts = rounds(8200, 5300, 5020, 5000, 3000)

    assert decided(facts) is Verdict.PAUSE
    assert decide(facts, LIMITS, NS_PER_S) is Verdict.CONTINUE


def test_a_guest_that_outruns_the_network_need_not_stall_first() -> None:
    facts = rounds(40000, 38000, 37500)
    limits = msgspec.structs.replace(LIMITS, max_downtime_ns=3 * NS_PER_S)

    assert decided(facts, limits) is Verdict.PAUSE
    assert decide(facts, limits, NS_PER_S) is Verdict.CONTINUE


def test_one_that_only_needs_time_is_not_paused_for_longer_than_the_limit() -> None:
    limits = msgspec.structs.replace(LIMITS, max_downtime_ns=3 * NS_PER_S)

    assert decided(rounds(40000, 24000, 14000), limits) is Verdict.CONTINUE


def test_without_predicted_the_policy_decides() -> None:
    facts = rounds(8200, 5300, 5020, 5000, 3000)
    limits = msgspec.structs.replace(LIMITS, predicted=False)

    assert decided(facts, limits) is Verdict.CONTINUE


def test_the_users_word_and_the_time_limit_come_first() -> None:
    facts = rounds(40000)
    at_limit = msgspec.structs.replace(LIMITS, timeout_ns=NS_PER_S)

    assert decided(facts, msgspec.structs.replace(LIMITS, pause_now=True)) is Verdict.PAUSE
    assert decided(facts, at_limit) is Verdict.TIMEOUT
    assert decided(facts, msgspec.structs.replace(at_limit, pauses_at_timeout=True)) is Verdict.PAUSE


FACTS = st.builds(
    RoundFacts,
    sent_bytes=st.integers(0, PAGES * PAGE_BYTES),
    duration_ns=st.integers(1, 100 * NS_PER_S),
    scan_ns=st.integers(0, 100 * NS_PER_MS),
    remaining_pages=st.integers(0, PAGES),
)
SOME = st.lists(FACTS, min_size=1, max_size=20)


@given(SOME, st.integers(1, NS_PER_S), st.integers(0, 3 * NS_PER_S))
def test_a_pause_is_never_longer_than_allowed_and_nobody_gives_up_sooner(
    facts: list[RoundFacts], downtime_ns: int, max_downtime_ns: int
) -> None:
    limits = Limits(downtime_ns, max_downtime_ns, predicted=True)

    verdict = decided(facts, limits)

    if verdict is Verdict.PAUSE:
        assert expected_downtime_ns(facts) <= max(downtime_ns, max_downtime_ns)
    elif verdict is not Verdict.CONTINUE:
        assert verdict is decide(facts, limits, NS_PER_S)


@given(SOME, FACTS)
def test_a_guest_that_can_be_paused_is_paused_in_the_end(facts: list[RoundFacts], often: RoundFacts) -> None:
    limits = Limits(200 * NS_PER_S, predicted=True)
    facts += [often] * (2 * EXTRA_ROUNDS + 1)
    assume(all(expected_downtime_ns(facts[:end]) <= limits.downtime_ns for end in range(1, len(facts) + 1)))

    assert decided(facts, limits) is Verdict.PAUSE


@given(st.integers(65, 5000), st.integers(3, 8))
def test_rounds_of_the_same_size_are_not_waited_for(remaining: int, times: int) -> None:
    assert decided(rounds(*[remaining] * times)) is Verdict.PAUSE
