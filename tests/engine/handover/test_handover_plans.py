# SPDX-License-Identifier: Apache-2.0
"""Both plans around the hand-over: what is on record before it is done, and who has the guest if one side is lost."""

from __future__ import annotations

import pytest

from parmig.engine.destination_plan.destination_steps import ANSWER_LIMIT_NS
from parmig.engine.destination_plan.destination_steps import Step as There
from parmig.engine.messages import peer_messages as m
from parmig.engine.messages.handover_messages import Refused
from parmig.engine.plan import destination_events as d
from parmig.engine.plan import events as s
from parmig.engine.plan.destination_events import Act, SendMessage
from parmig.engine.plan.events import Do, WriteRecord
from parmig.engine.records.handover_record import RecordState
from parmig.engine.reporting.report import ErrorReport
from parmig.engine.source_plan.source_steps import NOBODY_NS
from parmig.errors import (
    CancelledError,
    GuestError,
    OutcomeUnknownError,
    ParmigError,
    PeerFailedError,
    PeerLostError,
    RecordError,
)
from parmig.status import MigrationStatus
from parmig.units import NS_PER_MS
from tests.engine.destination_plan import test_destination
from tests.engine.plan import test_plan

GONE = PeerLostError("gone")
FULL = RecordError("no space left")
ANSWER_MS = ANSWER_LIMIT_NS // NS_PER_MS
KEPT_MS = 2 * test_destination.SWITCHOVER_MS


# -- the source --------------------------------------------------------------------------------------


class Source(test_plan.Walk):
    """The source's plan, ready to hand over; records are written only when the test does it."""

    def __init__(self, *, may_ask: bool = True) -> None:
        super().__init__(may_ask=may_ask)
        self.to_release()

    def take(self, event: s.Event, now_ms: int | None = None) -> list[s.Instruction]:
        self.now_ms = self.now_ms if now_ms is None else now_ms
        return self.plan.handle(event, self.now_ms * NS_PER_MS)

    def handed_over(self) -> Source:
        assert self.take(s.PeerLoaded(1), 300) == [WriteRecord(RecordState.HANDED_OVER)]
        assert self.plan.status is MigrationStatus.DEVICE
        assert self.take(s.Recorded(RecordState.HANDED_OVER)) == [Do.HAND_OVER]
        return self

    def gives_back(self, told: list[s.Instruction], status: MigrationStatus = MigrationStatus.FAILED) -> None:
        assert told == [WriteRecord(RecordState.RETURNED)]
        assert not self.plan.over
        assert self.take(s.Tick()) == []
        assert self.take(s.Recorded(RecordState.RETURNED)) == [Do.ABANDON]
        assert (self.plan.over, self.plan.status) == (True, status)


def test_the_hand_over_is_on_record_before_it_is_sent_and_its_end_is_too() -> None:
    walk = Source().handed_over()
    assert walk.take(s.PeerResumed(0), 400) == [WriteRecord(RecordState.COMPLETED), Do.FINISH]
    assert walk.plan.over


@pytest.mark.parametrize("event", [s.RecordFailed(RecordState.HANDED_OVER, FULL), s.Failed(FULL)], ids=str)
def test_a_hand_over_that_cannot_be_recorded_is_not_sent(event: s.Event) -> None:
    walk = Source()
    walk.take(s.PeerLoaded(1), 300)
    walk.gives_back(walk.take(event))
    assert walk.plan.error is FULL


def test_a_cancel_while_it_is_recorded_still_gives_the_guest_back() -> None:
    walk = Source()
    walk.take(s.PeerLoaded(1), 300)
    walk.gives_back(walk.take(s.CancelAsked()), MigrationStatus.CANCELLED)


def test_a_loss_that_is_suspected_while_it_is_recorded_is_not_followed_by_a_hand_over() -> None:
    walk = Source()
    walk.take(s.PeerLoaded(1), 300)
    assert walk.take(s.Suspected(GONE)) == []
    walk.gives_back(walk.take(s.Recorded(RecordState.HANDED_OVER)))


