# SPDX-License-Identifier: Apache-2.0
"""The end of the destination's plan: from the news that its guest is ready, which is a promise. Pure.

Until then the source owns the guest. From then on this side decides, once, and has its decision on record first::

    (loaded) wait for the hand-over ─ record *taken* ─ run ─ (goodbye) done
                     │ (source lost)     │ (failure)
                     keep the copy ──────┴─ (failure, cancel, or the source asks) record *refused* ─ discard

A copy that nobody asks for in time is left as it is, if its monitor lives on; else it is refused.
"""

from __future__ import annotations

from parmig.engine.destination_plan.destination_steps import (
    ANSWER_LIMIT_NS,
    GOODBYE_LIMIT_NS,
    SILENCE_LIMIT_NS,
    Step,
    overdue,
)
from parmig.engine.messages import peer_messages
from parmig.engine.messages.handover_messages import Refused
from parmig.engine.plan import destination_events as events
from parmig.engine.plan.comparison import PlacedAnswers
from parmig.engine.plan.destination_events import (
    Act,
    Event,
    Instruction,
    Recorded,
    RecordFailed,
    SendMessage,
    WriteRecord,
)
from parmig.engine.plan.plan import Plan
from parmig.engine.records.handover_record import RecordState
from parmig.engine.reporting import error_reports
from parmig.engine.reporting.report import ErrorReport
from parmig.errors import OutcomeUnknownError, ParmigError, PeerFailedError, PeerLostError, ProtocolError
from parmig.status import MigrationStatus, StatusEvent

PROMISED = (Step.LOADED, Step.KEEPING, Step.TAKING)
"""The source may have handed the guest over, and this side has not decided yet."""


