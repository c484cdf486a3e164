# SPDX-License-Identifier: Apache-2.0
"""The running sender: carries out what the source's plan decides about the destination."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Sequence

from parmig.engine.channels.control import ControlChannel
from parmig.engine.channels.lasting_channels import ChannelNote
from parmig.engine.channels.state_channel import StateSender
from parmig.engine.handover.questions import ask_for_guest
from parmig.engine.handover.record_keeper import RecordKeeper
from parmig.engine.messages import peer_messages
from parmig.engine.messages.digest_messages import Digested, DigestRequest, Digests, DigestsRequest
from parmig.engine.messages.handover_messages import Refused
from parmig.engine.plan import events
from parmig.engine.plan.events import AskDigests, Do, Event, Instruction, Replace, WriteRecord
from parmig.engine.plan.held_events import PeerRestarted
from parmig.engine.records.handover_record import RecordState
from parmig.engine.reporting.outages import lost_line, of_worker, resumed_line
from parmig.engine.reporting.report import Progress
from parmig.engine.source.means import Means
from parmig.engine.source.source_run import SourceRun
from parmig.engine.source_plan.coordinator import Coordinator
from parmig.engine.source_plan.source_end import refused_by
from parmig.engine.source_plan.source_steps import Step
from parmig.errors import ParmigError, PeerFailedError, PeerLostError, ProtocolError
from parmig.ram.blocks import BlockMemory
from parmig.ram.channel_messages import EPOCHS
from parmig.ram.shared import SharedArea
from parmig.transport.transport import Endpoint
from parmig.units import NS_PER_S

_logger = logging.getLogger(__name__)

REPORT_EVERY_NS = 5 * NS_PER_S
"""How often the destination receives our progress. It gives up after a minute without a message."""


class SendRun(SourceRun):
    """Drives the source's plan, with a destination at the other end.

    Args:
        means: not owned.
        plan: decides.
        memory: of the guest.
        shared: the workers' counters; not owned.
        state: the state channel; not owned.
        control: the control channel; not owned.
        notes: what happened to both channels.
        endpoint: where the destination listens, to ask it after the hand-over.
        keeper: of the record of the hand-over; not owned.
    """

    def __init__(
        self,
        means: Means,
        plan: Coordinator,
        memory: Sequence[BlockMemory],
        shared: SharedArea,
        state: StateSender,
        control: ControlChannel,
        notes: deque[ChannelNote],
        endpoint: Endpoint,
        keeper: RecordKeeper,
    ) -> None:
        super().__init__(means, plan, memory, shared, state)
        self._control = control
        self._endpoint = endpoint
        self._keeper = keeper
        self._state_sender = state
        self._notes = notes
        self._incarnations = 0
        self._reported_ns = 0
        self._watch_all(*control.pollables())

    # -- what the destination sends -------------------------------------------------------------

    def _round_began(self) -> None:
        self._reported_ns = time.monotonic_ns()
        self._say(peer_messages.Progressed(self.plan.status.value, self.plan.round))

    def _listen(self) -> None:
        if self.plan.step is Step.ASKING:
            self._ask()
            return
        if time.monotonic_ns() - self._reported_ns > REPORT_EVERY_NS and self.plan.hears_workers:
            self._round_began()  # a sign of life
        try:
            for message in self._messages(self._control):
                self._feed(self._peer_event(message))
        except PeerLostError as error:
            self._fail(error)
            self._forget(self._control.pollables())
        except ProtocolError as error:
            self._fail(error)
        self._attend_state()
        self._take_notes()

    def _feed(self, event: Event) -> None:
        checks = self.plan.step is Step.CHECKING_HELD
        super()._feed(event)
        if checks and self.plan.step is Step.SENDING:
            _, restart = self.plan.record.restarts[-1]
            self._show_line(f"the destination holds {restart.proven_pages} pages; {restart.again_pages} differ")

    def _attend_state(self) -> None:
        """Notice the loss of the state channel while nobody writes to it."""
        if "active" in self.plan.record.marks and "pausing" not in self.plan.record.marks:
            try:
                self._state_sender.attend()
            except ParmigError as error:
                self._fail(error)

    def _take_notes(self) -> None:
        while self._notes:
            channel, reason, lasted_ns, restarted = self._notes.popleft()
            if restarted:
                self._show_line("the destination's receiver was started again; its memory is compared first")
                counters = (self._shared.counters(worker) for worker in range(len(self._pool)))
                self._feed(PeerRestarted(tuple(counters)))
            elif reason:
                self._feed(events.ChannelLost(channel, reason))
                self._show_line(lost_line(channel, reason))
            else:
                self._feed(events.ChannelResumed(channel))
                self._show_line(resumed_line(channel, lasted_ns))
                self._reported_ns = 0  # the destination has heard nothing for long

    def _peer_event(self, message: peer_messages.ControlMessage) -> Event:
        match message:
            case Digested(digest=digest):
                return events.PeerDigested(digest)
            case Digests(region=region, first=first, digests=digests):
                return events.PeerDigests(region, first, digests)
            case peer_messages.Loaded(load_ns=load_ns):
                return events.PeerLoaded(load_ns)
            case peer_messages.Resumed(since_ns=since_ns):
                return events.PeerResumed(since_ns)
            case Refused(error=report):
                return events.PeerRefused(refused_by(report.message))
            case peer_messages.Failure(error=report):
                words = f"the destination failed: {report.message}"
                if report.type == PeerLostError.__name__:  # a symptom there too
                    return events.Suspected(PeerLostError(words))
                return events.Failed(PeerFailedError(words))
        name = type(message).__name__
        return events.Failed(ProtocolError(f"the destination sent {name} while {self.plan.step.value}"))

    def _ask(self) -> None:
        """Ask the destination, which was lost after the hand-over, once."""
        try:
            answer = ask_for_guest(self._endpoint, self._keeper.record.session, security=self._control.security)
        except ParmigError as error:
            _logger.info("the destination did not answer who has the guest: %s", error)
            if isinstance(error.__cause__, ConnectionRefusedError):
                self._feed(events.NobodyListens(error))
            return
        if answer.owner == "here":
            self._feed(events.PeerTook(answer.since_ns))
        elif answer.owner == "there":
            self._feed(events.PeerRefused(refused_by("it lost this side before it heard of the hand-over")))

    # -- doing ----------------------------------------------------------------------------------

    def _carry_out(self, instruction: Instruction) -> None:
        if instruction is Do.PAUSE:
            self._control.end_with_connection()
        match instruction:
            case Replace():
                self._replace_worker(instruction)
            case AskDigests(region=region, first=first):
                self._say(DigestsRequest(region, first))
            case WriteRecord(state=state):
                self._write_record(state)
            case _:
                super()._carry_out(instruction)

    def _write_record(self, state: RecordState) -> None:
        if state is RecordState.RETURNED:
            self.handed_over = False
        written = self._keeper.write(state, self._custody.rescue, runs=self._custody.ran is not False)
        if state is RecordState.RETURNED:
            self._custody.take_back()  # it reads the record, so not earlier
        self._feed(written)

    def _replace_worker(self, replace: Replace) -> None:
        """Start a worker in place of one that has died. What was known of its regions is forgotten."""
        channel = of_worker(replace.worker)
        self._feed(events.ChannelLost(channel, replace.reason))
        self._show_line(lost_line(channel, replace.reason))
        self._shared.forget_regions(replace.regions, self.plan.regions)
        self._incarnations += 1
        self._pool.replace(replace.worker, epoch=self._incarnations * EPOCHS)
        if self._tracking is not None:
            self._pool.instruct(replace.worker, *self._tracking)
        self._watch_all(*self._control.pollables())

    def _do(self, what: Do) -> None:
        match what:
            case Do.ASK_DIGEST:
                self._say(DigestRequest())
            case Do.RELEASE:
                self._say(peer_messages.Release(self.plan.state_bytes, self.plan.state_digest))
            case Do.HAND_OVER:
                self._custody.disarm()
                self.handed_over = True
                self._watch(*self._control.pollables())  # nothing else matters from now on
                self._say(peer_messages.HandOver(run=self._custody.ran is not False))
            case Do.ASK:
                self._forget(self._control.pollables())
                message = f"the destination was lost after the hand-over; {self.plan.step.value}, at {self._endpoint}"
                self._show(Progress(status=self.plan.status.value, round=self.plan.round, message=message))
            case Do.COMPARE:
                self._watch_all(*self._control.pollables())
                status, round_ = self.plan.status.value, self.plan.round
                self._show(Progress(status=status, round=round_, message=self.plan.step.value))
            case Do.FINISH | Do.ABANDON | Do.GIVE_UP:
                pass  # the loop ends, and the tear-down does it

    def _say(self, message: peer_messages.ControlMessage) -> None:
        try:
            self._control.write(message)
        except PeerLostError as error:
            if not isinstance(message, peer_messages.HandOver):
                self._fail(error)
                return
            # A write that fails has not sent the whole message, and never will.
            self._feed(events.HandOverNotSent(error))

    def _save_state(self) -> None:
        self._state_sender.early = False
        super()._save_state()