def test_a_return_that_cannot_be_recorded_gives_the_guest_back_all_the_same() -> None:
    walk = Source().handed_over()
    assert walk.take(s.HandOverNotSent(GONE)) == [WriteRecord(RecordState.RETURNED)]
    assert walk.take(s.RecordFailed(RecordState.RETURNED, FULL)) == [Do.ABANDON]
    assert walk.plan.error is GONE


@pytest.mark.parametrize("lost", [False, True])
def test_what_the_destination_refuses_for_good_comes_back(lost: bool) -> None:
    walk = Source().handed_over()
    if lost:
        assert walk.take(s.Suspected(GONE)) == [Do.ASK]
    refused = PeerFailedError("refused")
    walk.gives_back(walk.take(s.PeerRefused(refused)))
    assert walk.plan.error is refused


def test_a_lost_destination_is_asked_and_may_have_the_guest() -> None:
    walk = Source().handed_over()
    assert walk.take(s.Suspected(GONE)) == [Do.ASK]
    assert walk.plan.status is MigrationStatus.HAND_OVER
    for late in (s.Suspected(GONE), s.PeerResumed(0), s.NobodyListens(GONE)):
        assert walk.take(late) == []
    assert walk.take(s.PeerTook(20 * NS_PER_MS), 400) == [WriteRecord(RecordState.COMPLETED), Do.FINISH]
    assert walk.plan.record.marks["resumed"] == 380 * NS_PER_MS


