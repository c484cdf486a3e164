# SPDX-License-Identifier: Apache-2.0
"""What moving a guest and saving it have in common on the source: the loop, the workers, the guest, the report.

The plan (``coordinator``) decides; this carries out what concerns the workers and the guest. What is at the other
end, a receiver or a file, is the subclass's matter.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from parmig import logs
from parmig.config import GUARDIAN_PROGRAM
from parmig.engine import error_reports, events, worker_messages
from parmig.engine.coordinator import Coordinator
from parmig.engine.custody import Custody
from parmig.engine.events import Do, Event, Tell, Throttle
from parmig.engine.guest_thread import GuestThread
from parmig.engine.plan_log import PlanLog
from parmig.engine.pool import WorkerPool
from parmig.engine.progress import ProgressMeter
from parmig.engine.report import GuestReport, Progress, Report
from parmig.engine.source_steps import Step
from parmig.errors import CancelledError, GuestError, ParmigError, PeerLostError, ProtocolError
from parmig.guests.guest import DirtyLog, Guest, GuestInfo, StateSink
from parmig.ram.blocks import BlockMemory
from parmig.ram.shared import SharedArea
from parmig.ram.trackers.registry import log_area_bytes
from parmig.status import BEFORE_HAND_OVER, MigrationStatus
from parmig.transport.polling import Poller
from parmig.units import NS_PER_MS, NS_PER_S

_logger = logging.getLogger(__name__)

POLL_MS = 200
"""How often the loop wakes without any event: for the time limit and for progress."""

LONG_NS = NS_PER_S
"""What people are told of when it takes longer: waiting for the guest's disks, which is done within milliseconds."""


class CountingSink(StateSink, Protocol):
    """Where device state goes, and what went there so far."""

    size_bytes: int

    @property
    def digest(self) -> str:
        """xxh3-128 of everything written so far."""

    def abort(self) -> None:
        """Make a waiting write fail."""


