# SPDX-License-Identifier: Apache-2.0
"""The running source, from when all is prepared: carries out what the plan decides about the guest and the workers.

A subclass knows what is at the other end: a receiver or a file.
"""

from __future__ import annotations

import os
import sys
import time
from abc import abstractmethod
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial

import msgspec

from parmig.engine.driver import Driver
from parmig.engine.hooks import RunHook
from parmig.engine.messages import worker_messages
from parmig.engine.plan import events
from parmig.engine.plan.events import Do, Event, Instruct, Instruction, Throttle
from parmig.engine.plan.held_events import WorkerCheckedHeld
from parmig.engine.plan.hook_events import HookEnded
from parmig.engine.reporting.change import ON, Change, SetRate
from parmig.engine.reporting.outages import lost_line, of_worker, resumed_line
from parmig.engine.reporting.report import Progress
from parmig.engine.source.begun_regions import find_begun
from parmig.engine.source.live_pulse import LivePulse
from parmig.engine.source.means import CountingSink, Means
from parmig.engine.source.progress import ProgressMeter
from parmig.engine.source_plan.coordinator import Coordinator
from parmig.engine.source_plan.source_steps import Step
from parmig.engine.steering.source_steering import SourceSteering
from parmig.engine.work.homes import Homes, find_homes
from parmig.errors import GuestRefusedError, ProtocolError
from parmig.guests.guest import DirtyLog
from parmig.ram.blocks import BlockMemory
from parmig.ram.dirty_log import SETTLED_BY_STOP
from parmig.ram.shared import SharedArea
from parmig.ram.trackers.registry import log_area_bytes
from parmig.status import MigrationStatus
from parmig.units import NS_PER_S

LONG_NS = NS_PER_S
"""A wait for the guest's disks that takes longer than this is reported. It usually takes milliseconds."""