class DestinationEnd(Plan[Instruction]):
    """Ends the destination's plan.

    Args:
        answers: what the source may ask about its memory after the hand-over.
        switchover_ns: how long the source's pause may take.
        may_ask: the source asks who has the guest if it loses this side after the hand-over.
        outlives: the guest's monitor lives on when this process ends.
        now_ns: the time now.

    Attributes:
        step: what is waited for.
        digest: of all memory, once the source asked for it and every worker has answered.
        source_digest: what the source reported of its own memory in the end, if it compared after the hand-over.
        promised: whether the source may have handed the guest over.
        handed_over: whether the guest belongs to this side.
        run: whether the guest is to run, as the source says at the hand-over.
        undecided: whether the copy stays as it is, since nobody knows whether the source has handed it over.
    """

    def __init__(
        self, answers: PlacedAnswers, *, switchover_ns: int, may_ask: bool, outlives: bool, now_ns: int
    ) -> None:
        super().__init__()
        self.step: Step = Step.STARTING
        self.digest: str | None = None
        self.source_digest: str | None = None
        self.promised = self.handed_over = self.undecided = False
        self._answers = answers
        self._switchover_ns = switchover_ns
        self._may_ask = may_ask
        self._outlives = outlives
        self._since_ns = now_ns
        self.run = True
        self._asked = self._vanished = self._taking = self._refused = False
        self._failed: ParmigError | None = None
        self._ends_by = StatusEvent.ERROR, ParmigError("refused")

    @property
    def over(self) -> bool:
        """Whether the plan has ended; every further event is ignored."""
        return self.machine.ended and self.step not in (Step.GOODBYE, Step.ANSWERING)

    @property
    def hears_workers(self) -> bool:
        """Whether the workers matter now. Once the guest is loaded, all that they had to do is done."""
        return (super().hears_workers and self.step not in (*PROMISED, Step.REFUSING)) or self._answers.begun

    def handle(self, event: Event, now_ns: int) -> list[Instruction]:
        """Take one event and return what to do next, in order."""
        self._asked |= isinstance(event, events.Asked)
        match self.step:
            case Step.LOADED | Step.KEEPING:
                return self._wait_for_hand_over(event, now_ns)
            case Step.TAKING:
                return self._taken(event, now_ns)
            case Step.RESUMING:
                return self._run_guest(event, now_ns)
            case Step.REFUSING:
                return self._refusing(event)
            case Step.GOODBYE:
                return self._await_goodbye(event, now_ns)
            case Step.ANSWERING:
                return self._answer_lost_source(event, now_ns)
        return super().handle(event, now_ns)

    def _go_on(self, step: Step, now_ns: int, *instructions: Instruction) -> list[Instruction]:
        """Take the next step, whose time begins now."""
        self.step, self._since_ns = step, now_ns
        return list(instructions)

    # -- ready ----------------------------------------------------------------------------------

    def _wait_for_hand_over(self, event: Event, now_ns: int) -> list[Instruction]:
        match event:
            case events.Heard(message=peer_messages.HandOver(run=run)):
                self.run, self._taking, self.suspected = run, True, None
                return self._go_on(Step.TAKING, now_ns, WriteRecord(RecordState.TAKEN))
            case events.Heard(message=peer_messages.Failure(error=report)):
                return self._fail(PeerFailedError(f"the source failed: {report.message}"))
            case events.Heard(message=peer_messages.Progressed(status=status, round=round_)):
                return [events.Show(status, round_)]
            case events.Heard(message=message):
                name = type(message).__name__
                return self._fail(ProtocolError(f"the source sent {name} while {self.step.value}"))
            case events.Asked():
                words = "the source was lost before it handed the guest over, and asked for it afterwards: it has it"
                return self._end(StatusEvent.PEER_LOST, PeerLostError(words))
            case events.PeerVanished() if self._may_ask:
                return self._keep(now_ns)
            case events.PeerVanished(error=error):
                words = f"the source is gone before hand-over ({error}); the guest stays there"
                return self._end(StatusEvent.PEER_LOST, PeerLostError(words))
            case events.Tick():
                return self._check_time(now_ns)
            case events.Suspected():
                return []  # the connections of the workers matter no more, and the control channel is watched itself
        return super().handle(event, now_ns)

    def _keep(self, now_ns: int) -> list[Instruction]:
        """The source is silent or gone. It may have sent the hand-over, so only it, or somebody who knows, decides."""
        if self.step is Step.KEEPING:
            return []
        return self._go_on(Step.KEEPING, now_ns, Act.LISTEN)

    def _leave(self, error: ParmigError) -> list[Instruction]:
        """End without a decision; the copy and its record stay as they are."""
        self.undecided = True
        words = (
            f"{error}; the guest may have been handed over, so its copy stays paused here: run parmig recover on the "
            "source, or here if the source's host is lost"
        )
        return self._end(StatusEvent.UNDECIDED, OutcomeUnknownError(words))

    # -- taken ----------------------------------------------------------------------------------

    def _taken(self, event: Event, now_ns: int) -> list[Instruction]:
        """The hand-over is being written. Whatever else happens changes nothing before that has an end."""
        match event:
            case Recorded(state=RecordState.TAKEN):
                self.handed_over = True
                self.machine.move(StatusEvent.HANDED_OVER)
                self._go_on(Step.RESUMING, now_ns)
                if self._failed is not None:
                    return self._fail(self._failed)
                listen: list[Instruction] = [Act.LISTEN] if self._vanished and self._may_ask else []
                return [*listen, *([Act.RUN] if self.run else self._resumed(now_ns, now_ns))]
            case RecordFailed(state=RecordState.TAKEN, error=error):
                return self._fail(error)
            case events.Failed(error=error):
                self._failed = error
            case events.PeerVanished():
                self._vanished = True
        return []

    def _run_guest(self, event: Event, now_ns: int) -> list[Instruction]:
        """The guest is ours, whatever the source, the workers or the user send."""
        match event:
            case events.GuestRuns(ran_ns=ran_ns):
                return self._resumed(ran_ns, now_ns)
            case events.PeerVanished():
                listens, self._vanished = self._may_ask and not self._vanished, True
                return [Act.LISTEN] if listens else []
            case events.Failed() | events.Tick():
                return super().handle(event, now_ns)
        return []

    def _resumed(self, ran_ns: int, now_ns: int) -> list[Instruction]:
        self.machine.move(StatusEvent.RESUMED)
        handed_over_ns = self._since_ns
        ran_ns = max(handed_over_ns, min(ran_ns, now_ns))
        resumed = SendMessage(peer_messages.Resumed(ran_ns - handed_over_ns, now_ns - ran_ns))
        if not self._vanished:
            return self._go_on(Step.GOODBYE, now_ns, resumed)
        if self._may_ask and not self._asked:
            return self._go_on(Step.ANSWERING, now_ns, resumed)
        return [resumed, *([Act.ANSWER] if self._asked else []), *self._finish()]

    def _await_goodbye(self, event: Event, now_ns: int) -> list[Instruction]:
        match event:
            case events.Heard(message=peer_messages.Goodbye(digest=digest)):
                self.source_digest = digest
                return self._finish()
            case events.PeerVanished():
                return self._go_on(Step.ANSWERING, now_ns, Act.LISTEN) if self._may_ask else self._finish()
            case events.Tick():
                limit_ns = SILENCE_LIMIT_NS if self._answers.begun else GOODBYE_LIMIT_NS
                return self._finish() if now_ns - self._since_ns >= limit_ns else []
        if isinstance(event, events.Heard):
            self._since_ns = now_ns
        return self._answers.handle(event)

    def _answer_lost_source(self, event: Event, now_ns: int) -> list[Instruction]:
        match event:
            case events.Asked():
                return [Act.ANSWER, *self._finish()]
            case events.CancelAsked():
                return self._finish()
            case events.Tick() if now_ns - self._since_ns >= ANSWER_LIMIT_NS:
                return self._finish()
        return []

    def _finish(self) -> list[Instruction]:
        self.digest = self.digest or self._answers.digest
        self.step = Step.DONE
        return [Act.FINISH]

    # -- refused --------------------------------------------------------------------------------

    def _end(self, event: StatusEvent, error: ParmigError) -> list[Instruction]:
        """End with *error*; after a promise, only once the refusal is on record."""
        if self.step not in PROMISED or event is StatusEvent.UNDECIDED:
            return super()._end(event, error)
        error.phase = error.phase or self._phase()
        self.step, self._ends_by = Step.REFUSING, (event, error)
        return [WriteRecord(RecordState.REFUSED)]

    def _refusing(self, event: Event) -> list[Instruction]:
        match event:
            case Recorded(state=RecordState.REFUSED):
                self._refused = True
                return super()._end(*self._ends_by)
            case RecordFailed(state=RecordState.REFUSED, error=error):
                # Once *taken* was tried, it may be on record. Else the copy may go: nobody can take it then.
                return self._leave(error) if self._taking else super()._end(*self._ends_by)
        return []

    def _last_words(self, status: MigrationStatus) -> list[Instruction]:
        """What to do last, after a failure, from the promise on."""
        if self.undecided:
            return [Act.KEEP]
        if not self._refused:
            failure = SendMessage(peer_messages.Failure(self._report()))
            return [failure, Act.KEEP if status is MigrationStatus.UNKNOWN else Act.DISCARD]
        kind = Refused if self._may_ask else peer_messages.Failure
        return [SendMessage(kind(self._report())), *([Act.ANSWER] if self._asked else []), Act.DISCARD]

    def _report(self) -> ErrorReport:
        return error_reports.describe_error(self.error or ParmigError("it ended without a reason"))

    # -- limits ---------------------------------------------------------------------------------

    def _check_time(self, now_ns: int) -> list[Instruction]:
        error = overdue(self.step, now_ns - self._since_ns, self._switchover_ns)
        if error is None:
            return []
        if self.step is Step.LOADED and self._may_ask:
            return self._keep(now_ns)
        if self.step is Step.KEEPING and self._outlives:
            return self._leave(error)
        return self._fail(error)
