# SPDX-License-Identifier: Apache-2.0
"""Plays a migration through, with the policy that also decides in a real one."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from parmig.engine.prediction.costs import Costs
from parmig.engine.prediction.rounds import Noise, PredictedRound, Rounds, exactly
from parmig.engine.prediction.setting import MemoryFacts, Setting, page_costs
from parmig.engine.prediction.working_set import WorkingSet
from parmig.engine.work.policy import Limits, Verdict, decide, next_throttle_percent
from parmig.units import NS_PER_S

MOST_ROUNDS = 200
"""A migration with more rounds is given up here. The policy calls a guest stalled long before that."""


class Course(msgspec.Struct, frozen=True):
    """How a migration goes.

    Attributes:
        verdict: PAUSE, or why it was given up.
        rounds: of the running guest.
        final_pages: what is sent in the pause.
        total_s: of the whole command; without a pause if there is none.
        downtime_s: of the pause; if it was given up, of a pause at that time.
        wire_bytes: on the network.
    """

    verdict: Verdict
    rounds: Sequence[PredictedRound]
    final_pages: float
    total_s: float
    downtime_s: float
    wire_bytes: float

    @property
    def round_count(self) -> int:
        """How many rounds the report would have: with the two of the pause."""
        return len(self.rounds) + 2 * (self.verdict is Verdict.PAUSE)


def play(
    working_set: WorkingSet, memory: MemoryFacts, setting: Setting, costs: Costs, *, noise: Noise = exactly
) -> Course:
    """Play a migration through."""
    pages = page_costs(memory, setting, costs)
    rounds = Rounds(working_set.curve, pages, costs.count_s, noise=noise)
    rounds.first(memory.data_pages, memory.zero_pages)
    verdict = play_on(rounds, setting.limits)
    downtime_s = costs.pause_s + rounds.final_s()
    final_pages = rounds.facts[-1].remaining_pages
    total_s = costs.setup_s + setting.workers * costs.setup_worker_s + rounds.elapsed_s
    wire_bytes = rounds.wire_bytes
    if verdict is Verdict.PAUSE:
        total_s += downtime_s + costs.end_s + setting.workers * costs.end_worker_s
        wire_bytes += final_pages * pages.wire_bytes
    return Course(verdict, rounds.played, final_pages, total_s, downtime_s, wire_bytes)


def play_on(rounds: Rounds, limits: Limits, before_s: float = 0.0) -> Verdict:
    """Play rounds until the policy ends them; returns PAUSE, or why the migration was given up.

    Args:
        before_s: how long the rounds took that were finished before.
    """
    while True:
        verdict = decide(rounds.facts, limits, round((before_s + rounds.elapsed_s) * NS_PER_S))
        if verdict is Verdict.HOLD:
            return Verdict.PAUSE  # the earliest moment that the user can choose
        if verdict is not Verdict.CONTINUE:
            return verdict
        if len(rounds.played) >= MOST_ROUNDS:
            return Verdict.STALLED
        rounds.next(next_throttle_percent(rounds.facts, limits))
