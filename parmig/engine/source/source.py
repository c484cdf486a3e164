# SPDX-License-Identifier: Apache-2.0
"""What moving a guest and saving it have in common on the source: prepare, run, set the guest right, report."""

from __future__ import annotations

import contextlib
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

import msgspec

from parmig import logs
from parmig.config import GUARDIAN_PROGRAM
from parmig.engine.custody.custody import Custody
from parmig.engine.driver import as_our_error
from parmig.engine.guest_thread import GuestThread
from parmig.engine.hooks import Hooks
from parmig.engine.pool import WorkerPool
from parmig.engine.reporting import error_reports
from parmig.engine.reporting.guest_speed import BEFORE_NS, Stretch, speed_until_pause
from parmig.engine.reporting.report import GuestReport, Progress, Report
from parmig.engine.source.means import Means
from parmig.engine.source.source_run import SourceRun
from parmig.engine.source_plan.coordinator import Coordinator
from parmig.engine.steering.desk import Desk
from parmig.errors import CancelledError, NotVerifiedError, ParmigError
from parmig.guests.guest import Guest, GuestInfo
from parmig.guests.pulse import Pulsing
from parmig.ram.blocks import BlockMemory, page_size_of_memory
from parmig.status import BEFORE_HAND_OVER, MigrationStatus
from parmig.units import NS_PER_MS, NS_PER_S

_logger = logging.getLogger(__name__)


def describe_guest(info: GuestInfo, memory: Sequence[BlockMemory]) -> GuestReport:
    """A guest, for the report."""
    return GuestReport(
        kind=info.kind,
        memory_bytes=sum(part.block.size_bytes for part in memory),
        page_size_bytes=page_size_of_memory(part.block for part in memory),
        machine=info.machine,
        monitor=info.monitor,
    )