class SourceRun(Driver[Instruction]):
    """Drives the source's plan.

    Args:
        means: not owned.
        plan: decides.
        memory: of the guest.
        shared: the workers' counters; not owned.
        state: takes the device state; not owned.

    Attributes:
        plan: see above.
        handed_over: whether the guest may run elsewhere.
    """

    def __init__(
        self,
        means: Means,
        plan: Coordinator,
        memory: Sequence[BlockMemory],
        shared: SharedArea,
        state: CountingSink,
    ) -> None:
        super().__init__(plan, means.guest, means.thread, means.pool, means.show)
        self.plan = plan
        self.handed_over = False
        self._custody = means.custody
        self._tracker = means.tracker
        self._report = means.report
        self._cpus = means.cpus
        self._memory = memory
        self._state = state
        self._shared = shared
        self._hooks = means.hooks
        self._desk = means.desk
        plan.hooks = frozenset(means.hooks.programs)
        self._steering = SourceSteering(means.desk, plan, shared, means.paths, len(means.pool))
        self._meter = ProgressMeter(plan, shared, len(means.pool), means.paths)
        self._pulse = LivePulse(means.guest)
        self._ready = 0
        self._long_ns = sys.maxsize
        self._paused = self._save_begun = False
        self._log_fd = -1
        self._tracking: tuple[worker_messages.StartTracking, int] | None = None

    @abstractmethod
    def _do(self, what: Do) -> None:
        """Carry out an instruction that concerns the other end."""

    def _round_began(self) -> None:
        """A round began while the guest runs."""

    def _watch_all(self, *more: int) -> None:
        """Wake the loop for workers, guest, and *more*."""
        self._watch(*more, *self._pool.pollables(), self._guest.watch_fd())

    @property
    def may_stand_still(self) -> bool:
        """Whether parmig may have stopped the guest: by pausing it, or by settling that stops it meanwhile."""
        marks = self.plan.record.marks
        stopped = self.plan.step is Step.SETTLING and self._report.settle == SETTLED_BY_STOP
        return stopped or ("pausing" in marks and "resumed" not in marks)

    def abort_state(self) -> None:
        """Make a call of the guest that writes state fail, so that the guest can be set right."""
        self._state.abort()

    def close(self) -> None:
        """Close what this run has opened. Call it after the workers have ended."""
        if self._log_fd >= 0:
            os.close(self._log_fd)
            self._log_fd = -1

    # -- the loop -------------------------------------------------------------------------------

    def turn(self) -> bool:
        """One turn of the loop, then progress."""
        over = super().turn()
        while (wish := self._desk.take()) is not None:
            self._consider(*wish)
        for when, problem in self._hooks.ended():
            self._feed(HookEnded(when, problem))
        self._steering.look(time.monotonic_ns())
        if self.plan.step is Step.SETTLING and time.monotonic_ns() >= self._long_ns:
            self._long_ns = sys.maxsize  # once is enough
            message = f"{self.plan.step.value}; a disk, or the server behind it, answers slowly"
            self._show_line(message)
        if self.plan.status is MigrationStatus.ACTIVE and self._pulse.is_due(time.monotonic_ns()):
            self._begin(lambda _: None, self._pulse.ask)
        progress = self._meter.look()
        if progress is not None:
            self._steering.guest_bytes_per_s = self._pulse.bytes_per_s
            self._steering.post(progress, time.monotonic_ns())
            self._show(progress)
        return over

    def _consider(self, change: Change, answer: Future[None]) -> None:
        """Make *change* or refuse it, once it is known whether the guest can be slowed down, where that matters."""
        decide = partial(self._steering.decide, change, answer)
        if change.auto_converge == ON:
            self._begin(decide, self._guest.can_throttle)
        elif (event := decide(True)) is not None:
            self._feed(event)

    def _show_line(self, message: str) -> None:
        self._show(Progress(status=self.plan.status.value, round=self.plan.round, message=message))

    def _feed(self, event: Event) -> None:
        before = self.plan.round
        super()._feed(event)
        self._log.note_rounds(self.plan.record)
        if self.plan.round != before and self.plan.status is MigrationStatus.ACTIVE:  # in the pause it would cost time
            self._round_began()

    def _worker_event(self, worker: int, message: worker_messages.WorkerEvent) -> Event | None:
        match message:
            case worker_messages.WorkerReady() if self.plan.step is not Step.SETUP:  # it replaces another one
                self._show_line(f"{of_worker(worker)}: another process has taken its place")
                return events.ChannelResumed(of_worker(worker))
            case worker_messages.WorkerReady():
                self._ready += 1
                return events.WorkersReady() if self._ready == len(self._pool) else None
            case worker_messages.ChannelLost(reason=reason):
                self._show_line(lost_line(of_worker(worker), reason))
                return events.ChannelLost(of_worker(worker), reason)
            case worker_messages.ChannelResumed(lasted_ns, again_bytes, route):
                self._show_line(resumed_line(of_worker(worker), lasted_ns))
                return events.ChannelResumed(of_worker(worker), again_bytes, route)
            case worker_messages.RegionsScanned():
                return events.WorkerScanned(worker)
            case worker_messages.RegionsDone(load=load):
                return events.WorkerIdle(worker, load)
            case worker_messages.Sent(counters=counters):
                return events.WorkerSent(worker, counters)
            case worker_messages.Fenced(counters=counters):
                return events.WorkerFenced(worker, counters)
            case worker_messages.Counted(pages=pages, by_region=by_region):
                return events.WorkerCounted(worker, pages, by_region)
            case worker_messages.RegionDigests(digests=digests):
                return events.WorkerDigested(worker, digests)
            case worker_messages.HeldChecked():
                return WorkerCheckedHeld(worker, *msgspec.structs.astuple(message))
            case worker_messages.PagesDigested(region=region, first=first, digests=pages):
                return events.WorkerDigestedPages(region, first, pages)
        return events.Failed(ProtocolError(f"worker {worker} sent {type(message).__name__}"))

    # -- doing ----------------------------------------------------------------------------------

    def _carry_out(self, instruction: Instruction) -> None:
        match instruction:
            case Instruct(worker=worker, instruction=worker_instruction):
                self._pool.instruct(worker, worker_instruction)
            case RunHook(when=when):
                self._hooks.start(when, msgspec.json.encode(self._desk.status))
            case SetRate(bytes_per_s=bytes_per_s):
                self._shared.set_rate(bytes_per_s)
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
                self._begin(events.GuestPaused, self._pause)
                self._begin(lambda _: None, self._custody.note_pause)  # beside the final round
                if self.plan.saves_at_once:
                    self._begin_save()
            case Do.SAVE_STATE:
                self._begin_save()
            case Do():
                self._do(instruction)

    def _start_log(self) -> tuple[DirtyLog, int, Homes | None, bytes]:
        """The log, the descriptor of a shared bitmap or -1, where the guest's regions are, and which have memory."""
        self._custody.arm()
        log = self._guest.start_dirty_log(self._tracker if self._memory else "none")
        names = [part.block.name for part in self._guest.memory()]
        if len(names) != len(self._memory):  # the others stay in place
            if log.kind == "bitmap":
                raise GuestRefusedError("the guest's bitmap is of all its blocks; use --tracker pagemap or digest")
            segments = dict(zip(names, log.segments, strict=False))
            moved = tuple(segments[part.block.name] for part in self._memory) if segments else ()
            log = msgspec.structs.replace(log, segments=moved)
        homes = find_homes(log, self.plan.regions, self._cpus)
        fd = self._guest.dirty_bitmap_fd() if log.kind == "bitmap" else -1
        return log, fd, homes, find_begun(self._memory, self.plan.regions)

    def _log_started(self, started: tuple[DirtyLog, int, Homes | None, bytes]) -> Event:
        """Send the workers the log that has started, and return the event for the plan."""
        log, fd, homes, begun = started
        self._report.tracker, self._report.tracker_reason, self._report.settle = log.kind, log.reason, log.settle
        area_bytes = log_area_bytes(log, [memory.block for memory in self._memory])
        if area_bytes:
            self._log_fd = fd = os.memfd_create("parmig-digests", os.MFD_CLOEXEC)
            os.ftruncate(fd, area_bytes)
        self._tracking = (worker_messages.StartTracking(log, fd >= 0), fd)
        for worker in range(len(self._pool)):
            self._pool.instruct(worker, *self._tracking)
        return events.LogStarted(needs_sync=log.kind == "bitmap", settles=bool(log.settle), homes=homes, begun=begun)

    def _settle(self) -> int:
        """Let the guest settle; returns how long that took."""
        began_ns = time.monotonic_ns()
        self._custody.settle(stops=self._report.settle == SETTLED_BY_STOP)
        return time.monotonic_ns() - began_ns

    def _pause(self) -> int:
        """Pause the guest; returns when it stopped."""
        stopped_ns = self._custody.pause(self._state)
        self._paused = True
        return stopped_ns

    def _begin_save(self) -> None:
        """Save the device state after the calls of the guest that have begun, unless that has begun already.

        Where nothing has to come between, saving begins right behind the pause and does not wait for the plan, which
        gives work to a worker at that moment. On 2 processors the median pause of a Linux guest with private memory
        fell from 16.3 to 14.3 ms (7 in turns) and from 19.5 to 16.8 (9); with shared memory it did not change.
        """
        if not self._save_begun:
            self._save_begun = True
            self._begin(self._state_saved, self._timed_save)

    def _save_state(self) -> None:
        self._guest.save_state(self._state)

    def _timed_save(self) -> int | None:
        """Save the device state; returns how long that took. None: the pause failed, or the plan has ended."""
        if not self._paused or self.plan.over:
            return None
        began_ns = time.monotonic_ns()
        self._save_state()
        return time.monotonic_ns() - began_ns

    def _state_saved(self, took_ns: int | None) -> Event | None:
        if took_ns is None:
            return None
        return events.StateSaved(self._state.size_bytes, self._state.digest, took_ns)
