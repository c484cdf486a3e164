# SPDX-License-Identifier: Apache-2.0
"""Predicts a migration: how long it takes, how long the guest stands still, and whether it converges at all."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import NormalDist

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
"""How many migrations are played. Twice as many move the ends of an interval by less than 3 %."""

RATE_SPREAD = 0.03
"""The network carries what it is said to carry to within 3 %, as a standard deviation: total times that the network
alone decides were off by 1 to 4 % in ``tools.bench_prediction``."""


class Estimate(msgspec.Struct, frozen=True):
    """The median, and an interval that holds the real one in 90 % of the cases."""

    value: float
    low: float
    high: float


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """What is expected of a migration.

    Attributes:
        converges: it is expected to end with a pause.
        probability: the share of the played migrations that did. The figures are of those that end as most do.
        reason: why it pauses, or why it never does.
        rounds: with those of the pause.
        total_s: of the whole command.
        downtime_s: of the pause; if it does not converge, of the pause that would be needed.
        wire_bytes: on the network.
        course: the rounds of the running guest in the migration with the median time, or with the median pause that
            would be needed.
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
        plays: how many migrations to play; 0: only the one in which everything is as expected, without intervals.
        seed: of what is drawn at random. The same arguments give the same result.
    """
    random = np.random.default_rng(seed)
    courses = [
        play(
            working_set.resampled(random),
            memory,
            msgspec.structs.replace(setting, rate_bytes_per_s=setting.rate_bytes_per_s * math.exp(RATE_SPREAD * rate)),
            costs.scattered(setup, pause, end),
            noise=_noise(working_set, random),
        )
        for rate, setup, pause, end in _deviations(plays, 4, random)
    ] or [play(working_set, memory, setting, costs)]
    converging = [course for course in courses if course.verdict is Verdict.PAUSE]
    converges = 2 * len(converging) >= len(courses)
    # A total time with a pause in it must not be mixed with one without.
    alike = converging if converges else [course for course in courses if course.verdict is not Verdict.PAUSE]
    usual = sorted(alike, key=lambda course: course.total_s if converges else course.downtime_s)[len(alike) // 2]
    return Prediction(
        converges=converges,
        probability=len(converging) / len(courses),
        reason=_reason(usual, setting),
        rounds=_estimate([course.round_count for course in alike]),
        total_s=_estimate([course.total_s for course in alike]),
        downtime_s=_estimate([course.downtime_s for course in alike]),
        wire_bytes=_estimate([course.wire_bytes for course in alike]),
        course=usual.rounds,
    )


def _deviations(rows: int, columns: int, random: np.random.Generator) -> Iterator[list[float]]:
    """Standard normal deviations. Each column has the quantiles of that distribution, in an order drawn at random:
    so few independent draws would move its median.
    """
    quantiles = [NormalDist().inv_cdf((row + 0.5) / rows) for row in range(rows)]
    table = np.array([random.permutation(quantiles) for _ in range(columns)])
    yield from table.T.tolist()


def _noise(working_set: WorkingSet, random: np.random.Generator) -> Noise:
    """How far the windows of one migration are off, each drawn anew."""

    def factor(time_s: float) -> float:
        return max(0.0, 1 + working_set.spread_within(time_s) * float(random.standard_normal()))

    return factor


def _estimate(values: Sequence[float]) -> Estimate:
    low, middle, high = np.quantile(values, [(1 - INTERVAL) / 2, 0.5, (1 + INTERVAL) / 2]).tolist()
    return Estimate(middle, low, high)


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
