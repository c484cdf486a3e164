# SPDX-License-Identifier: Apache-2.0
"""Serves the desk of a running source: makes its status, and decides about wishes."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future

import msgspec

from parmig.engine.plan.events import LimitsChanged
from parmig.engine.reporting.change import Change, changed
from parmig.engine.reporting.notebook import Notebook
from parmig.engine.reporting.notes import OutlookNote
from parmig.engine.reporting.report import Progress
from parmig.engine.source_plan.coordinator import Coordinator
from parmig.engine.source_plan.source_steps import cannot_throttle
from parmig.engine.steering.desk import TOO_LATE, Desk
from parmig.engine.steering.engine_status import EngineStatus, LimitsStatus, RamStatus, WorkerStatus, with_progress
from parmig.engine.work.policy import Limits, expected_downtime_ns
from parmig.errors import ParmigError, StatusError, UsageError
from parmig.ram.blocks import PAGE_BYTES
from parmig.ram.shared import SharedArea
from parmig.units import NS_PER_MS, NS_PER_S


class SourceSteering:
    """Serves one desk.

    Args:
        desk: not owned.
        plan: of the source.
        shared: the workers' counters; not owned.
        paths: by worker; empty where there are none.
        workers: their number.

    Attributes:
        guest_bytes_per_s: how fast the guest writes by its own count, for the next status; None: nothing is known.
    """

    def __init__(self, desk: Desk, plan: Coordinator, shared: SharedArea, paths: Sequence[str], workers: int) -> None:
        self._desk = desk
        self._plan = plan
        self._notebook = Notebook(plan.record)
        self._shared = shared
        self._paths = paths
        self._workers = workers
        self.guest_bytes_per_s: float | None = None
        self._outlook_of = 0

    def decide(self, change: Change, answer: Future[None], can_throttle: bool) -> LimitsChanged | None:
        """Whether *change* is made: the event for the plan if it is, or None. Sets *answer* in any case.

        Args:
            can_throttle: whether the guest can be slowed down, if *change* asks for that.
        """
        problem: ParmigError | None = None
        if not self._plan.takes_changes:
            problem = StatusError(TOO_LATE)
        elif not can_throttle:
            problem = cannot_throttle(self._desk.status.guest.kind)
        else:
            try:
                changed(self._plan.limits, change)
            except UsageError as error:
                problem = error
        if problem is not None:
            answer.set_exception(problem)
            return None
        answer.set_result(None)
        return LimitsChanged(change)

    def look(self, now_ns: int) -> None:
        """Pass on what has happened until *now_ns*."""
        self._desk.note(self._notebook.look(self._plan.machine.history, now_ns))

    def post(self, progress: Progress, now_ns: int) -> None:
        """Post the status at *now_ns*, with the figures of *progress*."""
        self._desk.post(self._status(progress, now_ns))
        if progress.converges is not None and self._outlook_of != progress.round:
            self._outlook_of = progress.round
            self._desk.note(
                [
                    OutlookNote(
                        at_ms=(now_ns - self._plan.record.began_ns) / NS_PER_MS,
                        converges=progress.converges,
                        time_left_ms=progress.time_left_ms,
                        predicted_downtime_ms=progress.predicted_downtime_ms,
                    )
                ]
            )

    def _status(self, progress: Progress, now_ns: int) -> EngineStatus:
        plan, record = self._plan, self._plan.record
        counters = [self._shared.counters(worker) for worker in range(self._workers)]
        rates = progress.worker_rates_bytes_per_s
        began_ns = record.began_ns
        status = msgspec.structs.replace(
            self._desk.status,
            step=str(plan.step.value),
            total_time_ms=(now_ns - began_ns) / NS_PER_MS,
            setup_time_ms=(record.marks["active"] - began_ns) / NS_PER_MS if "active" in record.marks else None,
            expected_downtime_ms=expected_downtime_ns(record.facts) / NS_PER_MS if record.facts else None,
            ram=RamStatus(
                total_bytes=plan.total_pages * PAGE_BYTES,
                transferred_bytes=sum(one.wire_bytes for one in counters),
                sent_pages=sum(one.sent_pages for one in counters),
                zero_pages=sum(one.zero_pages for one in counters),
                skipped_pages=sum(one.skipped_pages for one in counters),
                dirty_bytes_per_s=self._dirty_bytes_per_s(),
            ),
            guest_bytes_per_s=self.guest_bytes_per_s,
            limits=limits_status(plan.limits, self._shared.rate()),
            per_worker=[
                WorkerStatus(
                    worker=worker,
                    path=self._paths[worker] if worker < len(self._paths) else "",
                    rate_bytes_per_s=rates[worker] if worker < len(rates) else 0.0,
                    wire_bytes=one.wire_bytes,
                )
                for worker, one in enumerate(counters)
            ],
            changes=record.change_reports(),
        )
        return with_progress(status, progress)

    def _dirty_bytes_per_s(self) -> float | None:
        facts = self._plan.record.facts
        if not facts:
            return None
        return facts[-1].remaining_pages * PAGE_BYTES * NS_PER_S / max(1, facts[-1].duration_ns)


def limits_status(limits: Limits, bytes_per_s: int) -> LimitsStatus:
    """The limits in force, with the limit of the rate."""
    return LimitsStatus(
        max_bandwidth_bytes_per_s=bytes_per_s,
        downtime_limit_ms=limits.downtime_ns / NS_PER_MS,
        max_downtime_ms=limits.max_downtime_ns / NS_PER_MS,
        timeout_ms=limits.timeout_ns / NS_PER_MS,
        auto_converge=limits.throttle is not None and limits.throttles,
    )
