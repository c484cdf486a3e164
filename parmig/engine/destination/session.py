# SPDX-License-Identifier: Apache-2.0
"""One source's session at the destination, from its admission on: carries out the plan."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence

from parmig.config import ReceiveConfig
from parmig.engine.agreement.agreement import ASK_FOR_GUEST, VERIFY_AFTER, agreed_version, choice_of, reconnect_ns_of
from parmig.engine.channels.control import ControlChannel
from parmig.engine.channels.lasting_channels import ChannelNote, ShownOutages
from parmig.engine.destination.listeners import Listeners
from parmig.engine.destination.resuming import Resuming
from parmig.engine.destination_plan.destination import DestinationPlan
from parmig.engine.driver import Driver
from parmig.engine.guest_thread import GuestThread
from parmig.engine.handover.promise import Promise
from parmig.engine.messages import peer_messages, worker_messages
from parmig.engine.messages.peer_messages import Configure
from parmig.engine.plan import destination_events as events
from parmig.engine.plan.destination_events import Act, Event, Instruct, Instruction, Replace, SendMessage, Show
from parmig.engine.pool import WorkerPool
from parmig.engine.records.record_store import RecordStore
from parmig.engine.reporting import error_reports
from parmig.engine.reporting.encryption_report import encryption_report
from parmig.engine.reporting.outages import CONTROL, of_worker
from parmig.engine.reporting.report import DigestReport, Progress, Report
from parmig.errors import ParmigError, PeerLostError, ProtocolError
from parmig.guests.guest import Guest, GuestInfo
from parmig.ram.blocks import BlockMemory, page_size_of_memory
from parmig.status import BEFORE_HAND_OVER, BEFORE_PAUSE
from parmig.transport.transport import Endpoint

LINGER_MS = 500
"""How long the last message may take to leave."""


class ReceiveSession(Driver[Instruction]):
    """Receives the guest from one source. A failing constructor leaves nothing open.

    Args:
        wish: the wishes of the source, already checked.
        info: of the guest here.
        memory: of the guest here, in the source's numbering.
        config: where to listen.
        control: channel to the source; owned from here on, but not by a constructor that fails. None: the source had
            another receiver before, and comes back.
        endpoint: where the control channel was made, and where a source that was lost asks for its guest.
        store: for the record of the hand-over; not owned.
        resuming: whether another receiver had the source before, and whether another one can go on from here.
        in_place: numbers of the blocks that are not copied.
        guest: not owned.
        thread: in which the guest is called; not owned.
        progress: shows how far it is.

    Attributes:
        promise: the record of the hand-over, and the port at which a source that was lost asks.
    """

    def __init__(
        self,
        wish: Configure,
        info: GuestInfo,
        memory: Sequence[BlockMemory],
        config: ReceiveConfig,
        control: ControlChannel | None,
        endpoint: Endpoint,
        *,
        in_place: tuple[int, ...],
        store: RecordStore,
        resuming: Resuming,
        guest: Guest,
        thread: GuestThread,
        progress: Callable[[Progress], None],
    ) -> None:
        self.wish = wish
        self._info = info
        self._in_place = in_place
        self._endpoint = endpoint
        self._announce = config.announce
        self._notes: deque[ChannelNote] = deque()
        self._resuming = resuming
        point, security = resuming.point, control.security if control is not None else resuming.security
        self._listeners = Listeners(wish, memory, in_place, config, self._take_early, self._notes, point, security)
        try:
            token = self._listeners.token
            self.promise = Promise(store, guest, thread, token, endpoint, resuming.record, security)
            self._control = control or resuming.control(self._listeners, agreed_version(wish.capabilities), endpoint)
        except BaseException:
            self._listeners.close()
            raise
        self._state = self._listeners.state
        self._state_connected = self._state.connected
        self._state_bytes, self._control_lost = 0, False
        self._outages = ShownOutages(self._listeners.wish.workers, self._show_outage, self._needs_source)
        self._began_ns = time.monotonic_ns()
        self.plan = DestinationPlan(
            self._listeners.regions,
            self._listeners.wish.workers,
            verify=wish.verify,
            compared=VERIFY_AFTER in wish.capabilities,
            replaces=reconnect_ns_of(wish.capabilities) > 0,
            resumed=resuming.record is not None,
            may_ask=ASK_FOR_GUEST in wish.capabilities,
            outlives=self.promise.outlives,
            switchover_ns=wish.switchover_timeout_ns,
            max_state_bytes=config.max_state_bytes,
            now_ns=self._began_ns,
        )
        super().__init__(self.plan, guest, thread, self._listeners.pool, progress)
        self._watch_all()

    def _watch_all(self) -> None:
        """Wake the loop for everything that matters before the hand-over."""
        self._watch(*self._listeners.pollables(), *self._control.pollables(), self._guest.watch_fd())

    @property
    def pool(self) -> WorkerPool:
        """The receive workers."""
        return self._pool

    # -- what comes in --------------------------------------------------------------------------

    def _listen(self) -> None:
        if not self._control_lost:
            self._read_control()
        if self._needs_source() and self.plan.hears_workers:
            self._receive_state()
        if not self.plan.over and self.promise.heard():
            self._feed(events.Asked())
        self._outages.take(self._notes)
        self.plan.interrupted = CONTROL in self._outages.interrupted

    def _read_control(self) -> None:
        try:
            for message in self._messages(self._control):
                self._feed(events.Heard(message))
                if self.plan.status not in BEFORE_PAUSE:
                    self._control.end_with_connection()
        except PeerLostError as error:
            self._control_lost = True
            self._forget(self._control.pollables())
            self._feed(events.PeerVanished(error))
        except ProtocolError as error:
            self._feed(events.Garbled(error))

    def _receive_state(self) -> None:
        try:
            self._state.receive()
        except ParmigError as error:
            self._fail(error)
            self._forget(self._state.pollables())
        self._note_state()

    def _take_early(self, data: bytes) -> None:
        self._note_connection()
        self._feed(events.EarlyState(data))

    def _note_connection(self) -> None:
        if self._state.connected and not self._state_connected:
            self._state_connected = True
            self._watch_all()
            self._feed(events.StateConnected())

    def _note_state(self) -> None:
        self._note_connection()
        if self._state.size_bytes != self._state_bytes:
            self._state_bytes = self._state.size_bytes
            self._feed(events.StateArrived(self._state_bytes, self._state.digest))

    def _worker_event(self, worker: int, message: worker_messages.WorkerEvent) -> Event | None:
        match message:
            case worker_messages.WorkerReady(port=port):
                self._listeners.note_port(worker, port)
                return events.WorkerListens(worker)
            case worker_messages.WorkerConnected(pid=pid):
                self._listeners.note_writer(pid)
                return events.WorkerConnected(worker)
            case worker_messages.ChannelLost(reason=reason):
                self._outages.note_lost(of_worker(worker), reason)
                return None
            case worker_messages.ChannelResumed(lasted_ns=lasted_ns):
                self._outages.note_resumed(of_worker(worker), lasted_ns)
                return None
            case worker_messages.RegionDigests(digests=digests):
                return events.WorkerDigested(worker, digests)
            case worker_messages.PagesDigested(region=region, first=first, digests=pages):
                return events.WorkerDigestedPages(region, first, pages)
        return events.Failed(ProtocolError(f"receive worker {worker} sent {type(message).__name__}"))

    def _needs_source(self) -> bool:
        return self.plan.status in BEFORE_HAND_OVER

    def _show_outage(self, line: str) -> None:
        self._show(Progress(status=self.plan.status.value, message=line))

    # -- doing ----------------------------------------------------------------------------------

    def _carry_out(self, instruction: Instruction) -> None:
        match instruction:
            case SendMessage(message=message):
                self._say(message)
            case Show(status=status, round=round_):
                self._show(Progress(status=status, round=round_))
            case Instruct(worker=worker, instruction=worker_instruction):
                self._pool.instruct(worker, worker_instruction)
            case Replace(worker, reason):
                self._outages.note_lost(of_worker(worker), reason)
                self._listeners.replace(worker)
                self._watch_all()
            case events.WriteState(data=data):
                self._begin(lambda _: None, self._guest.write_state, memoryview(data))
            case Act.ACCEPT:
                self._let_in()
            case Act.LOAD:
                self._resuming.end()
                self._begin(self._loaded, self._load)
            case events.WriteRecord(state=state):
                self._feed(self.promise.write(state, run=self.plan.run))
            case Act.ATTEND:
                self._watch(*self._control.pollables(), self._guest.watch_fd())
            case Act.LISTEN:
                self._listen_for_question()
            case Act.ANSWER:
                self.promise.answer()
            case Act.COMPARE:
                self._watch(*self._pool.pollables(), *self._control.pollables(), self._guest.watch_fd())
            case Act.RUN:
                self._begin(events.GuestRuns, self._run_guest)
                if self._announce:
                    self._thread.begin(lambda _: None, self._guest.announce)  # a failure is only logged
            case Act.FINISH | Act.LET_GO | Act.DISCARD | Act.KEEP:
                pass  # the loop ends, and the receiver does it

    def _let_in(self) -> None:
        listeners = self._listeners
        if self._resuming.record is not None:
            self._resuming.let_in(listeners, self._control.transport)
        else:
            self._resuming.keep(listeners, self.wish, self._endpoint)
            self._say(listeners.accept_message(self._info), listeners.passed_files)
            everywhere = listeners.everywhere(self._endpoint)
            self._control.transport = listeners.lasting.listening(CONTROL, self._control.transport, everywhere)
        self._watch_all()

    def _listen_for_question(self) -> None:
        words, status = f"the source was lost; {self.plan.step.value}", self.plan.status.value
        self.promise.listen(lambda line: self._show(Progress(status=status, message=f"{words}; {line}")))
        control = [] if self._control_lost else self._control.pollables()
        self._watch(*control, *self.promise.pollables(), self._guest.watch_fd())

    def _run_guest(self) -> int:
        ran_ns = self.promise.ran_ns = self._guest.resume()
        return ran_ns

    def _say(self, message: peer_messages.ControlMessage, fds: Sequence[int] = ()) -> None:
        try:
            self._control.write(message, fds)
        except PeerLostError as error:
            self._fail(error)  # the source's last message may still wait to be read

    def _loaded(self, _: None) -> Event:
        self._read_control()  # a source that is gone by now was never promised anything
        return events.StateLoaded()

    def _load(self) -> None:
        for piece in self._state.held():
            self._guest.write_state(memoryview(piece))
        self._guest.finish_load()

    # -- the end --------------------------------------------------------------------------------

    def fill_in(self, report: Report) -> None:
        """Add to *report* what this session knows."""
        report.status = self.plan.status.value
        report.state_bytes = self.plan.state_bytes
        if self.plan.error is not None:
            report.error = error_reports.describe_error(self.plan.error)
        if not self.plan.established:
            return
        report.encryption = encryption_report(self._control.encryption, self.wish.transport)
        report.compression, report.transport = choice_of(self.wish), self.wish.transport
        report.guest.memory_bytes = sum(block.size_bytes for block in self.wish.blocks)
        report.guest.page_size_bytes = page_size_of_memory(self.wish.blocks)
        report.workers, report.ram = len(self._pool), self._listeners.ram_report()
        report.ram.note_in_place([self.wish.blocks[number] for number in self._in_place])
        report.outages = self._outages.reports(self._began_ns, time.monotonic_ns(), completed=self.plan.error is None)
        report.codecs = self._listeners.codec_reports()
        report.digest = DigestReport(source=self.plan.source_digest, destination=self.plan.digest)
        if self.plan.source_digest is not None:
            report.verified = self.plan.source_digest == self.plan.digest

    def close(self) -> None:
        """End the workers, and close all channels."""
        self.promise.close()
        self._listeners.close()
        self._control.close(linger_ms=LINGER_MS)
        self._resuming.close()