class SourceSide(ABC):
    """Takes the memory and the state of *guest* while it runs.

    Args:
        guest: opened by the caller, who also closes it.
        pool: of workers, not started; owned from here on.
        report: to be filled in.
        tracker: kind of dirty log to ask the guest for.
        switchover_ns: the limit of a pause, and of resuming the guest after a failure.
        progress: called now and then, in the thread that called :meth:`start`.
        hooks: programs of the user, by moment.

    Attributes:
        desk: where others ask how far it is, and steer it; see ``steering``.
    """

    def __init__(
        self,
        guest: Guest,
        pool: WorkerPool,
        report: Report,
        *,
        tracker: str,
        switchover_ns: int,
        progress: Callable[[Progress], None] | None,
        hooks: Mapping[str, str] | None = None,
    ) -> None:
        self._guest = guest
        self._pool = pool
        self._report = report
        self._progress = progress
        self._thread = GuestThread()
        self.desk = Desk(self.cancel)
        self._hooks = Hooks(hooks or {}, self._thread.wake)
        self._custody = Custody(guest, self._thread, GUARDIAN_PROGRAM)
        self._paths: list[str] = []
        self._worker_cpus: list[tuple[int, ...]] = []
        self._means = Means(
            guest=guest,
            thread=self._thread,
            custody=self._custody,
            pool=pool,
            tracker=tracker,
            report=report,
            show=self._tell_progress,
            desk=self.desk,
            hooks=self._hooks,
            paths=self._paths,
            cpus=self._worker_cpus,
        )
        self._switchover_ns = switchover_ns
        self._cancelled = False
        self._run: SourceRun | None = None
        self._opened = contextlib.ExitStack()

    # -- the caller's side ----------------------------------------------------------------------

    def start(self) -> Report:
        """Move or save the guest. Returns the report, whatever the outcome; after a failure the guest runs on here."""
        logs.begin_side("source")
        began = self.desk.began_ns = time.monotonic_ns()
        error: ParmigError | None = None
        try:
            run = self._run = self._prepare()
            run.plan.record.began_ns = began
            self.desk.open(self._thread.wake)
            if self._cancelled:
                run.cancel()
            run.run()
        except Exception as caught:  # before there was a plan
            error = as_our_error(caught)
        finally:
            ended = time.monotonic_ns()
            self.desk.close()
            self._hooks.close()
            error = self._tear_down(error)
        report = self._final_report(error, began, ended)
        self.desk.finish(report)
        return report

    def migrate_iterate(self) -> bool:
        """One turn: wait for anything to happen, decide, do it. Returns whether all has ended."""
        return self._run is None or self._run.turn()

    def cancel(self) -> None:
        """Cancel. The guest goes on here, unless hand-over has happened. Safe from a signal handler."""
        self._cancelled = True
        run = self._run
        if run is not None:
            run.cancel()
        self._thread.wake()

    @property
    def _plan(self) -> Coordinator | None:
        """What decides, once all is prepared."""
        return self._run.plan if self._run is not None else None

    def _check_cancelled(self) -> None:
        if self._cancelled:
            raise CancelledError("cancelled; the guest continues here")

    # -- what a subclass adds -------------------------------------------------------------------

    @abstractmethod
    def _prepare(self) -> SourceRun:
        """Check everything, make the plan, start the workers; the guest is not touched.

        Register what has to be closed with ``_opened`` at once, because any step may fail.
        """

    def _last_steps(self, status: MigrationStatus) -> Sequence[Callable[[], None]]:
        """Calls of the guest that end a migration which ended in *status*, after its log was stopped."""
        return ()

    def _farewell(self, status: MigrationStatus, error: ParmigError | None) -> None:
        """Send the other end the outcome. The guest is set right by now; the workers still live."""

    def _look_at_guest(self) -> tuple[GuestInfo, list[BlockMemory]]:
        """What the guest is, and where its memory is. Also fills in the guest in the report."""
        info = self._thread.call(self._guest.info)
        memory = list(self._thread.call(self._guest.memory))
        self._report.guest = describe_guest(info, memory)
        self.desk.post(msgspec.structs.replace(self.desk.status, guest=self._report.guest))
        return info, memory

    # -- the end --------------------------------------------------------------------------------

    def _tear_down(self, error: ParmigError | None) -> ParmigError | None:
        """End, whatever the outcome: the guest first, then the other end, then this side. Returns what went wrong."""
        run = self._run
        status = MigrationStatus.NONE
        if run is not None:
            status = run.plan.status
            error = error or run.plan.error
            run.abort_state()
        error = self._set_guest_right(status, error)
        self._farewell(status, error)
        _logger.info("tear-down: the guest is set right; ending the workers and closing all channels")
        self._pool.close()
        self._thread.close()
        if run is not None:
            run.close()
        self._opened.close()
        return error

    def _set_guest_right(self, status: MigrationStatus, error: ParmigError | None) -> ParmigError | None:
        custody, run, problems = self._custody, self._run, []
        handed_over = run is not None and run.handed_over
        abandoned = status in BEFORE_HAND_OVER or status in (MigrationStatus.FAILED, MigrationStatus.CANCELLED)
        if abandoned and run is not None and status is not MigrationStatus.SETUP:
            paused = run.may_stand_still
            # A guest that was not paused runs all the while; what is left to set back is not worth a long wait.
            limit_s = self._switchover_ns / NS_PER_S if paused else 0
            if not custody.give_back(limit_s, paused=paused):
                error = custody.paused_error(error or ParmigError("the migration ended without a reason"))
            if custody.problem:
                problems.append(f"resume_source: {custody.problem}")
        for step in (self._guest.stop_dirty_log, self._take_pulse, *self._last_steps(status)):
            try:
                self._thread.call(step, limit_s=custody.call_limit_s)
            except Exception as caught:  # everything else must still be given back
                problems.append(f"{step.__name__}: {caught}")
        if not handed_over and not custody.problem:
            custody.look()
        self._report.source_guest = custody.where
        if handed_over:
            self._report.source_guest = "moved" if status is MigrationStatus.COMPLETED else "paused"
        custody.close()
        for words in problems:
            _logger.warning("while ending: %s", words, extra=logs.REPORTED)
            with contextlib.suppress(Exception):  # the caller's function may raise anything
                self._tell_progress(Progress(status=status.value, message=f"while ending: {words}"))
        return error

    def _take_pulse(self) -> None:
        """Note what the guest felt. It runs no more, or as before."""
        plan = self._plan
        if isinstance(self._guest, Pulsing) and plan is not None:
            began_ns = plan.record.began_ns
            rounds = [Stretch(one.began_ms, one.duration_ms) for one in plan.record.rounds if not one.paused]
            marks, now_ns = plan.record.marks, time.monotonic_ns()
            self._report.guest_speed = speed_until_pause(
                self._guest.pulse(began_ns - BEFORE_NS),
                began_ns,
                (marks.get("active", now_ns) - began_ns) / NS_PER_MS,
                rounds,
                marks.get("stopped", now_ns),
            )

    def _tell_progress(self, progress: Progress) -> None:
        if self._run is None:
            self.desk.post_progress(progress)
        if self._progress is not None:
            self._progress(msgspec.structs.replace(progress, insecure=self._report.insecure))

    def _final_report(self, error: ParmigError | None, began_ns: int, ended_ns: int) -> Report:
        report, plan = self._report, self._plan
        marks = plan.record.marks if plan is not None else {}
        # As in QEMU, the total ends with the migration, before this clean-up. The set-up ends where round 1 begins.
        report.total_time_ms = (marks.get("finished", ended_ns) - began_ns) / NS_PER_MS
        report.setup_time_ms = (marks.get("active", ended_ns) - began_ns) / NS_PER_MS
        if plan is not None:
            record = plan.record
            report.status = plan.status.value
            report.rounds, report.ram = record.rounds, record.ram()
            report.max_throttle_percent = record.max_throttle_percent
            report.outages = record.outages.reports(began_ns, ended_ns)
            report.restarts = record.restart_reports(began_ns)
            report.per_worker = record.per_worker(self._paths, self._worker_cpus)
            report.per_path = record.per_path(self._paths)
            report.changes = record.change_reports()
            report.paths = sorted(set(self._paths))
            report.throughput_mib_per_s = record.throughput_mib_per_s()
            report.downtime_ms = record.downtime_ms()
            report.verify_ms = record.verify_ms()
            report.state_bytes = plan.state_bytes
            if report.downtime_ms is not None:
                report.downtime_phases_ms = record.phases()
                report.state_save_ms = record.state_save_ns / NS_PER_MS
                report.downtime_without_verify_ms = report.downtime_ms - report.downtime_phases_ms.verify
        if error is not None:
            report.error = error_reports.describe_error(error, error.phase or "setup")
            moved = isinstance(error, NotVerifiedError)
            if report.status not in ("cancelled", "unknown") and not moved:
                report.status = "cancelled" if isinstance(error, CancelledError) else "failed"
        return report
