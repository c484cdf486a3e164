# SPDX-License-Identifier: Apache-2.0
"""The end of the source's plan: from the news that the destination is ready, or from a failure. Pure.

The hand-over is on record (``handover_record``) before it is sent. After that, only the destination's word *refused*,
or the proof that nothing was sent, gives the guest back; and that is on record before the guest runs here.
"""

from __future__ import annotations

from parmig.engine.plan import events
from parmig.engine.plan.comparison import Comparison
from parmig.engine.plan.events import Do, Event, Instruction, Recorded, RecordFailed, WriteRecord
from parmig.engine.plan.plan import Plan
from parmig.engine.records.handover_record import RecordState
from parmig.engine.reporting.record import Record
from parmig.engine.source_plan.source_steps import NOBODY_NS, Step
from parmig.errors import CancelledError, ParmigError, PeerFailedError
from parmig.status import MigrationStatus, StatusEvent


class SourceEnd(Plan[Instruction]):
    """Ends the source's plan. The outcome is known before the memories are compared, and does not change any more.

    Attributes:
        record: what is measured.
        comparison: what is compared after the hand-over; None: nothing.
        source_digest, peer_digest: of all memory on either side, if they were compared.
        may_ask: whether the destination answers a source that lost it and asks who has the guest.
    """

    step: Step
    record: Record
    comparison: Comparison | None
    source_digest: str | None
    peer_digest: str | None
    may_ask = False
    _asks_since_ns = 0
    _written = False
    """Whether the hand-over may be on record."""

    @property
    def over(self) -> bool:
        """Whether the plan has ended; every further event is ignored."""
        return super().over and self.step not in (Step.COMPARING, Step.RETURNING)

    @property
    def hears_workers(self) -> bool:
        """Whether the workers matter now."""
        return super().hears_workers or self.step is Step.COMPARING

    def handle(self, event: Event, now_ns: int) -> list[Instruction]:
        """Take one event and return what to do next, in order."""
        if self.step is Step.RETURNING:
            return self._returned(event)
        comparison = self.comparison
        if self.step is not Step.COMPARING or comparison is None:
            return super().handle(event, now_ns)
        decided = comparison.handle(event, now_ns)
        if comparison.over:
            self.source_digest, self.peer_digest = comparison.source_digest, comparison.peer_digest
            self.error = comparison.error
            self.record.mark("compared", now_ns)
            self.step = Step.DONE
        return decided

    def _proceed_end(self, event: Event, now_ns: int) -> list[Instruction] | None:
        """Take an event that concerns the hand-over; None: it does not, or came at the wrong time."""
        match self.step, event:
            case Step.LOADING, events.PeerLoaded() if self.suspected is not None:
                return self._fail(self.suspected)  # never hand over while a failure is suspected
            case Step.LOADING, events.PeerLoaded(load_ns=load_ns):
                self.record.load_ns = load_ns
                self.record.mark("loaded", now_ns)
                return self._loaded(now_ns)
            case Step.RECORDING, Recorded() if self.suspected is not None:
                return self._fail(self.suspected)
            case Step.RECORDING, Recorded():
                self.machine.move(StatusEvent.HANDED_OVER)
                self.step = Step.RESUMING
                return [Do.HAND_OVER]
            case Step.RECORDING, RecordFailed(error=error):
                return self._fail(error)
            case ((Step.LOADING | Step.BEFORE_HAND_OVER_PROGRAM | Step.RECORDING), events.PeerRefused(error=error)):
                return self._fail(error)
            case Step.RESUMING, events.HandOverNotSent(error=error):
                return self._end(StatusEvent.NOT_SENT, error)
            case ((Step.RESUMING | Step.ASKING), events.PeerRefused(error=error)):
                return self._end(StatusEvent.REFUSED, error)
            case Step.RESUMING, events.PeerResumed(since_ns=since_ns):
                return self._resumed(since_ns, now_ns)
            case Step.ASKING, events.PeerTook(since_ns=since_ns):
                return self._resumed(since_ns, now_ns)
            case Step.ASKING, events.NobodyListens(error=error) if now_ns - self._asks_since_ns >= NOBODY_NS:
                return self._end(StatusEvent.PEER_LOST, error)
            case Step.ASKING, events.PeerResumed() | events.NobodyListens():
                return []  # of the connection that was lost
        return None

    def _loaded(self, now_ns: int) -> list[Instruction]:
        """The destination is ready."""
        return self._record_hand_over(now_ns)

    def _record_hand_over(self, now_ns: int) -> list[Instruction]:
        """Nothing is left to do before the hand-over."""
        self.step, self._written = Step.RECORDING, True
        return [WriteRecord(RecordState.HANDED_OVER)]

    def _resumed(self, since_ns: int, now_ns: int) -> list[Instruction]:
        # Never before hand-over, whatever the peer reports.
        ran_ns = max(now_ns - since_ns, self.record.ready_ns())
        self.record.mark("resumed", ran_ns)
        self.record.mark("finished", ran_ns)
        self.machine.move(StatusEvent.RESUMED)
        noted: list[Instruction] = [WriteRecord(RecordState.COMPLETED)]  # what it answers is ignored
        if self.comparison is None:
            self.step = Step.DONE
            return [*noted, Do.FINISH]
        self.record.mark("comparing", now_ns)
        self.step = Step.COMPARING
        return [*noted, *self.comparison.begin(now_ns)]

    def _suspect(self, error: ParmigError, now_ns: int) -> list[Instruction]:
        if self.status is not MigrationStatus.HAND_OVER:
            return super()._suspect(error, now_ns)
        if not self.may_ask:
            return self._end(StatusEvent.PEER_LOST, error)  # no better reason would change anything
        if self.step is Step.RESUMING:
            self.step, self._asks_since_ns = Step.ASKING, now_ns
            return [Do.ASK]
        return []

    def _cancel(self) -> list[Instruction]:
        if self.step is Step.ASKING:
            return self._fail(CancelledError("cancelled while the destination was asked whether it has the guest"))
        return super()._cancel()

    def _ending(self, status: MigrationStatus) -> list[Instruction]:
        if status is MigrationStatus.UNKNOWN:
            return [Do.GIVE_UP]
        if not self._written:
            return [Do.ABANDON]
        self.step = Step.RETURNING
        return [WriteRecord(RecordState.RETURNED)]

    def _returned(self, event: Event) -> list[Instruction]:
        """The guest stays here; that need not be on record for it to run again, since this process knows it."""
        if not isinstance(event, Recorded | RecordFailed) or event.state is not RecordState.RETURNED:
            return []
        self.step = Step.DONE
        return [Do.ABANDON]


def refused_by(report_message: str) -> PeerFailedError:
    """The error of a source whose destination was ready, and then refused the guest."""
    return PeerFailedError(f"the destination refused the guest after all: {report_message}; the guest continues here")