def test_a_destination_that_does_not_listen_any_more_is_given_up() -> None:
    walk = Source().handed_over()
    walk.take(s.Suspected(GONE), 1000)
    nobody = PeerLostError("refused")
    assert walk.take(s.NobodyListens(nobody), 1000 + NOBODY_NS // NS_PER_MS - 1) == []
    assert walk.take(s.NobodyListens(nobody), 1000 + NOBODY_NS // NS_PER_MS) == [Do.GIVE_UP]
    assert isinstance(walk.plan.error, OutcomeUnknownError)
    assert "parmig recover" in str(walk.plan.error)


def test_a_destination_that_never_answers_is_given_up_at_the_limit_of_the_pause() -> None:
    walk = Source().handed_over()
    walk.take(s.Suspected(GONE), 5000)
    assert walk.take(s.Tick(), 300 + 9_999) == []
    assert walk.take(s.Tick(), 300 + 10_000) == [Do.GIVE_UP]
    assert walk.plan.status is MigrationStatus.UNKNOWN


def test_the_user_may_end_the_questions() -> None:
    walk = Source().handed_over()
    walk.take(s.Suspected(GONE))
    assert walk.take(s.CancelAsked()) == [Do.GIVE_UP]
    assert isinstance(walk.plan.error, OutcomeUnknownError)
    assert isinstance(walk.plan.error.__cause__, CancelledError)


def test_an_older_destination_is_not_asked() -> None:
    walk = Source(may_ask=False).handed_over()
    assert walk.take(s.Suspected(GONE)) == [Do.GIVE_UP]


# -- the destination ---------------------------------------------------------------------------------


class Destination(test_destination.Walk):
    """The destination's plan; from :meth:`ready` on records are written only when the test does it."""

    def __init__(self, *, may_ask: bool = True, outlives: bool = False) -> None:
        super().__init__(may_ask=may_ask, outlives=outlives)

    def ready(self, step: There = There.LOADED) -> Destination:
        self.to(There.LOADED)
        self.disk = False
        assert self.written == [RecordState.PREPARED]
        if step is There.KEEPING:
            assert self.take(d.PeerVanished(GONE)) == [Act.LISTEN]
        assert self.plan.step is step
        return self

    def taking(self) -> Destination:
        self.ready()
        assert self.hear(m.HandOver(run=True)) == [WriteRecord(RecordState.TAKEN)]
        return self

    def refuses(self, told: list[d.Instruction], *, answers: bool = False) -> ParmigError:
        assert told == [WriteRecord(RecordState.REFUSED)]
        assert not self.plan.over
        first, *rest = self.take(d.Recorded(RecordState.REFUSED))
        assert isinstance(first, SendMessage)
        assert isinstance(first.message, Refused)
        assert rest == [*([Act.ANSWER] if answers else []), Act.DISCARD]
        assert self.plan.over
        assert not self.plan.handed_over
        assert not self.plan.undecided
        assert self.plan.error is not None
        return self.plan.error


PROMISED = pytest.mark.parametrize("step", [There.LOADED, There.KEEPING])


def test_loaded_is_said_only_once_it_is_on_record_whichever_ends_last() -> None:
    for events in (
        [d.StateLoaded(), d.Recorded(RecordState.PREPARED)],
        [d.Recorded(RecordState.PREPARED), d.StateLoaded()],
    ):
        walk = Destination()
        walk.to(There.HOLDING)
        walk.disk = False
        assert walk.take(d.StateArrived(47, "abcd")) == [Act.LOAD, WriteRecord(RecordState.PREPARED)]
        assert walk.take(events[0]) == []
        assert isinstance(walk.take(events[1])[0], SendMessage)
        assert walk.plan.promised


def test_a_promise_that_cannot_be_recorded_is_not_made() -> None:
    walk = Destination()
    walk.to(There.HOLDING)
    walk.disk = False
    walk.take(d.StateArrived(47, "abcd"))
    told = walk.take(d.RecordFailed(RecordState.PREPARED, FULL))
    assert isinstance(told[0], SendMessage)
    assert isinstance(told[0].message, m.Failure)
    assert told[1:] == [Act.DISCARD]
    assert not walk.plan.promised


def test_it_takes_before_it_runs() -> None:
    walk = Destination().taking()
    assert not walk.plan.handed_over
    assert walk.take(d.Recorded(RecordState.TAKEN)) == [Act.RUN]
    assert walk.plan.handed_over


@pytest.mark.parametrize("event", [d.CancelAsked(), d.Tick(), d.Suspected(GONE), d.Asked()], ids=str)
def test_nothing_interrupts_a_decision_that_is_written(event: d.Event) -> None:
    walk = Destination().taking()
    assert walk.take(event) == []
    assert walk.take(d.Recorded(RecordState.TAKEN)) == [Act.RUN]


def test_a_guest_that_dies_while_it_is_taken_leaves_the_outcome_unknown() -> None:
    walk = Destination().taking()
    assert walk.take(d.Failed(GuestError("died"))) == []
    assert walk.take(d.Recorded(RecordState.TAKEN))[-1] is Act.KEEP
    assert walk.plan.status is MigrationStatus.UNKNOWN


def test_what_cannot_be_recorded_as_taken_is_refused() -> None:
    walk = Destination().taking()
    assert walk.refuses(walk.take(d.RecordFailed(RecordState.TAKEN, FULL))) is FULL


def test_a_disk_that_takes_neither_decision_leaves_the_copy_and_the_outcome_open() -> None:
    walk = Destination().taking()
    walk.take(d.RecordFailed(RecordState.TAKEN, FULL))
    assert walk.take(d.RecordFailed(RecordState.REFUSED, FULL)) == [Act.KEEP]
    assert (walk.plan.status, walk.plan.undecided) == (MigrationStatus.UNKNOWN, True)


@PROMISED
def test_a_refusal_that_cannot_be_recorded_is_not_said_for_good(step: There) -> None:
    walk = Destination().ready(step)
    walk.take(d.CancelAsked())
    told = walk.take(d.RecordFailed(RecordState.REFUSED, FULL))
    assert isinstance(told[0], SendMessage)
    assert isinstance(told[0].message, m.Failure)
    assert told[1:] == [Act.DISCARD]


@PROMISED
def test_a_cancel_and_a_failure_of_either_side_refuse_what_was_promised(step: There) -> None:
    walk = Destination().ready(step)
    assert isinstance(walk.refuses(walk.take(d.CancelAsked())), CancelledError)
    assert walk.plan.status is MigrationStatus.CANCELLED
    walk = Destination().ready(step)
    assert isinstance(walk.refuses(walk.take(d.Failed(GuestError("died")))), GuestError)
    walk = Destination().ready(step)
    failure = m.Failure(ErrorReport(type="GuestError", message="no"))
    assert isinstance(walk.refuses(walk.hear(failure)), PeerFailedError)


def test_a_source_that_is_lost_or_silent_is_waited_for_and_gets_its_guest_when_it_asks() -> None:
    silent = Destination().ready()
    assert silent.take(d.Tick(), 6_000 + KEPT_MS) == [Act.LISTEN]
    for walk in (silent, Destination().ready(There.KEEPING)):
        assert walk.plan.step is There.KEEPING
        assert walk.take(d.Suspected(GONE)) == walk.take(d.Tick()) == walk.take(d.PeerVanished(GONE)) == []
        assert isinstance(walk.refuses(walk.take(d.Asked()), answers=True), PeerLostError)


def test_a_hand_over_that_comes_late_counts() -> None:
    walk = Destination().ready()
    walk.take(d.Tick(), 6_000 + KEPT_MS)
    assert walk.hear(m.HandOver(run=True)) == [WriteRecord(RecordState.TAKEN)]


def test_a_source_that_never_asks_leaves_the_copy_of_a_monitor_that_lives_on() -> None:
    walk = Destination(outlives=True).ready(There.KEEPING)
    assert walk.take(d.Tick(), walk.now_ms + KEPT_MS - 1) == []
    assert walk.take(d.Tick(), walk.now_ms + 1) == [Act.KEEP]
    assert (walk.plan.undecided, walk.plan.status) == (True, MigrationStatus.UNKNOWN)
    assert isinstance(walk.plan.error, OutcomeUnknownError)
    assert "parmig recover" in str(walk.plan.error)


def test_a_monitor_that_ends_with_the_command_refuses_then() -> None:
    walk = Destination().ready(There.KEEPING)
    walk.refuses(walk.take(d.Tick(), walk.now_ms + KEPT_MS))


def test_an_older_source_cannot_ask_so_its_loss_refuses_at_once() -> None:
    walk = Destination(may_ask=False).ready()
    assert walk.take(d.PeerVanished(GONE)) == [WriteRecord(RecordState.REFUSED)]
    told = walk.take(d.Recorded(RecordState.REFUSED))
    assert isinstance(told[0], SendMessage)
    assert isinstance(told[0].message, m.Failure)


def test_a_source_that_is_lost_after_the_hand_over_is_answered_once_the_guest_runs() -> None:
    walk = Destination().taking()
    walk.take(d.Recorded(RecordState.TAKEN))
    assert walk.take(d.PeerVanished(GONE)) == [Act.LISTEN]
    assert walk.take(d.Asked()) == walk.take(d.Asked()) == []
    assert walk.take(d.GuestRuns(walk.now_ms * NS_PER_MS))[1:] == [Act.ANSWER, Act.FINISH]


def test_a_source_that_is_lost_before_its_goodbye_is_waited_for_ten_seconds() -> None:
    walk = Destination().taking()
    walk.take(d.Recorded(RecordState.TAKEN))
    walk.take(d.GuestRuns(walk.now_ms * NS_PER_MS))
    assert walk.take(d.PeerVanished(GONE)) == [Act.LISTEN]
    assert (walk.plan.over, walk.plan.status) == (False, MigrationStatus.COMPLETED)
    assert walk.take(d.Tick(), walk.now_ms + ANSWER_MS - 1) == []
    assert walk.take(d.Tick(), walk.now_ms + 1) == [Act.FINISH]
    assert walk.plan.over
