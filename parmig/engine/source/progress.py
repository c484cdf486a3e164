# SPDX-License-Identifier: Apache-2.0
"""Live progress of the source, from the workers' shared counters."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

from parmig.engine.prediction.outlook import Outlook, outlook
from parmig.engine.reporting.report import Progress
from parmig.engine.source_plan.coordinator import Coordinator
from parmig.ram.blocks import PAGE_BYTES
from parmig.ram.shared import SharedArea
from parmig.units import NS_PER_MS, NS_PER_S

INTERVAL_NS = 200 * NS_PER_MS
WINDOW = 6
"""The number of looks over which a rate is averaged: 1.2 s."""


def rates_by_path(paths: Sequence[str], rates: Sequence[float]) -> dict[str, float]:
    """The sum of the workers' *rates* for each path, with *paths* by worker; empty if there is only one."""
    if len(set(paths)) < 2:
        return {}
    sums = dict.fromkeys(paths, 0.0)
    for path, rate in zip(paths, rates, strict=True):
        sums[path] += rate
    return sums


class ProgressMeter:
    """Looks at the counters at most five times a second, and whenever status or round change."""

    def __init__(self, plan: Coordinator, shared: SharedArea, workers: int, paths: Sequence[str] = ()) -> None:
        self._paths = paths
        self._plan = plan
        self._shared = shared
        self._workers = workers
        self._looks: deque[tuple[int, int, list[int]]] = deque(maxlen=WINDOW)
        self._last = ("", 0)
        self._base_pages = 0
        self._base_sent_pages = 0
        self._outlook: Outlook | None = None
        self._outlook_of = 0

    def look(self) -> Progress | None:
        """The progress, or None if it is too early to show it again."""
        now = time.monotonic_ns()
        state = (self._plan.status.value, self._plan.round)
        if state == self._last and self._looks and now - self._looks[-1][0] < INTERVAL_NS:
            return None
        counters = [self._shared.counters(worker) for worker in range(self._workers)]
        handled = sum(worker.handled_pages for worker in counters)
        if state[1] != self._last[1]:
            # Workers count every page of every region in every round, so a round begins at a known number. It does not
            # once a round was given up.
            known_pages = (state[1] - 1) * self._plan.total_pages
            self._base_pages = handled if self._plan.record.restarts else known_pages
            self._base_sent_pages = sum(worker.sent_pages + worker.zero_pages for worker in counters)
        self._last = state
        self._looks.append((now, handled, [worker.wire_bytes for worker in counters]))
        then, handled_then, wire_then = self._looks[0]
        seconds = max(1, now - then) / NS_PER_S
        rate = (handled - handled_then) * PAGE_BYTES / seconds
        in_round = max(0, min(handled - self._base_pages, self._plan.total_pages))
        facts = self._plan.record.facts
        if facts:
            done = sum(worker.sent_pages + worker.zero_pages for worker in counters) - self._base_sent_pages
            remaining = max(0, facts[-1].remaining_pages - done)
        else:
            remaining = self._plan.total_pages - in_round
        ahead = self._look_ahead(now)
        rates = [(b - a) / seconds for a, b in zip(wire_then, self._looks[-1][2], strict=True)]
        return Progress(
            status=state[0],
            round=state[1],
            total_pages=self._plan.total_pages,
            handled_pages=in_round,
            remaining_bytes=remaining * PAGE_BYTES,
            rate_bytes_per_s=rate,
            worker_rates_bytes_per_s=tuple(rates),
            path_rates_bytes_per_s=rates_by_path(self._paths, rates),
            time_left_ms=self._time_left_ms(ahead, remaining, rate),
            converges=ahead.converges if ahead is not None else None,
            predicted_downtime_ms=ahead.downtime_s * 1000 if ahead is not None else None,
            throttle_percent=self._plan.record.throttle_percent,
            interrupted=self._plan.record.outages.interrupted,
        )

    def _look_ahead(self, now_ns: int) -> Outlook | None:
        """What is expected since the last round ended; None: no round has, or the pause has begun."""
        record = self._plan.record
        if not record.facts or "pausing" in record.marks:
            return None
        if self._outlook_of != record.fact_count:
            self._outlook_of = record.fact_count
            elapsed_s = (now_ns - record.marks["active"]) / NS_PER_S
            self._outlook = outlook(record.facts, self._plan.limits, self._plan.total_pages, elapsed_s)
        return self._outlook

    def _time_left_ms(self, ahead: Outlook | None, remaining_pages: int, rate: float) -> float | None:
        """How long it takes until the pause. In the first round only the rest of that is known."""
        if ahead is None:
            known = rate > 0 and not self._plan.record.facts
            return remaining_pages * PAGE_BYTES / rate * 1000 if known else None
        if not ahead.converges or not ahead.rounds:
            return None
        share = remaining_pages / max(1, self._plan.record.facts[-1].remaining_pages)
        return (ahead.round_s * share + ahead.after_s) * 1000