class SourceSide(ABC):
    """Takes the memory and the state of *guest* while it runs.

    Args:
        guest: opened by the caller, who also closes it.
        pool: of workers, not started; owned from here on.
        report: to be filled in.
        tracker: kind of dirty log to ask the guest for.
        switchover_ns: how long a pause may take, and the guest to go on after a failure.
        progress: called now and then, in the thread that called :meth:`start`.
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
    ) -> None:
        self._guest = guest
        self._pool = pool
        self._report = report
        self._tracker = tracker
        self._progress = progress
        self._thread = GuestThread()
        self._custody = Custody(guest, self._thread, GUARDIAN_PROGRAM)
        self._switchover_ns = switchover_ns
        self._poller = Poller()
        self._cancelled = False
        self._shared: SharedArea | None = None
        self._log_fd = -1
        self._state: CountingSink | None = None
        self._plan: Coordinator | None = None
        self._ready = 0
        self._paths: list[str] = []
        self._meter: ProgressMeter | None = None
        self._long_ns = sys.maxsize
        self._memory: list[BlockMemory] = []
        self._handed_over = False
        self._log = PlanLog()

    # -- the caller's side ----------------------------------------------------------------------

    def start(self) -> Report:
        """Do all of it. Returns the report, whatever the outcome; on failure the guest runs on here."""
        logs.begin_side("source")
        began = time.monotonic_ns()
        error: ParmigError | None = None
        try:
            self._prepare()
            while not self.migrate_iterate():
                pass
        except Exception as caught:
            error = self._left_by(caught)
        finally:
            ended = time.monotonic_ns()
            error = self._tear_down(error)
        return self._final_report(error, began, ended)

    def _left_by(self, caught: Exception) -> ParmigError | None:
        """What an exception that left the loop comes to. Ours or not, the plan knows whose the guest is by now."""
        error = caught if isinstance(caught, ParmigError) else ParmigError(f"{type(caught).__name__}: {caught}")
        if error is not caught:
            error.__cause__ = caught
            _logger.error("a fault in parmig or its caller", exc_info=caught)
        if self._plan is None:
            return error
        event = events.Failed(error)
        self._log.note(self._plan, event, self._plan.handle(event, time.monotonic_ns()))
        return self._plan.error

    def cancel(self) -> None:
        """Ask for the end; the guest goes on here unless hand-over has happened. Safe from a signal handler."""
        self._cancelled = True
        self._thread.wake()

    def _check_cancelled(self) -> None:
        if self._cancelled:
            raise CancelledError("cancelled; the guest continues here")

    # -- what a subclass adds -------------------------------------------------------------------

    @abstractmethod
    def _prepare(self) -> None:
        """Check everything, make the plan, start the workers; the guest is not touched."""

    @abstractmethod
    def _do(self, what: Do) -> None:
        """Carry out an instruction that concerns the other end."""

    def _listen(self) -> None:
        """Hear what the other end says, once a turn."""

    def _round_began(self) -> None:
        """A round began while the guest runs."""

    def _last_steps(self, status: MigrationStatus) -> Sequence[Callable[[], None]]:
        """Calls of the guest that end a migration which ended in *status*, after its log was stopped."""
        return ()

    def _farewell(self, status: MigrationStatus, error: ParmigError | None) -> None:
        """The guest is set right; the workers still live."""

    def _close(self) -> None:
        """Nobody else is left: give back the rest."""

    # -- before the guest is touched ------------------------------------------------------------

    def _look_at_guest(self) -> tuple[GuestInfo, list[BlockMemory]]:
        """What the guest is and where its memory is, for the report too."""
        info = self._thread.call(self._guest.info)
        memory = self._memory = list(self._thread.call(self._guest.memory))
        self._report.guest = GuestReport(
            kind=info.kind,
            memory_bytes=sum(one.block.size_bytes for one in memory),
            page_size_bytes=min(one.block.page_size_bytes for one in memory),
            machine=info.machine,
            monitor=info.monitor,
        )
        return info, memory

    def _watch(self, *more: Any) -> None:
        """Wake the loop for workers, guest, and *more*."""
        for item in [*more, *self._pool.pollables(), self._thread.wake_fd, self._guest.watch_fd()]:
            if item is not None:
                self._poller.watch(item)

    # -- the loop -------------------------------------------------------------------------------

    def migrate_iterate(self) -> bool:
        """One turn: wait for anything to happen, decide, do it. Returns whether all has ended."""
        assert self._plan is not None
        ready = self._poller.poll(POLL_MS)
        watch = self._guest.watch_fd()
        self._thread.finished()
        if self._plan.status is not MigrationStatus.HAND_OVER:  # afterwards neither is needed any more
            if watch is not None and watch in ready:
                self._feed(events.Failed(GuestError("the guest's virtual machine monitor died during the migration")))
            for worker, event in self._pool.read():
                self._worker_said(worker, event)
        self._listen()
        if self._cancelled:
            self._cancelled = False
            self._feed(events.CancelAsked())
        self._feed(events.Tick())
        if self._plan.step is Step.SETTLING and time.monotonic_ns() >= self._long_ns:
            self._long_ns = sys.maxsize  # once is enough
            message = f"{self._plan.step.value}; a disk, or the server behind it, answers slowly"
            self._tell_progress(Progress(status=self._plan.status.value, round=self._plan.round, message=message))
        if self._meter is not None and self._progress is not None:
            progress = self._meter.look()
            if progress is not None:
                self._tell_progress(progress)
        return self._plan.machine.ended

    def _feed(self, event: Event) -> None:
        assert self._plan is not None
        before = self._plan.round
        decided = self._plan.handle(event, time.monotonic_ns())
        self._log.note_rounds(self._plan.record)
        self._log.note(self._plan, event, decided)
        for instruction in decided:
            self._carry_out(instruction)
        if self._plan.round != before and self._plan.status is MigrationStatus.ACTIVE:  # not in the pause: it costs
            self._round_began()

    def _worker_said(self, worker: int, event: worker_messages.WorkerEvent) -> None:
        match event:
            case worker_messages.WorkerReady():
                self._ready += 1
                if self._ready == len(self._pool):
                    self._feed(events.WorkersReady())
            case worker_messages.RegionsScanned():
                self._feed(events.WorkerScanned(worker))
            case worker_messages.RegionsDone():
                self._feed(events.WorkerIdle(worker))
            case worker_messages.Fenced(counters=counters):
                self._feed(events.WorkerFenced(worker, counters))
            case worker_messages.Counted(pages=pages):
                self._feed(events.WorkerCounted(worker, pages))
            case worker_messages.RegionDigests(digests=digests):
                self._feed(events.WorkerDigested(worker, digests))
            case worker_messages.WorkerFailed(error=report):
                error = error_reports.restore_error(report)
                # A scan fails a moment before the death of the process that it scans is told.
                self._fail(error, symptom=isinstance(error, GuestError))
                self._forget(worker)
            case _:
                self._fail(ProtocolError(f"worker {worker} said {type(event).__name__}"))

    def _forget(self, worker: int) -> None:
        """Its pipe has ended: polled on, it would wake the loop without end."""
        for fd in self._pool.descriptors(worker):
            with contextlib.suppress(KeyError):  # not polled yet, or no more
                self._poller.unwatch(fd)

    def _fail(self, error: ParmigError, *, symptom: bool = False) -> None:
        """Fail now, or, when *error* may only be a symptom, as soon as no better reason has come."""
        suspected = symptom or isinstance(error, PeerLostError)
        self._feed(events.Suspected(error) if suspected else events.Failed(error))

    # -- doing ----------------------------------------------------------------------------------

    def _carry_out(self, instruction: events.Instruction) -> None:
        match instruction:
            case Tell(worker=worker, instruction=told):
                self._pool.tell(worker, told)
            case Throttle(percent=percent):
                self._begin(lambda _: events.Throttled(), self._guest.throttle, percent)
            case Do.START_LOG:
                self._begin(self._log_started, self._start_log)
            case Do.SYNC_LOG:
                self._begin(lambda _: events.LogSynced(), self._guest.sync_dirty_log)
            case Do.SETTLE:
                self._long_ns = time.monotonic_ns() + LONG_NS
                self._begin(events.GuestSettled, self._settle)
            case Do.PAUSE:
                self._begin(events.GuestPaused, self._custody.pause, self._state)
                self._begin(lambda _: None, self._custody.note_pause)  # beside the final round
            case Do.SAVE_STATE:
                self._begin(self._state_saved, self._save_state)
            case Do():
                self._do(instruction)

    def _begin(self, then: Callable[[Any], Event | None], function: Callable[..., Any], *arguments: object) -> None:
        """Call the guest in its thread; feed what *then* makes of the result."""
        self._thread.begin(lambda future: self._feed_result(then, function, future), function, *arguments)

    def _feed_result(
        self, then: Callable[[Any], Event | None], function: Callable[..., Any], future: Future[Any]
    ) -> None:
        try:
            event = then(future.result())
        except ParmigError as error:
            self._fail(error)
        except Exception as error:
            self._fail(ParmigError(f"{function.__name__}: {type(error).__name__}: {error}"))
        else:
            if event is not None:
                self._feed(event)

    def _start_log(self) -> tuple[DirtyLog, int]:
        """The log, and the descriptor of a shared bitmap or -1."""
        self._custody.arm()
        log = self._guest.start_dirty_log(self._tracker)
        return log, self._guest.dirty_bitmap_fd() if log.kind == "bitmap" else -1

    def _log_started(self, started: tuple[DirtyLog, int]) -> Event:
        """The guest records writes: tell the workers how to read it."""
        log, fd = started
        self._report.tracker, self._report.tracker_reason, self._report.settle = log.kind, log.reason, log.settle
        area_bytes = log_area_bytes(log, [one.block for one in self._memory])
        if area_bytes:
            self._log_fd = fd = os.memfd_create("parmig-digests", os.MFD_CLOEXEC)
            os.ftruncate(fd, area_bytes)
        for worker in range(len(self._pool)):
            self._pool.tell(worker, worker_messages.StartTracking(log, fd >= 0), fd)
        return events.LogStarted(needs_sync=log.kind == "bitmap", settles=bool(log.settle))

    def _settle(self) -> int:
        """Let the guest settle; returns how long that took."""
        began_ns = time.monotonic_ns()
        self._guest.settle()
        return time.monotonic_ns() - began_ns

    def _save_state(self) -> None:
        assert self._state is not None
        self._guest.save_state(self._state)

    def _state_saved(self, _: object) -> Event:
        assert self._state is not None
        return events.StateSaved(self._state.size_bytes, self._state.digest)

    # -- the end --------------------------------------------------------------------------------

    def _tear_down(self, error: ParmigError | None) -> ParmigError | None:
        """On every way out: the guest first, then the other end, then everything of ours. Returns what went wrong."""
        status = self._plan.status if self._plan is not None else MigrationStatus.NONE
        if error is None and self._plan is not None:
            error = self._plan.error
        if self._state is not None:
            self._state.abort()
        error = self._set_guest_right(status, error)
        self._farewell(status, error)
        _logger.info("tear-down: the guest is set right; ending the workers and closing all channels")
        self._pool.close()
        self._thread.close()
        self._close()
        if self._shared is not None:
            self._meter = None
            self._shared.close()
        if self._log_fd >= 0:
            os.close(self._log_fd)
        return error

    def _set_guest_right(self, status: MigrationStatus, error: ParmigError | None) -> ParmigError | None:
        custody, problems = self._custody, []
        abandoned = status in BEFORE_HAND_OVER or status in (MigrationStatus.FAILED, MigrationStatus.CANCELLED)
        if abandoned and self._plan is not None and status is not MigrationStatus.SETUP:
            marks = self._plan.record.marks
            paused = "pausing" in marks and "resumed" not in marks
            # A guest that was not paused runs all the while; what is left to set back is not worth a long wait.
            limit_s = self._switchover_ns / NS_PER_S if paused else 0
            if not custody.give_back(limit_s, paused=paused):
                error = custody.paused_error(error or ParmigError("the migration ended without a reason"))
            if custody.problem:
                problems.append(f"resume_source: {custody.problem}")
        for step in (self._guest.stop_dirty_log, *self._last_steps(status)):
            try:
                self._thread.call(step, limit_s=custody.call_limit_s)
            except Exception as caught:  # everything else must still be given back
                problems.append(f"{step.__name__}: {caught}")
        if not self._handed_over and not custody.problem:
            custody.look()
        self._report.source_guest = custody.where
        if self._handed_over:
            self._report.source_guest = "moved" if status is MigrationStatus.COMPLETED else "paused"
        custody.close()
        for words in problems:
            _logger.warning("while ending: %s", words, extra=logs.REPORTED)
            with contextlib.suppress(Exception):  # of the caller's
                self._tell_progress(Progress(status=status.value, message=f"while ending: {words}"))
        return error

    def _tell_progress(self, progress: Progress) -> None:
        if self._progress is not None:
            self._progress(progress)

    def _final_report(self, error: ParmigError | None, began_ns: int, ended_ns: int) -> Report:
        report = self._report
        marks = self._plan.record.marks if self._plan is not None else {}
        # As in QEMU: to the end of the migration, not of our own cleaning up; set-up ends where round 1 begins.
        report.total_time_ms = (marks.get("finished", ended_ns) - began_ns) / NS_PER_MS
        report.setup_time_ms = (marks.get("active", ended_ns) - began_ns) / NS_PER_MS
        if self._plan is not None:
            record = self._plan.record
            report.status = self._plan.status.value
            report.rounds, report.ram = record.rounds, record.ram()
            report.max_throttle_percent = record.max_throttle_percent
            report.per_worker, report.paths = record.per_worker(self._paths), sorted(set(self._paths))
            report.throughput_mib_per_s = record.throughput_mib_per_s()
            report.downtime_ms = record.downtime_ms()
            report.state_bytes = self._plan.state_bytes
            if report.downtime_ms is not None:
                report.downtime_phases_ms = record.phases()
                report.downtime_without_verify_ms = report.downtime_ms - report.downtime_phases_ms.verify
        if error is not None:
            report.error = error_reports.describe_error(error, error.phase or "setup")
            if report.status not in ("cancelled", "unknown"):
                report.status = "cancelled" if isinstance(error, CancelledError) else "failed"
        return report
