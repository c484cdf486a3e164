# SPDX-License-Identifier: Apache-2.0
"""The source side: carries out what the coordinator decides."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import zmq

from parmig.config import GUARDIAN_PROGRAM, WORKER_PROGRAMS, SendConfig
from parmig.engine import events, messages
from parmig.engine.agreement import CAPABILITIES, check_accept
from parmig.engine.control import ControlChannel
from parmig.engine.coordinator import Coordinator
from parmig.engine.events import Do, Event, Tell
from parmig.engine.guardian import Guardian
from parmig.engine.guest_thread import GuestThread
from parmig.engine.messages import Accept, Configure, SendSetup
from parmig.engine.policy import Limits
from parmig.engine.pool import WorkerPool
from parmig.engine.progress import ProgressMeter
from parmig.engine.report import DigestReport, GuestReport, Progress, Report
from parmig.engine.state_channel import StateSender
from parmig.errors import (
    CancelledError,
    GuestError,
    OutcomeUnknownError,
    ParmigError,
    PeerFailedError,
    PeerLostError,
    PeerRefusedError,
    ProtocolError,
)
from parmig.guests.base import DirtyLog, Guest, GuestInfo
from parmig.processes import warm_up
from parmig.ram.blocks import BlockMemory
from parmig.ram.codecs.registry import codec
from parmig.ram.flow import CREDIT_BATCHES
from parmig.ram.regions import cut, region_pages_for
from parmig.ram.shared import SharedArea
from parmig.ram.trackers.registry import log_area_bytes
from parmig.status import BEFORE_HAND_OVER, MigrationStatus
from parmig.transport.base import Endpoint, parse_uri
from parmig.transport.registry import open_transport
from parmig.units import NS_PER_MS, NS_PER_S
from parmig.version import __version__

CONFIGURE_LIMIT_NS = 20 * NS_PER_S
"""For the destination to check the configuration and start its workers."""

STATE_CONNECT_LIMIT_NS = 3 * NS_PER_S

POLL_MS = 200
"""How often the loop wakes without any event: for the time limit and for progress."""

EXPLANATION_NS = 400 * NS_PER_MS
"""A lost connection is a symptom. For so long the cause may still arrive: the peer's word, or the news
that one of our workers died; well within the second in which a failure must be known."""


class MigrationSender:
    """Moves *guest* to the receiver at *uri*.

    Args:
        guest: opened by the caller, who also closes it.
        uri: of the receiver's control channel.
        config: how.
        progress: called now and then, in the thread that called :meth:`start`.
    """

    def __init__(
        self, guest: Guest, uri: str, config: SendConfig, *, progress: Callable[[Progress], None] | None = None
    ) -> None:
        self._guest = guest
        self._uri = uri
        self._config = config
        self._thread = GuestThread()
        self._cancelled = False
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._control: ControlChannel | None = None
        self._pool = WorkerPool(WORKER_PROGRAMS[0], "send worker")
        self._guardian = Guardian(GUARDIAN_PROGRAM)
        self._poller = zmq.Poller()
        self._shared: SharedArea | None = None
        self._log_fd = -1
        self._state: StateSender | None = None
        self._state_transport: Any = None
        self._plan: Coordinator | None = None
        self._running = True
        self._ready = 0
        self._suspect: tuple[ParmigError, int] | None = None
        self._paths: list[str] = []
        self._progress = progress
        self._meter: ProgressMeter | None = None
        self._report = Report(parmig=__version__, side="source", transport=config.transport, workers=config.workers)

    # -- the caller's side ----------------------------------------------------------------------

    def start(self) -> Report:
        """Migrate. Returns the report, whatever the outcome; the guest runs on exactly one side."""
        began = time.monotonic_ns()
        error: ParmigError | None = None
        try:
            self._prepare()
            while not self.migrate_iterate():
                pass
        except ParmigError as caught:
            error = caught
        finally:
            ended = time.monotonic_ns()
            self._tear_down(error)
        return self._final_report(error, began, ended)

    def cancel(self) -> None:
        """Ask for the end; the guest goes on here unless hand-over has happened. Safe from a signal handler."""
        self._cancelled = True
        self._thread.wake()

    def _check_cancelled(self) -> None:
        if self._cancelled:
            raise CancelledError("cancelled; the guest goes on here")

    # -- before the guest is touched ------------------------------------------------------------

    def _prepare(self) -> None:
        self._config.check()
        warm_up()
        codec(self._config.compress)
        info = self._thread.call(self._guest.info)
        memory = list(self._thread.call(self._guest.memory))
        blocks = tuple(one.block for one in memory)
        self._report.guest = GuestReport(
            kind=info.kind,
            memory_bytes=sum(block.size_bytes for block in blocks),
            page_size_bytes=min(block.page_size_bytes for block in blocks),
            machine=info.machine,
            monitor=info.monitor,
        )
        self._report.compression = self._config.compress
        self._tell_progress(Progress(status="setup", message=f"connecting to {self._uri}"))
        endpoint = parse_uri(self._uri)
        transport = open_transport(
            endpoint, self._context, "control channel", heartbeat=True, max_message_bytes=messages.MAX_CONTROL_BYTES
        )
        self._control = ControlChannel(transport)
        transport.connect(endpoint, timeout_ns=self._config.connect_timeout_ns)
        region_pages = region_pages_for(blocks, self._config.workers)
        accept = self.send_configure(info, memory, region_pages)
        regions = cut(blocks, region_pages)
        self._shared = SharedArea(-1, workers=self._config.workers, blocks=blocks, regions=len(regions))
        self._shared.set_rate(self._config.max_bandwidth_bytes_per_s)
        limits = Limits(self._config.downtime_limit_ns, self._config.max_downtime_ns, self._config.timeout_ns)
        self._plan = Coordinator(regions, self._config.workers, limits, verify=self._config.verify)
        self._meter = ProgressMeter(self._plan, self._shared, self._config.workers)
        self._start_workers(accept, endpoint, memory, region_pages)
        self._connect_state(accept, endpoint)

    def send_configure(self, info: GuestInfo, memory: list[BlockMemory], region_pages: int) -> Accept:
        """Tell the destination what is coming and hear whether it fits; check its answer as well.

        Raises:
            PeerRefusedError: either side found something that does not match; every mismatch is named.
        """
        assert self._control is not None
        config = self._config
        self._running = self._thread.call(self._guest.is_running)
        wish = Configure(
            parmig=__version__,
            kind=info.kind,
            machine=info.machine,
            blocks=tuple(one.block for one in memory),
            allocated_bytes=sum(os.fstat(fd).st_blocks * 512 for fd in {one.fd for one in memory}),
            workers=config.workers,
            transport=config.transport,
            codec=config.compress,
            batch_bytes=config.batch_bytes,
            credit_bytes=CREDIT_BATCHES * config.batch_bytes,
            region_pages=region_pages,
            running=self._running,
            verify=config.verify,
            capabilities=CAPABILITIES,
        )
        self._control.write(wish)
        try:
            answer = self._control.wait(
                "the destination's answer to the configuration", CONFIGURE_LIMIT_NS, self._check_cancelled
            )
        except ProtocolError as error:
            raise PeerRefusedError(f"{self._uri}: {error}") from error
        match answer:
            case Accept():
                mismatches = check_accept(answer, wish, info)
                if mismatches:
                    raise PeerRefusedError("the destination does not match: " + "; ".join(mismatches))
                return answer
            case messages.Refuse(reason=reason):
                raise PeerRefusedError(f"the destination refused: {reason}")
            case messages.Failure(error=report):
                raise PeerFailedError(f"the destination failed: {report.message}")
        raise ProtocolError(f"the destination answered {type(answer).__name__} to the configuration")

    def _start_workers(self, accept: Accept, control: Endpoint, memory: list[BlockMemory], region_pages: int) -> None:
        assert self._shared is not None
        assert self._control is not None
        for worker, data in enumerate(accept.data):
            path = self._config.paths[worker % len(self._config.paths)] if self._config.paths else None
            host = path.remote if path else data.host or control.host
            self._paths.append(str(path) if path else host)
            setup = SendSetup(
                worker=worker,
                workers=self._config.workers,
                blocks=tuple(one.block for one in memory),
                file_offsets_bytes=tuple(one.file_offset_bytes for one in memory),
                uri=str(Endpoint(control.scheme, host, data.port)),
                local=path.local if path else "",
                session=accept.session,
                codec=accept.codec,
                batch_bytes=self._config.batch_bytes,
                region_pages=region_pages,
                connect_timeout_ns=self._config.connect_timeout_ns,
            )
            self._pool.start(setup, [self._shared.fd, *(one.fd for one in memory)])
        watched = [*self._control.pollables(), *self._pool.pollables(), self._thread.wake_fd, self._guest.watch_fd()]
        for item in watched:
            if item is not None:
                self._poller.register(item, zmq.POLLIN)

    def _connect_state(self, accept: Accept, control: Endpoint) -> None:
        endpoint = Endpoint(control.scheme, accept.state.host or control.host, accept.state.port)
        self._state_transport = open_transport(
            endpoint, self._context, "state channel", heartbeat=False, max_message_bytes=1 << 16
        )
        self._state_transport.connect(endpoint, timeout_ns=STATE_CONNECT_LIMIT_NS)
        self._state = StateSender(self._state_transport, accept.session)

    # -- the loop -------------------------------------------------------------------------------

    def migrate_iterate(self) -> bool:
        """One turn: wait for anything to happen, decide, do it. Returns whether the migration has ended."""
        assert self._plan is not None
        ready = dict(self._poller.poll(POLL_MS))
        watch = self._guest.watch_fd()
        self._thread.finished()
        if self._plan.status is not MigrationStatus.HAND_OVER:  # afterwards neither is needed any more
            if watch is not None and watch in ready:
                self._feed(events.Failed(GuestError("the guest's virtual machine monitor died during the migration")))
            for worker, event in self._pool.read():
                self._worker_said(worker, event)
        self._read_control()
        if self._cancelled:
            self._cancelled = False
            self._feed(events.CancelAsked())
        if self._suspect is not None and time.monotonic_ns() >= self._suspect[1]:
            self._feed(events.Failed(self._suspect[0]))
        self._feed(events.Tick())
        if self._meter is not None and self._progress is not None:
            progress = self._meter.look()
            if progress is not None:
                self._tell_progress(progress)
        return self._plan.machine.ended

    def _feed(self, event: Event) -> None:
        assert self._plan is not None
        before = self._plan.round
        for instruction in self._plan.handle(event, time.monotonic_ns()):
            self._carry_out(instruction)
        if self._plan.round != before and self._plan.status is MigrationStatus.ACTIVE:  # not in the pause: it costs
            self._say(messages.Progressed(self._plan.status.value, self._plan.round))

    def _worker_said(self, worker: int, event: messages.WorkerEvent) -> None:
        match event:
            case messages.WorkerReady():
                self._ready += 1
                if self._ready == len(self._pool):
                    self._feed(events.WorkersReady())
            case messages.RegionsDone():
                self._feed(events.WorkerIdle(worker))
            case messages.Fenced(counters=counters):
                self._feed(events.WorkerFenced(worker, counters))
            case messages.Counted(pages=pages):
                self._feed(events.WorkerCounted(worker, pages))
            case messages.RegionDigests(digests=digests):
                self._feed(events.WorkerDigested(worker, digests))
            case messages.WorkerFailed(error=report):
                error = messages.restore_error(report)
                # A scan fails a moment before the death of the process that it scans is told.
                self._fail(error, symptom=isinstance(error, GuestError))
            case _:
                self._fail(ProtocolError(f"send worker {worker} said {type(event).__name__}"))

    def _read_control(self) -> None:
        assert self._control is not None
        assert self._plan is not None
        try:
            while not self._plan.machine.ended and (message := self._control.read()) is not None:
                self._peer_said(message)
        except PeerLostError as error:
            if self._plan.status is MigrationStatus.HAND_OVER:
                self._feed(events.PeerVanished(self._unknown(str(error))))
            else:
                self._fail(error)
        except ProtocolError as error:
            self._fail(error)

    def _peer_said(self, message: messages.ControlMessage) -> None:
        assert self._plan is not None
        match message:
            case messages.Digested(digest=digest):
                self._feed(events.PeerDigested(digest))
            case messages.Loaded() if self._suspect is not None:
                self._feed(events.Failed(self._suspect[0]))  # never hand over with something amiss
            case messages.Loaded(load_ns=load_ns):
                self._feed(events.PeerLoaded(load_ns))
            case messages.Resumed(since_ns=since_ns):
                self._feed(events.PeerResumed(since_ns))
            case messages.Failure(error=report):
                symptom = report.type == PeerLostError.__name__
                error = PeerLostError if symptom else PeerFailedError
                self._fail(error(f"the destination failed: {report.message}"))
            case _:
                self._fail(
                    ProtocolError(f"the destination said {type(message).__name__} while {self._plan.step.value}")
                )

    def _fail(self, error: ParmigError, *, symptom: bool = False) -> None:
        """Fail now, or, when *error* may only be a symptom, as soon as no better reason has come."""
        assert self._plan is not None
        if self._plan.status is MigrationStatus.HAND_OVER:
            self._feed(events.Failed(self._unknown(str(error))))
        elif symptom or isinstance(error, PeerLostError):
            self._suspect = self._suspect or (error, time.monotonic_ns() + EXPLANATION_NS)
        else:
            self._feed(events.Failed(error))

    def _unknown(self, cause: str) -> OutcomeUnknownError:
        return OutcomeUnknownError(
            f"{cause}, after hand-over: the guest may run at the destination, so it stays paused here; "
            "look there, and only if it does not run, continue it here"
        )

    # -- doing ----------------------------------------------------------------------------------

    def _carry_out(self, instruction: events.Instruction) -> None:
        assert self._plan is not None
        assert self._control is not None
        assert self._state is not None
        match instruction:
            case Tell(worker=worker, instruction=told):
                self._pool.tell(worker, told)
            case Do.START_LOG:
                self._begin(self._log_started, self._guest.start_dirty_log, self._config.tracker)
            case Do.SYNC_LOG:
                self._begin(lambda _: events.LogSynced(), self._guest.sync_dirty_log)
            case Do.PAUSE:
                self._begin(events.GuestPaused, self._guest.pause, self._state)
            case Do.SAVE_STATE:
                self._begin(self._state_saved, self._save_state, self._state)
            case Do.ASK_DIGEST:
                self._say(messages.DigestRequest())
            case Do.RELEASE:
                self._say(messages.Release(self._plan.state_bytes, self._plan.state_digest))
            case Do.HAND_OVER:
                self._guardian.disarm()
                self._watch_peer_only()
                self._say(messages.HandOver(run=self._running))
            case Do.FINISH | Do.ABANDON | Do.GIVE_UP:
                pass  # the loop ends; tearing down does it

    def _say(self, message: messages.ControlMessage) -> None:
        assert self._control is not None
        try:
            self._control.write(message)
        except PeerLostError as error:
            self._fail(error)

    def _watch_peer_only(self) -> None:
        """After hand-over only the destination's word counts, whatever becomes of our workers and our copy."""
        assert self._control is not None
        self._poller = zmq.Poller()
        for item in [*self._control.pollables(), self._thread.wake_fd]:
            self._poller.register(item, zmq.POLLIN)

    def _begin(self, then: Callable[[Any], Event], function: Callable[..., Any], *arguments: object) -> None:
        """Call the guest in its thread; feed what *then* makes of the result."""

        def done(future: Future[Any]) -> None:
            try:
                event = then(future.result())
            except ParmigError as error:
                self._fail(error)
            except Exception as error:
                self._fail(ParmigError(f"{function.__name__}: {type(error).__name__}: {error}"))
            else:
                self._feed(event)

        self._thread.begin(done, function, *arguments)

    def _log_started(self, log: DirtyLog) -> Event:
        """The guest records writes: tell the workers how to read it."""
        self._guardian.arm(self._guest.rescue())
        self._report.tracker, self._report.tracker_reason = log.kind, log.reason
        fd = self._guest.dirty_bitmap_fd() if log.kind == "bitmap" else -1
        area_bytes = log_area_bytes(log, [one.block for one in self._guest.memory()])
        if area_bytes:
            self._log_fd = fd = os.memfd_create("parmig-digests", os.MFD_CLOEXEC)
            os.ftruncate(fd, area_bytes)
        for worker in range(len(self._pool)):
            self._pool.tell(worker, messages.StartTracking(log, fd >= 0), fd)
        return events.LogStarted(needs_sync=log.kind == "bitmap")

    def _save_state(self, sink: StateSender) -> None:
        sink.early = False
        self._guest.save_state(sink)

    def _state_saved(self, _: object) -> Event:
        assert self._state is not None
        return events.StateSaved(self._state.size_bytes, self._state.digest)

    # -- the end --------------------------------------------------------------------------------

    def _tear_down(self, error: ParmigError | None) -> None:
        """On every way out: the guest first, then the peer, then everything of ours."""
        status = self._plan.status if self._plan is not None else MigrationStatus.NONE
        if self._state is not None:
            self._state.abort()
        problems = []
        abandoned = status in BEFORE_HAND_OVER or status in (MigrationStatus.FAILED, MigrationStatus.CANCELLED)
        touched = self._plan is not None and status is not MigrationStatus.SETUP
        for step in (
            *([self._guest.resume_source] if abandoned and touched else []),
            self._guest.stop_dirty_log,
            *([self._guest.finish_source] if status is MigrationStatus.COMPLETED else []),
            *([self._guest.quit] if status is MigrationStatus.COMPLETED and self._config.quit_source else []),
        ):
            try:
                self._thread.call(step)
            except Exception as caught:  # everything else must still be given back
                problems.append(f"{step.__name__}: {caught}")
        self._guardian.close()
        self._farewell(status, error)
        self._pool.close()
        self._thread.close()
        if self._state_transport is not None:
            self._state_transport.shutdown()
        if self._control is not None:
            self._control.close(linger_ms=500)
        self._context.term()
        if self._shared is not None:
            self._meter = None
            self._shared.close()
        if self._log_fd >= 0:
            os.close(self._log_fd)
        for words in problems:
            self._tell_progress(Progress(status=status.value, message=f"while ending: {words}"))

    def _farewell(self, status: MigrationStatus, error: ParmigError | None) -> None:
        if self._control is None:
            return
        if error is None and self._plan is not None:
            error = self._plan.error
        message: messages.ControlMessage = messages.Goodbye()
        if status is not MigrationStatus.COMPLETED:
            message = messages.Failure(messages.describe_error(error or CancelledError("the source gave up")))
        try:
            self._control.write(message)
        except ParmigError:
            pass

    def _tell_progress(self, progress: Progress) -> None:
        if self._progress is not None:
            self._progress(progress)

    def _final_report(self, error: ParmigError | None, began_ns: int, ended_ns: int) -> Report:
        report = self._report
        marks = self._plan.record.marks if self._plan is not None else {}
        # As in QEMU: to the end of the migration, not of our own cleaning up; set-up ends where round 1 begins.
        report.total_time_ms = (marks.get("resumed", ended_ns) - began_ns) / NS_PER_MS
        report.setup_time_ms = (marks.get("active", ended_ns) - began_ns) / NS_PER_MS
        if self._plan is not None:
            record = self._plan.record
            error = error or self._plan.error
            report.status = self._plan.status.value
            report.rounds, report.ram = record.rounds, record.ram()
            report.per_worker, report.paths = record.per_worker(self._paths), sorted(set(self._paths))
            report.throughput_mib_per_s = record.throughput_mib_per_s()
            report.downtime_ms = record.downtime_ms()
            report.state_bytes = self._plan.state_bytes
            report.digest = DigestReport(source=self._plan.source_digest, destination=self._plan.peer_digest)
            if report.digest.source is not None and report.digest.destination is not None:
                report.verified = report.digest.source == report.digest.destination
            if report.downtime_ms is not None:
                report.downtime_phases_ms = record.phases()
        if error is not None:
            report.error = messages.describe_error(error, error.phase or "setup")
            if report.status not in ("cancelled", "unknown"):
                report.status = "cancelled" if isinstance(error, CancelledError) else "failed"
        return report
