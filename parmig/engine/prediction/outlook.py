# SPDX-License-Identifier: Apache-2.0
"""What is expected of a migration that is under way, from the rounds that have ended: for the time left and the pause.

The rounds show how the guest writes: each count after a round is a point of its working set. They also show the rate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from parmig.engine.prediction.costs import Costs
from parmig.engine.prediction.course import play_on
from parmig.engine.prediction.curve import Curve, fit
from parmig.engine.prediction.rounds import Rounds, since_scans_s
from parmig.engine.prediction.setting import PageCosts
from parmig.engine.work.pace import BUNDLE_NS
from parmig.engine.work.policy import Limits, RoundFacts, Verdict, bandwidth_bytes_per_s, expected_downtime_ns
from parmig.ram.blocks import PAGE_BYTES
from parmig.units import NS_PER_S

LATEST = 8
"""So many of the latest rounds say how the guest writes now. It may have written otherwise before."""

_COSTS = Costs()


class Outlook(msgspec.Struct, frozen=True):
    """What is expected after the last finished round.

    Attributes:
        converges: the policy is expected to pause the guest.
        rounds: how many rounds of the running guest are still to come; of what the policy looks at, if it gives up.
        round_s: how long the next one takes; 0: the pause comes next.
        after_s: from its end to the pause.
        downtime_s: how long the pages of the pause take.
    """

    converges: bool
    rounds: int
    round_s: float
    after_s: float
    downtime_s: float


def outlook(facts: Sequence[RoundFacts], limits: Limits, total_pages: int, elapsed_s: float) -> Outlook:
    """What is expected after the last of *facts*, of which there is at least one.

    Args:
        limits: in force.
        total_pages: of the memory.
        elapsed_s: since the first round began.
    """
    rounds = _rounds(facts, total_pages)
    verdict = play_on(rounds, limits, elapsed_s)
    first_s = rounds.played[0].duration_s if rounds.played else 0.0
    return Outlook(
        verdict is Verdict.PAUSE,
        len(rounds.played),
        first_s,
        rounds.elapsed_s - first_s,
        expected_downtime_ns(rounds.facts) / NS_PER_S,
    )


def downtimes_ahead_ns(facts: Sequence[RoundFacts], total_pages: int, count: int) -> list[float]:
    """The expected downtime after each of *count* more rounds, with the guest at its present speed."""
    rounds = _rounds(facts, total_pages)
    downtimes = []
    for _ in range(count):
        rounds.next(facts[-1].throttle_percent)
        downtimes.append(rounds.final_s() * NS_PER_S)
    return downtimes


def _rounds(facts: Sequence[RoundFacts], total_pages: int) -> Rounds:
    """The rounds that may follow *facts*."""
    pages = _page_costs(facts)
    return Rounds(_curve(facts, pages.lead_s, total_pages), pages, _COSTS.count_s, facts=facts)


def _page_costs(facts: Sequence[RoundFacts]) -> PageCosts:
    """How long pages take, by the rounds so far. The rate is measured with all that a round costs."""
    page_s = PAGE_BYTES / bandwidth_bytes_per_s(facts)
    quickest_s = min(facts_.duration_ns for facts_ in facts) / NS_PER_S
    return PageCosts(
        wire_s=page_s,
        first_wire_s=page_s,
        processor_s=0.0,
        first_processor_s=0.0,
        zero_s=0.0,
        scan_s=facts[-1].scan_ns / NS_PER_S,
        wire_bytes=PAGE_BYTES,
        first_wire_bytes=PAGE_BYTES,
        catch_up_s=0.0,
        round_s=min(_COSTS.round_s, quickest_s),
        lead_s=BUNDLE_NS / NS_PER_S,
    )


def _curve(facts: Sequence[RoundFacts], lead_s: float, total_pages: int) -> Curve:
    """How the guest writes, by the counts after the latest rounds."""
    times_s, counts = [], []
    for round_ in facts[-LATEST:]:
        round_s = round_.duration_ns / NS_PER_S
        since_s = since_scans_s(round_s + _COSTS.count_s, round_s, None, lead_s)
        # A throttled guest does in this time what it does in less at full speed.
        times_s.append(math.fsum(since_s) / len(since_s) * (1 - round_.throttle_percent / 100))
        counts.append(float(round_.remaining_pages))
    return fit(times_s, counts, total_pages)
