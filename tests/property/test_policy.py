# SPDX-License-Identifier: Apache-2.0
"""What policy decides on histories made for the purpose."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import cycle, pairwise

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from parmig.engine.work import policy
from parmig.engine.work.policy import (
    FEW_PAGES,
    Limits,
    RoundFacts,
    ThrottleSteps,
    Verdict,
    decide,
    expected_downtime_ns,
    next_throttle_percent,
)
from parmig.ram.blocks import PAGE_BYTES
from parmig.units import GIB, NS_PER_MS, NS_PER_S

LIMIT = Limits(300 * NS_PER_MS)
RATE_BYTES_PER_S = GIB


def sent(pages: int, remaining: int) -> RoundFacts:
    """A round that sent *pages* at 1 GiB/s."""
    return RoundFacts(pages * PAGE_BYTES, pages * PAGE_BYTES * NS_PER_S // RATE_BYTES_PER_S, 0, remaining)


def history(*pages: int) -> list[RoundFacts]:
    """Rounds that each send what the one before left; the last number remains."""
    return [sent(before, after) for before, after in pairwise(pages)]


WITHIN = RATE_BYTES_PER_S // PAGE_BYTES * 3 // 10
"""Pages that 300 ms carry."""


def run(
    remaining_after: list[int], limits: Limits = LIMIT, start: int = 10 * WITHIN
) -> tuple[Verdict, list[RoundFacts]]:
    """Decide round by round until something else than CONTINUE comes out."""
    rounds: list[RoundFacts] = []
    before = start
    for remaining in remaining_after:
        rounds.append(sent(before, remaining))
        verdict = decide(rounds, limits, sum(facts.duration_ns for facts in rounds))
        if verdict is not Verdict.CONTINUE:
            return verdict, rounds
        before = remaining
    return Verdict.CONTINUE, rounds


facts = st.builds(
    RoundFacts, st.integers(0, 1 << 44), st.integers(0, 1 << 44), st.integers(0, 1 << 34), st.integers(0, 1 << 32)
)
limits = st.builds(Limits, st.integers(1, 1 << 40), st.integers(0, 1 << 42), st.integers(0, 1 << 42))


@given(st.lists(facts, min_size=1, max_size=30), limits, st.integers(0, 1 << 44))
def test_no_history_pauses_beyond_what_was_allowed(rounds: list[RoundFacts], limits: Limits, elapsed_ns: int) -> None:
    verdict = decide(rounds, limits, elapsed_ns)
    expected = expected_downtime_ns(rounds)
    if verdict is Verdict.PAUSE:
        assert expected <= max(limits.downtime_ns, limits.max_downtime_ns)
    elif verdict is Verdict.TIMEOUT:
        assert limits.timeout_ns
        assert elapsed_ns >= limits.timeout_ns
    elif verdict is Verdict.STALLED:
        assert expected > limits.downtime_ns
        assert len(rounds) > policy.STALL_ROUNDS
    else:
        assert expected > limits.downtime_ns or rounds[-1].remaining_pages > FEW_PAGES


@given(st.floats(0.05, 0.9), st.integers(WITHIN, 1000 * WITHIN))
def test_a_guest_that_shrinks_is_paused_within_the_limit(factor: float, start: int) -> None:
    verdict, rounds = run([int(start * factor**n) for n in range(1, 200)], start=start)
    assert verdict is Verdict.PAUSE
    assert expected_downtime_ns(rounds) <= LIMIT.downtime_ns


@given(st.integers(0, FEW_PAGES))
def test_few_pages_are_not_worth_another_round(remaining: int) -> None:
    assert decide(history(100_000, remaining), LIMIT, 0) is Verdict.PAUSE


def test_a_pause_that_is_short_enough_still_shrinks_while_it_pays() -> None:
    assert decide(history(10 * WITHIN, WITHIN, WITHIN // 2), LIMIT, 0) is Verdict.CONTINUE
    assert decide(history(10 * WITHIN, WITHIN, WITHIN * 4 // 5), LIMIT, 0) is Verdict.PAUSE


def test_rounds_beyond_the_first_that_would_do_are_limited() -> None:
    halving = [WITHIN * 1000 // 2**n for n in range(1, 40)]
    verdict, rounds = run(halving, limits=Limits(10**15), start=WITHIN * 1000)
    assert verdict is Verdict.PAUSE
    assert len(rounds) == policy.EXTRA_ROUNDS + 1


def test_a_guest_without_memory_pauses_at_once() -> None:
    assert decide([RoundFacts(0, 0, 0, 0)], LIMIT, 0) is Verdict.PAUSE
    assert decide([RoundFacts(0, 1000, 1000, 0)], LIMIT, 0) is Verdict.PAUSE


def test_a_guest_that_was_empty_and_then_wrote_much_gets_another_round() -> None:
    assert decide([RoundFacts(0, 1000, 1000, 100 * WITHIN)], LIMIT, 0) is Verdict.CONTINUE


@given(st.integers(2 * WITHIN, 100 * WITHIN))
def test_a_hopeless_guest_is_stalled_after_the_agreed_rounds(remaining: int) -> None:
    verdict, rounds = run([remaining] * 50, start=remaining)
    assert verdict is Verdict.STALLED
    assert len(rounds) == policy.STALL_ROUNDS + 1


@given(st.integers(2 * WITHIN, 9 * WITHIN))
def test_a_hopeless_guest_pauses_when_the_longer_pause_suffices(remaining: int) -> None:
    longer = Limits(LIMIT.downtime_ns, 10 * LIMIT.downtime_ns)
    verdict, rounds = run([remaining] * 50, longer, start=remaining)
    assert verdict is Verdict.PAUSE
    assert LIMIT.downtime_ns < expected_downtime_ns(rounds) <= longer.max_downtime_ns


@given(st.permutations([2, 3, 4, 6, 8]).flatmap(lambda order: st.just([one * WITHIN for one in order] * 10)))
def test_the_longer_pause_comes_at_a_local_minimum(waves: list[int]) -> None:
    verdict, rounds = run(waves, Limits(LIMIT.downtime_ns, 10 * LIMIT.downtime_ns), start=9 * WITHIN)
    assert verdict is Verdict.PAUSE
    lately = [one.remaining_pages for one in rounds[-2 * policy.STALL_ROUNDS :]]
    assert rounds[-1].remaining_pages <= policy.LOCAL_MINIMUM * min(lately)


def test_a_guest_too_fast_for_the_longer_pause_is_stalled_in_the_end() -> None:
    verdict, rounds = run([50 * WITHIN] * 50, Limits(LIMIT.downtime_ns, 10 * LIMIT.downtime_ns), start=50 * WITHIN)
    assert verdict is Verdict.STALLED
    assert len(rounds) == 4 * policy.STALL_ROUNDS


@given(st.integers(1, 1 << 40), st.integers(0, 1 << 40))
def test_the_time_limit_ends_what_cannot_pause_yet(timeout_ns: int, elapsed_ns: int) -> None:
    limited = Limits(LIMIT.downtime_ns, 0, timeout_ns)
    verdict = decide(history(10 * WITHIN, 5 * WITHIN), limited, elapsed_ns)
    assert verdict is (Verdict.TIMEOUT if elapsed_ns >= timeout_ns else Verdict.CONTINUE)
    assert decide(history(10 * WITHIN, 0), limited, elapsed_ns) is Verdict.PAUSE


def test_without_a_time_limit_none_is_kept() -> None:
    assert decide(history(10 * WITHIN, 5 * WITHIN), LIMIT, 1 << 60) is Verdict.CONTINUE


@given(st.integers(16 * FEW_PAGES, 1 << 22), st.integers(1, 16 * FEW_PAGES - 1))
def test_a_round_of_few_pages_does_not_measure_the_network(much: int, few: int) -> None:
    slow = RoundFacts(few * PAGE_BYTES, 10**15, 0, 1)
    assert policy.bandwidth_bytes_per_s([sent(much, few), slow]) == pytest.approx(RATE_BYTES_PER_S, rel=1e-3)


@given(st.lists(facts, min_size=1, max_size=10))
def test_both_scans_are_part_of_the_expected_pause(rounds: list[RoundFacts]) -> None:
    assert expected_downtime_ns(rounds) >= 2 * rounds[-1].scan_ns


@given(st.integers(16 * FEW_PAGES, 1 << 22), st.integers(0, 1 << 34), st.integers(0, 1 << 20))
def test_the_scan_of_a_round_is_no_part_of_the_rate_of_its_pages(pages: int, scan_ns: int, remaining: int) -> None:
    quick = sent(pages, remaining)
    scanned = RoundFacts(quick.sent_bytes, quick.duration_ns + scan_ns, scan_ns, remaining)
    assert expected_downtime_ns([scanned]) == pytest.approx(2 * scan_ns + expected_downtime_ns([quick]))


STEPS = ThrottleSteps(20, 10, 99)
THROTTLING = Limits(LIMIT.downtime_ns, throttle=STEPS)
TOTAL = 10 * WITHIN


def throttled(dirtied: Callable[[int, int], int], limits: Limits = THROTTLING) -> tuple[Verdict, list[RoundFacts]]:
    """Go on to the end with a guest that dirties ``dirtied(percent, sent)`` pages in a round; look at each step."""
    rounds: list[RoundFacts] = []
    percent, before = 0, TOTAL
    while True:
        facts = sent(before, dirtied(percent, before))
        rounds.append(msgspec.structs.replace(facts, throttle_percent=percent))
        verdict = decide(rounds, limits, 0)
        if verdict is not Verdict.CONTINUE:
            return verdict, rounds
        following = next_throttle_percent(rounds, limits)
        assert percent <= following <= 99
        percent, before = following, rounds[-1].remaining_pages
        assert len(rounds) < 1000, "it does not end"


steps = st.tuples(st.integers(1, 99), st.integers(1, 99), st.integers(1, 99)).map(
    lambda three: ThrottleSteps(min(three[0], three[2]), three[1], max(three[0], three[2]))
)


@given(st.floats(1.0, 49.0))
def test_a_guest_that_outruns_the_network_converges_with_no_more_throttle_than_it_takes(ratio: float) -> None:
    def dirtied(percent: int, before: int) -> int:
        return min(TOTAL, int(before * ratio * (100 - percent) / 100))

    assert throttled(dirtied, LIMIT)[0] is Verdict.STALLED
    verdict, rounds = throttled(dirtied)
    assert verdict is Verdict.PAUSE
    assert expected_downtime_ns(rounds) <= LIMIT.downtime_ns
    *_, before_last, last = sorted({one.throttle_percent for one in rounds})
    assert last <= 99
    assert ratio * (100 - before_last) / 100 > policy.THROTTLE_TRIGGER


@given(steps, st.integers(TOTAL // 2 + 1, TOTAL))
def test_a_hopeless_guest_is_stalled_only_after_enough_rounds_at_the_last_step(
    steps: ThrottleSteps, remaining: int
) -> None:
    verdict, rounds = throttled(lambda *_: remaining, Limits(LIMIT.downtime_ns, throttle=steps))
    assert verdict is Verdict.STALLED
    assert [one.throttle_percent for one in rounds] == [
        *[0] * policy.THROTTLE_ROUNDS,
        *range(steps.initial_percent, steps.max_percent, steps.increment_percent),
        *[steps.max_percent] * (policy.STALL_ROUNDS + 1),
    ]


@given(steps, st.randoms(use_true_random=False))
def test_whatever_a_guest_does_throttling_comes_to_an_end(steps: ThrottleSteps, random: random.Random) -> None:
    verdict, rounds = throttled(lambda *_: random.randrange(TOTAL), Limits(LIMIT.downtime_ns, throttle=steps))
    assert verdict is Verdict.PAUSE or rounds[-1].throttle_percent == steps.max_percent


def test_a_guest_that_writes_in_bursts_is_slowed_down_when_it_is_stalled() -> None:
    waves = cycle([8 * WITHIN, 3 * WITHIN])
    verdict, rounds = throttled(lambda *_: next(waves))
    assert [one.throttle_percent for one in rounds[:7]] == [0, 0, 0, 0, 0, 0, 20]
    assert verdict is Verdict.STALLED
    assert rounds[-1].throttle_percent == 99


def test_one_round_of_many_writes_is_no_reason_to_throttle() -> None:
    assert next_throttle_percent(history(TOTAL, TOTAL), THROTTLING) == 0
    assert next_throttle_percent(history(TOTAL, TOTAL * 2 // 5, TOTAL * 2 // 5), THROTTLING) == 0
    assert next_throttle_percent(history(TOTAL, TOTAL, TOTAL), THROTTLING) == 20
    assert next_throttle_percent(history(TOTAL, TOTAL, TOTAL), LIMIT) == 0


@given(st.integers(0, 99), st.lists(st.integers(1, WITHIN), min_size=2, max_size=20))
def test_a_guest_that_could_be_paused_is_not_slowed_down_further(percent: int, remaining: list[int]) -> None:
    rounds = [msgspec.structs.replace(one, throttle_percent=percent) for one in history(*remaining)]
    assume(expected_downtime_ns(rounds) <= LIMIT.downtime_ns)
    assert next_throttle_percent(rounds, THROTTLING) == percent


def test_the_longer_pause_is_for_after_the_last_step() -> None:
    limits = Limits(LIMIT.downtime_ns, 10 * LIMIT.downtime_ns, throttle=STEPS)
    verdict, rounds = throttled(lambda *_: 5 * WITHIN, limits)
    assert verdict is Verdict.PAUSE
    assert rounds[-1].throttle_percent == 99


@given(st.lists(st.integers(1, 10**6), min_size=policy.STALL_ROUNDS + 1, max_size=20))
def test_a_new_minimum_is_no_stall(remaining: list[int]) -> None:
    rounds = history(10**6, *remaining, int(min(remaining) * 0.9))
    assert not policy.is_stalled(rounds)


def exact(*remaining: int, percent: int = 0) -> list[RoundFacts]:
    """Rounds at 1 byte a nanosecond: a page that remains is 4096 ns of pause."""
    return [RoundFacts(GIB, GIB, 0, pages, percent) for pages in remaining]


def pages_ns(pages: int) -> int:
    return pages * PAGE_BYTES


def test_a_pause_of_exactly_the_limit_is_within_it() -> None:
    assert decide(exact(1000, 1000), Limits(pages_ns(1000)), 0) is Verdict.PAUSE
    assert decide(exact(1000, 1000), Limits(pages_ns(1000) - 1), 0) is Verdict.CONTINUE


def test_a_longer_pause_of_exactly_what_is_allowed_comes_at_the_minimum_of_the_last_rounds() -> None:
    stalled = exact(*[100] * 4, *[200] * 9)  # the minimum of the rounds before is too long ago
    assert decide(stalled, Limits(1, pages_ns(200)), 0) is Verdict.PAUSE
    assert decide(stalled, Limits(1, pages_ns(200) - 1), 0) is Verdict.CONTINUE


def test_a_tenth_above_the_minimum_is_near_enough_and_more_is_not() -> None:
    assert decide(exact(1000, *[1100] * 6), Limits(1, GIB), 0) is Verdict.PAUSE
    assert decide(exact(1000, *[1101] * 6), Limits(1, GIB), 0) is Verdict.CONTINUE


def test_another_round_is_worth_it_below_three_quarters_of_the_one_before() -> None:
    assert decide(exact(1000, 749), Limits(GIB), 0) is Verdict.CONTINUE
    assert decide(exact(1000, 750), Limits(GIB), 0) is Verdict.PAUSE


def test_the_first_round_that_would_do_counts_as_one_of_the_extra_rounds() -> None:
    halving = exact(16_000, 8000, 4000, 2000, 1000)
    assert decide(halving, Limits(pages_ns(16_000)), 0) is Verdict.PAUSE
    assert decide(halving, Limits(pages_ns(16_000) - 1), 0) is Verdict.CONTINUE


def test_a_round_that_would_not_do_ends_the_counting_and_not_the_shrinking() -> None:
    assert decide(exact(20_000, 1000), Limits(pages_ns(1000)), 0) is Verdict.CONTINUE


def test_five_percent_less_is_no_new_minimum_and_more_is() -> None:
    assert policy.is_stalled(exact(1000, *[950] * policy.STALL_ROUNDS))
    assert not policy.is_stalled(exact(1000, *[949] * policy.STALL_ROUNDS))


def test_the_latest_round_that_is_large_enough_tells_the_rate() -> None:
    enough = 16 * FEW_PAGES * PAGE_BYTES
    assert policy.bandwidth_bytes_per_s([RoundFacts(GIB, GIB, 0, 0), RoundFacts(enough, 2 * enough, 0, 0)]) == 0.5e9
    assert policy.bandwidth_bytes_per_s([RoundFacts(GIB, GIB, 0, 0), RoundFacts(enough - 1, GIB, 0, 0)]) == 1e9
    assert policy.bandwidth_bytes_per_s([RoundFacts(7, 1, 0, 0)]) == 7e9
    assert policy.bandwidth_bytes_per_s([RoundFacts(7, 0, 0, 0)]) == 7e9


def test_a_guest_whose_pause_is_exactly_the_limit_is_not_slowed_down() -> None:
    outruns = [RoundFacts(pages_ns(1000), pages_ns(1000), 0, 1000)] * 2
    assert next_throttle_percent(outruns, Limits(pages_ns(1000), throttle=STEPS)) == 0
    assert next_throttle_percent(outruns, Limits(pages_ns(1000) - 1, throttle=STEPS)) == 20


def test_one_round_too_fast_is_enough_for_the_next_step() -> None:
    rounds = exact(1000, GIB // PAGE_BYTES, percent=20)
    assert next_throttle_percent(rounds, Limits(1, throttle=STEPS)) == 30
