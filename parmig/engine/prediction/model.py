# SPDX-License-Identifier: Apache-2.0
"""Predicts a migration: how long it takes, how long the guest stands still, and whether it converges at all."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from parmig.engine.prediction.costs import Costs
from parmig.engine.prediction.course import Course, play
from parmig.engine.prediction.rounds import Noise, PredictedRound
from parmig.engine.prediction.setting import MemoryFacts, Setting
from parmig.engine.prediction.working_set import WorkingSet
from parmig.engine.work.policy import Verdict
from parmig.ram.blocks import PAGE_BYTES
from parmig.units import format_ms, format_size

INTERVAL = 0.90
"""Intervals hold this share of what may happen."""

PLAYS = 40
"""How many migrations are played for the intervals. Twice as many move the ends of an interval by less than 3 %."""


class Estimate(msgspec.Struct, frozen=True):
    """The most likely value, and an interval that holds the real one in 90 % of the cases."""

    value: float
    low: float
    high: float


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """What is expected of a migration.

    Attributes:
        converges: it is expected to end with a pause.
        probability: the share of the played migrations that did.
        reason: why it pauses, or why it never does.
        rounds: with those of the pause.
        total_s: of the whole command.
        downtime_s: of the pause; if it does not converge, of the pause that would be needed.
        wire_bytes: on the network.
        course: the rounds of the running guest.
    """

    converges: bool
    probability: float
    reason: str
    rounds: Estimate
    total_s: Estimate
    downtime_s: Estimate
    wire_bytes: Estimate
    course: Sequence[PredictedRound] = ()


def predict(
    working_set: WorkingSet, memory: MemoryFacts, setting: Setting, costs: Costs, *, plays: int = PLAYS, seed: int = 1
) -> Prediction:
    """What is expected of a migration.

    Args:
        working_set: how the guest writes.
        memory: what it holds.
        setting: with what it is moved.
        costs: of the hosts.
        plays: how many migrations to play for the intervals; 0: none, and all intervals are empty.
        seed: of what is drawn at random. The same arguments give the same result.
    """
    expected = play(working_set, memory, setting, costs)
    random = np.random.default_rng(seed)
    courses = []
    for _ in range(plays):
        drawn = working_set.resampled(random)
        courses.append(play(drawn, memory, setting, costs.drawn(random), noise=_noise(working_set, random)))
    # Of those that end alike: what is a total time with a pause in it must not be mixed with one without.
    alike = [course for course in courses if course.verdict is expected.verdict] or [expected]
    converging = sum(course.verdict is Verdict.PAUSE for course in courses)
    converges = expected.verdict is Verdict.PAUSE
    return Prediction(
        converges=converges,
        probability=converging / len(courses) if courses else float(converges),
        reason=_reason(expected, setting),
        rounds=_estimate(expected.round_count, [course.round_count for course in alike]),
        total_s=_estimate(expected.total_s, [course.total_s for course in alike]),
        downtime_s=_estimate(expected.downtime_s, [course.downtime_s for course in alike]),
        wire_bytes=_estimate(expected.wire_bytes, [course.wire_bytes for course in alike]),
        course=expected.rounds,
    )


def _noise(working_set: WorkingSet, random: np.random.Generator) -> Noise:
    """How far the windows of one migration are off, each drawn anew."""

    def factor(time_s: float) -> float:
        return max(0.0, 1 + working_set.spread_within(time_s) * float(random.standard_normal()))

    return factor


def _estimate(value: float, others: list[float]) -> Estimate:
    low, high = np.quantile(others, [(1 - INTERVAL) / 2, (1 + INTERVAL) / 2])
    return Estimate(value, min(value, float(low)), max(value, float(high)))


def _reason(course: Course, setting: Setting) -> str:
    remain = format_size(round(course.final_pages * PAGE_BYTES))
    needed = f"{remain} remain, a pause of {format_ms(course.downtime_s * 1000)}"
    limit = format_ms(setting.limits.downtime_ns / 1e6)
    match course.verdict:
        case Verdict.PAUSE:
            return f"after {len(course.rounds)} rounds of the running guest {needed}"
        case Verdict.TIMEOUT:
            return f"the time limit is over: {needed}, more than the limit of {limit}"
        case _:
            return f"rounds stop getting smaller: {needed}, more than the limit of {limit}"
