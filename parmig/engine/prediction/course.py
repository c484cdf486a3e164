# SPDX-License-Identifier: Apache-2.0
"""Plays a migration through, round by round, with the policy that also decides in a real one.

What a round finds to send depends on how long ago each region was scanned. Regions are scanned one after the other,
ahead of what is being placed, so in a count that follows a round the last region had little time to be written, and the
first one had all of the round.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from parmig.engine.prediction.costs import Costs
from parmig.engine.prediction.setting import MemoryFacts, PageCosts, Setting, page_costs
from parmig.engine.prediction.working_set import WorkingSet
from parmig.engine.work.policy import RoundFacts, Verdict, decide, next_throttle_percent
from parmig.ram.blocks import PAGE_BYTES
from parmig.units import NS_PER_S

MOST_ROUNDS = 200
"""A migration with more rounds is given up here. The policy calls a guest stalled long before that."""

MOST_STEPS = 40
"""The pages of a round depend on its duration, which depends on its pages. Each step makes the difference smaller.
After 40 of them it is below 0.1 % if a round shrinks to 84 % of the one before; else the guest does not converge."""

PLACES = tuple((place + 0.5) / 8 for place in range(8))
"""Places in the memory for which it is computed how long ago they were scanned. W(t) is smooth, so eight are enough."""

Noise = Callable[[float], float]
"""By which factor the pages written within a time differ from the expected ones in this migration."""


class CourseRound(msgspec.Struct, frozen=True):
    """A round of the running guest: pages sent, its duration, and the dirty pages after it."""

    pages: float
    duration_s: float
    remaining_pages: float
    throttle_percent: int = 0


class Course(msgspec.Struct, frozen=True):
    """How a migration goes.

    Attributes:
        verdict: PAUSE, or why it was given up.
        rounds: of the running guest, without those given at the start.
        round_count: with those of the start and the two of the pause.
        final_pages: what is sent in the pause.
        total_s: of the whole command, or from the given start on; without a pause if there is none.
        downtime_s: of the pause; if it was given up, of a pause at that time.
        wire_bytes: on the network.
    """

    verdict: Verdict
    rounds: tuple[CourseRound, ...]
    round_count: int
    final_pages: float
    total_s: float
    downtime_s: float
    wire_bytes: float


class Start(msgspec.Struct, frozen=True):
    """Where a migration is that has begun.

    Attributes:
        facts: finished rounds; at least one, and the policy has decided to continue.
        elapsed_s: since the first round began.
        last_s: how long the last one took.
    """

    facts: tuple[RoundFacts, ...]
    elapsed_s: float
    last_s: float


def play(
    working_set: WorkingSet,
    memory: MemoryFacts,
    setting: Setting,
    costs: Costs,
    *,
    noise: Noise = lambda _: 1.0,
    start: Start | None = None,
) -> Course:
    """Play a migration through, from its begin or from *start* on."""
    pages = page_costs(memory, setting, costs)
    return _Player(working_set, memory, setting, costs, pages, noise).play(start)


class _Player:
    """A migration under way."""

    def __init__(
        self,
        working_set: WorkingSet,
        memory: MemoryFacts,
        setting: Setting,
        costs: Costs,
        pages: PageCosts,
        noise: Noise,
    ) -> None:
        self._curve, self._noise = working_set.curve, noise
        self._memory, self._setting, self._costs, self._pages = memory, setting, costs, pages
        self._facts: list[RoundFacts] = []
        self._rounds: list[CourseRound] = []
        self._elapsed_s = self._last_s = self._wire_bytes = 0.0
        self._throttle = 0

    def play(self, start: Start | None) -> Course:
        before_s = after_s = 0.0
        if start is None:
            workers = self._setting.workers
            before_s = self._costs.setup_s + workers * self._costs.setup_worker_s
            self._first_round()
        else:
            self._facts, self._last_s = list(start.facts), start.last_s
            self._throttle = start.facts[-1].throttle_percent
            self._elapsed_s = start.elapsed_s
            before_s = -start.elapsed_s
        after_s = self._costs.end_s + self._setting.workers * self._costs.end_worker_s
        known = len(self._facts) - len(self._rounds)
        verdict = self._decide() if start is None else Verdict.CONTINUE
        while verdict is Verdict.CONTINUE and len(self._rounds) < MOST_ROUNDS:
            self._throttle = next_throttle_percent(self._facts, self._setting.limits)
            self._next_round()
            verdict = self._decide()
        if verdict is Verdict.CONTINUE:
            verdict = Verdict.STALLED
        final_pages = float(self._facts[-1].remaining_pages)
        final_s = self._pages.round_of(final_pages, idle_s=self._idle_s) - self._pages.round_s
        downtime_s = self._costs.pause_s + final_s
        pauses = verdict in (Verdict.PAUSE, Verdict.HOLD)
        if pauses:
            self._wire_bytes += final_pages * self._pages.wire_bytes
        return Course(
            Verdict.PAUSE if pauses else verdict,
            tuple(self._rounds),
            known + len(self._rounds) + 2 * pauses,
            final_pages,
            before_s + self._elapsed_s + (downtime_s + after_s if pauses else 0.0),
            downtime_s,
            self._wire_bytes,
        )

    @property
    def _idle_s(self) -> float:
        """For how long nothing is sent between two rounds."""
        return self._pages.round_s + self._costs.count_s

    def _decide(self) -> Verdict:
        return decide(self._facts, self._setting.limits, round(self._elapsed_s * NS_PER_S))

    def _first_round(self) -> None:
        memory = self._memory
        duration_s = self._pages.round_of(memory.data_pages, zero_pages=memory.zero_pages, first=True)
        self._wire_bytes += memory.data_pages * self._pages.first_wire_bytes
        self._end_round(memory.data_pages, duration_s)

    def _next_round(self) -> None:
        """A round whose pages and duration fit each other: the smallest such pair, approached from below."""
        duration_s = pages = 0.0
        for _ in range(MOST_STEPS):
            pages = self._written(self._last_s, duration_s)
            longer_s = self._pages.round_of(pages, idle_s=self._idle_s)
            if longer_s <= duration_s * 1.001:
                break
            duration_s = longer_s
        self._wire_bytes += pages * self._pages.wire_bytes
        self._end_round(pages, duration_s)

    def _end_round(self, pages: float, duration_s: float) -> None:
        """Count what the guest wrote meanwhile, and note the round."""
        gap_s = self._costs.count_s
        remaining = self._written(duration_s, None)
        self._elapsed_s += duration_s + gap_s
        self._last_s = duration_s
        self._rounds.append(CourseRound(pages, duration_s, remaining, self._throttle))
        self._facts.append(
            RoundFacts(
                sent_bytes=round(pages * PAGE_BYTES),
                duration_ns=max(1, round(duration_s * NS_PER_S)),
                scan_ns=round(self._pages.scan_s * NS_PER_S),
                remaining_pages=round(remaining),
                throttle_percent=self._throttle,
            )
        )

    def _written(self, round_s: float, next_s: float | None) -> float:
        """Distinct pages that are written since their scan in a round of *round_s*.

        Args:
            next_s: until their scan in the next round, which takes so long; None: until the count between both.
        """
        speed = 1 - self._throttle / 100
        lead_s = self._pages.lead_s
        expected = 0.0
        for place in PLACES:
            since_s = round_s + self._costs.count_s - max(0.0, place * round_s - lead_s)
            if next_s is not None:
                since_s += max(0.0, place * next_s - lead_s)
            expected += self._curve.within(since_s * speed)
        return min(self._curve.most_pages, expected / len(PLACES) * self._noise(round_s))
