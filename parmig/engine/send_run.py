# SPDX-License-Identifier: Apache-2.0
"""The running sender: carries out what the source's plan decides about the destination."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

from parmig.engine import events, peer_messages
from parmig.engine.control import ControlChannel
from parmig.engine.coordinator import Coordinator
from parmig.engine.digest_messages import Digested, DigestRequest, Digests, DigestsRequest
from parmig.engine.events import AskDigests, Do, Event, Instruction
from parmig.engine.lasting_channels import ChannelNote
from parmig.engine.outages import lost_line, resumed_line
from parmig.engine.report import Progress
from parmig.engine.source_run import Means, SourceRun
from parmig.engine.state_channel import StateSender
from parmig.errors import ParmigError, PeerFailedError, PeerLostError, ProtocolError
from parmig.ram.blocks import BlockMemory
from parmig.ram.shared import SharedArea
from parmig.units import NS_PER_S

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
    ) -> None:
        super().__init__(means, plan, memory, shared, state)
        self._control = control
        self._state_sender = state
        self._notes = notes
        self._reported_ns = 0
        self._watch_all(*control.pollables())

    # -- what the destination sends -------------------------------------------------------------

    def _round_began(self) -> None:
        self._reported_ns = time.monotonic_ns()
        self._say(peer_messages.Progressed(self.plan.status.value, self.plan.round))

    def _listen(self) -> None:
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

    def _attend_state(self) -> None:
        """Notice the loss of the state channel while nobody writes to it."""
        if "active" in self.plan.record.marks and "pausing" not in self.plan.record.marks:
            try:
                self._state_sender.attend()
            except ParmigError as error:
                self._fail(error)

    def _take_notes(self) -> None:
        while self._notes:
            channel, reason, lasted_ns = self._notes.popleft()
            if reason:
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
            case peer_messages.Failure(error=report):
                words = f"the destination failed: {report.message}"
                if report.type == PeerLostError.__name__:  # a symptom there too
                    return events.Suspected(PeerLostError(words))
                return events.Failed(PeerFailedError(words))
        name = type(message).__name__
        return events.Failed(ProtocolError(f"the destination sent {name} while {self.plan.step.value}"))

    # -- doing ----------------------------------------------------------------------------------

    def _carry_out(self, instruction: Instruction) -> None:
        if instruction is Do.PAUSE:
            self._control.end_with_connection()
        if isinstance(instruction, AskDigests):
            self._say(DigestsRequest(instruction.region, instruction.first))
        else:
            super()._carry_out(instruction)

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
            self.handed_over = False  # a write that fails has not sent the whole message, and never will
            self._feed(events.HandOverNotSent(error))

    def _save_state(self) -> None:
        self._state_sender.early = False
        super()._save_state()
