# SPDX-License-Identifier: Apache-2.0
"""The destination's plan, step by step by hand: which instruction follows which event, limits, and the words."""

from __future__ import annotations

import pytest

from parmig.engine.destination_plan.destination import DestinationPlan
from parmig.engine.destination_plan.destination_steps import Step
from parmig.engine.messages import peer_messages as m
from parmig.engine.messages.digest_messages import Digested, DigestRequest
from parmig.engine.messages.worker_messages import DigestRegions
from parmig.engine.plan import destination_events as e
from parmig.engine.plan.destination_events import Act, Event, Instruction, SendMessage
from parmig.engine.records.handover_record import RecordState
from parmig.engine.reporting.report import ErrorReport
from parmig.errors import (
    CancelledError,
    GuestError,
    LimitExceededError,
    OutcomeUnknownError,
    ParmigError,
    PeerFailedError,
    PeerLostError,
    ProtocolError,
    StateError,
)
from parmig.ram.region_digest import combine
from parmig.ram.regions import Region
from parmig.status import MigrationStatus
from parmig.units import NS_PER_MS

MS = NS_PER_MS
REGIONS = [Region(0, number * 512, 512) for number in range(5)]
OWNED = ((0, 1), (2, 3, 4))
DIGESTS = {number: 7 * number for number in range(5)}
DIGEST = combine(DIGESTS, 5)
NO_STATE = "99aa06d3014798d86001c324468d497f"
SWITCHOVER_MS = 10_000
GONE = PeerLostError("gone")


class Walk:
    """A plan for two workers and five regions, whose clock is set by hand."""

    def __init__(
        self,
        *,
        verify: bool = True,
        switchover_ms: int = SWITCHOVER_MS,
        may_ask: bool = False,
        outlives: bool = False,
        disk: bool = True,
    ) -> None:
        self.now_ms = 1000
        self.written: list[RecordState] = []
        self.disk = disk
        self.plan = DestinationPlan(
            REGIONS,
            2,
            verify=verify,
            switchover_ns=switchover_ms * MS,
            may_ask=may_ask,
            outlives=outlives,
            max_state_bytes=1000,
            now_ns=self.now_ms * MS,
        )

    def take(self, event: Event, now_ms: int | None = None) -> list[Instruction]:
        """What the plan decides, but for the record: that is written at once, and the plan hears of it."""
        self.now_ms = self.now_ms if now_ms is None else now_ms
        told = self.plan.handle(event, self.now_ms * MS)
        if not self.disk or not told or not isinstance(told[-1], e.WriteRecord):
            return told
        self.written.append(told[-1].state)
        return [*told[:-1], *self.take(e.Recorded(told[-1].state))]

    def hear(self, message: m.ControlMessage, now_ms: int | None = None) -> list[Instruction]:
        return self.take(e.Heard(message), now_ms)

    def to(self, step: Step) -> Walk:
        """Up to *step*, which begins at 2000 ms times its number, but for the end of loading."""
        for number, (reached, events) in enumerate(WAY):
            if self.plan.step is step:
                break
            for event in events:
                self.told = self.take(event, 2000 * (number + 1))
            assert self.plan.step is reached
        assert self.plan.step is step
        return self


WAY: list[tuple[Step, list[Event]]] = [
    (Step.CONNECTING, [e.WorkerListens(0), e.WorkerListens(1)]),
    (Step.RECEIVING, [e.WorkerConnected(0), e.StateConnected(), e.WorkerConnected(1)]),
    (Step.HOLDING, [e.StateArrived(40, "abc"), e.Heard(m.Release(47, "abcd"))]),
    (Step.LOADING, [e.StateArrived(47, "abcd")]),
    (Step.LOADED, [e.StateLoaded()]),
    (Step.RESUMING, [e.Heard(m.HandOver(run=True))]),
    (Step.GOODBYE, [e.GuestRuns(12_500 * MS)]),
    (Step.DONE, [e.Heard(m.Goodbye())]),
]
AFTER = (Step.KEEPING, Step.TAKING, Step.REFUSING, Step.RESUMING, Step.GOODBYE, Step.ANSWERING, Step.DONE)
BEFORE = [step for step in Step if step not in AFTER]


def ended(walk: Walk, told: list[Instruction], error: type[ParmigError], words: str, last: Act) -> None:
    """It failed for this reason, and the source hears it."""
    assert type(walk.plan.error) is error
    assert str(walk.plan.error) == words
    assert len(told) == 2
    assert isinstance(told[0], SendMessage)
    if walk.plan.step is Step.STARTING:
        assert told[0].message == m.Refuse(f"the destination failed: {words}")
    else:
        assert isinstance(told[0].message, m.Failure)
        assert (told[0].message.error.type, told[0].message.error.message) == (error.__name__, words)
    assert told[1] is last
    assert walk.plan.over
    assert walk.take(e.Tick(), 10**9) == []
    assert walk.hear(m.HandOver(run=True)) == []


# -- the way to completion -------------------------------------------------------------------------


def test_a_new_plan_has_decided_nothing() -> None:
    plan = Walk().plan
    assert (plan.status, plan.step) == (MigrationStatus.SETUP, Step.STARTING)
    assert (plan.established, plan.handed_over, plan.lets_go, plan.over) == (False, False, False, False)
    assert (plan.digest, plan.error, plan.suspected, plan.state_bytes) == (None, None, None, 0)


def test_a_migration_with_a_digest_from_its_first_event_to_its_last() -> None:
    walk = Walk()
    assert walk.take(e.WorkerListens(1)) == []
    assert walk.take(e.WorkerListens(1)) == []
    assert walk.take(e.WorkerListens(0), 2000) == [Act.ACCEPT]
    assert walk.plan.step is Step.CONNECTING
    assert walk.take(e.WorkerConnected(0)) == []
    assert walk.take(e.WorkerConnected(1)) == []
    assert (walk.plan.established, walk.plan.status) == (False, MigrationStatus.SETUP)
    assert walk.take(e.StateConnected(), 3000) == []
    assert (walk.plan.established, walk.plan.status) == (True, MigrationStatus.ACTIVE)
    assert walk.plan.step is Step.RECEIVING
    assert walk.take(e.EarlyState(b"x")) == [e.WriteState(b"x")]
    assert walk.take(e.StateArrived(1, "1")) == []
    assert walk.hear(m.Progressed("active", 3), 4000) == [e.Show("active", 3)]
    assert walk.hear(DigestRequest()) == [
        e.Instruct(worker, DigestRegions(numbers)) for worker, numbers in enumerate(OWNED)
    ]
    assert walk.take(e.WorkerDigested(1, {number: DIGESTS[number] for number in OWNED[1]})) == []
    assert walk.plan.digest is None
    assert walk.take(e.WorkerDigested(0, {number: DIGESTS[number] for number in OWNED[0]})) == [
        SendMessage(Digested(DIGEST))
    ]
    assert walk.plan.digest == DIGEST
    assert walk.take(e.StateArrived(46, "46")) == []
    assert walk.hear(m.Release(47, "47"), 5000) == []
    assert (walk.plan.step, walk.plan.status) == (Step.HOLDING, MigrationStatus.DEVICE)
    assert walk.take(e.EarlyState(b"y")) == [e.WriteState(b"y")]
    assert walk.take(e.StateArrived(47, "47"), 5004) == [Act.LOAD]
    assert (walk.plan.step, walk.plan.state_bytes) == (Step.LOADING, 47)
    assert not walk.plan.handed_over
    assert walk.take(e.StateLoaded(), 5011) == [
        SendMessage(m.Loaded(received_ns=4 * MS, load_ns=7 * MS)),
        Act.ATTEND,
    ]
    assert (walk.plan.step, walk.plan.handed_over) == (Step.LOADED, False)
    assert walk.hear(m.HandOver(run=True), 6000) == [Act.RUN]
    assert (walk.plan.step, walk.plan.status) == (Step.RESUMING, MigrationStatus.HAND_OVER)
    assert walk.plan.handed_over
    assert walk.take(e.GuestRuns(6003 * MS), 6010) == [SendMessage(m.Resumed(resume_ns=3 * MS, since_ns=7 * MS))]
    assert (walk.plan.step, walk.plan.status, walk.plan.over) == (Step.GOODBYE, MigrationStatus.COMPLETED, False)
    assert walk.plan.handed_over
    assert walk.hear(m.Goodbye()) == [Act.FINISH]
    assert (walk.plan.step, walk.plan.over, walk.plan.error) == (Step.DONE, True, None)
    assert walk.plan.handed_over
    assert not walk.plan.lets_go
    assert walk.hear(m.Goodbye()) == []


def test_the_state_connects_first_and_the_workers_after_it() -> None:
    walk = Walk().to(Step.CONNECTING)
    assert walk.take(e.StateConnected()) == []
    assert walk.take(e.WorkerConnected(1)) == []
    assert not walk.plan.established
    assert walk.take(e.WorkerConnected(0)) == []
    assert walk.plan.step is Step.RECEIVING


@pytest.mark.parametrize("last", [e.StateConnected(), e.WorkerConnected(0)], ids=str)
def test_silence_counts_from_the_last_connection(last: Event) -> None:
    walk = Walk().to(Step.CONNECTING)
    for event in (e.StateConnected(), e.WorkerConnected(0), e.WorkerConnected(1)):
        if event != last:
            walk.take(event)
    walk.take(last, walk.now_ms + 7000)
    assert walk.plan.step is Step.RECEIVING
    words = "the source sent nothing for 60 s; is it stuck?"
    ended(walk, limit(walk, 60_000), LimitExceededError, words, Act.DISCARD)


def test_a_release_that_comes_after_all_state_loads_at_once() -> None:
    walk = Walk().to(Step.RECEIVING)
    assert walk.take(e.StateArrived(47, "abcd")) == []
    assert walk.hear(m.Release(47, "abcd"), 5000) == [Act.LOAD]
    assert walk.take(e.StateLoaded(), 5001) == [SendMessage(m.Loaded(0, MS)), Act.ATTEND]


def test_a_guest_without_any_state_loads_at_once() -> None:
    assert Walk().to(Step.RECEIVING).hear(m.Release(0, NO_STATE)) == [Act.LOAD]


def test_a_guest_that_was_paused_is_taken_over_and_not_run() -> None:
    walk = Walk().to(Step.LOADED)
    assert walk.hear(m.HandOver(run=False)) == [SendMessage(m.Resumed(0, 0))]
    assert (walk.plan.step, walk.plan.status) == (Step.GOODBYE, MigrationStatus.COMPLETED)


@pytest.mark.parametrize(("ran_ms", "resume_ms"), [(1, 0), (12_000, 0), (12_400, 400), (12_500, 500), (99_999, 500)])
def test_the_guest_ran_neither_before_hand_over_nor_after_now(ran_ms: int, resume_ms: int) -> None:
    walk = Walk().to(Step.RESUMING)
    assert walk.now_ms == 12_000
    assert walk.take(e.GuestRuns(ran_ms * MS), 12_500) == [
        SendMessage(m.Resumed(resume_ms * MS, (500 - resume_ms) * MS))
    ]


# -- what the source may not send ------------------------------------------------------------------

LEGAL = {
    Step.RECEIVING: (DigestRequest, m.Release),
    Step.LOADED: (m.HandOver,),
}
SENT: list[m.ControlMessage] = [
    DigestRequest(),
    m.Release(1, "x"),
    m.HandOver(run=True),
    m.Goodbye(),
    m.Loaded(1, 1),
    Digested("ab"),
    m.Resumed(1),
    m.Refuse("no"),
]


@pytest.mark.parametrize(
    ("step", "message"),
    [(step, message) for step in BEFORE for message in SENT if not isinstance(message, LEGAL.get(step, ()))],
    ids=lambda value: getattr(value, "name", type(value).__name__),
)
def test_what_comes_out_of_turn_is_a_fault_of_the_source(step: Step, message: m.ControlMessage) -> None:
    walk = Walk().to(step)
    told = walk.hear(message)
    let_go = step in (Step.STARTING, Step.CONNECTING)
    words = f"the source sent {type(message).__name__} while {step.value}"
    ended(walk, told, ProtocolError, words, Act.LET_GO if let_go else Act.DISCARD)
    assert walk.plan.lets_go == let_go
    assert walk.plan.status is MigrationStatus.FAILED


@pytest.mark.parametrize(("verify", "before"), [(True, [DigestRequest()]), (False, [])])
def test_a_digest_is_asked_for_once_and_only_if_it_was_announced(verify: bool, before: list[m.ControlMessage]) -> None:
    walk = Walk(verify=verify).to(Step.RECEIVING)
    for message in before:
        walk.hear(message)
    words = "the source asked for a digest twice, or without having announced it"
    ended(walk, walk.hear(DigestRequest()), ProtocolError, words, Act.DISCARD)


def test_a_release_while_the_digest_is_made_is_refused() -> None:
    walk = Walk().to(Step.RECEIVING)
    walk.hear(DigestRequest())
    words = "the source sent Release while receiving memory"
    ended(walk, walk.hear(m.Release(0, NO_STATE)), ProtocolError, words, Act.DISCARD)


@pytest.mark.parametrize("step", BEFORE)
def test_progress_is_shown_whenever_it_comes(step: Step) -> None:
    assert Walk().to(step).hear(m.Progressed("active", 2)) == [e.Show("active", 2)]


@pytest.mark.parametrize(
    ("came", "wanted", "words"),
    [
        ((47, "x"), (47, "y"), "47 bytes with digest x, the source saved 47 with y"),
        ((48, "y"), (47, "y"), "48 bytes with digest y, the source saved 47 with y"),
    ],
)
def test_state_that_is_not_what_was_saved_is_not_loaded(
    came: tuple[int, str], wanted: tuple[int, str], words: str
) -> None:
    walk = Walk().to(Step.RECEIVING)
    walk.hear(m.Release(*wanted))
    ended(walk, walk.take(e.StateArrived(*came)), StateError, f"device state arrived damaged: {words}", Act.DISCARD)
    assert walk.plan.state_bytes == 0


def test_more_state_than_is_taken_is_refused_when_it_is_announced() -> None:
    assert Walk().to(Step.RECEIVING).hear(m.Release(1000, "x")) == []
    walk = Walk().to(Step.RECEIVING)
    told = walk.hear(m.Release(1001, "x"))
    assert isinstance(walk.plan.error, StateError)
    assert "--max-state" in str(walk.plan.error)
    assert told[-1] is Act.DISCARD


@pytest.mark.parametrize(
    ("step", "event", "kind"),
    [
        (Step.STARTING, e.StateConnected(), ProtocolError),
        (Step.STARTING, e.WorkerConnected(0), ParmigError),
        (Step.CONNECTING, e.EarlyState(b"x"), ProtocolError),
        (Step.CONNECTING, e.StateArrived(1, "1"), ProtocolError),
        (Step.CONNECTING, e.WorkerListens(0), ParmigError),
        (Step.RECEIVING, e.WorkerDigested(0, {}), ParmigError),
        (Step.RECEIVING, e.StateLoaded(), ParmigError),
        (Step.HOLDING, e.StateLoaded(), ParmigError),
        (Step.LOADING, e.StateArrived(48, "x"), ProtocolError),
        (Step.LOADING, e.EarlyState(b"x"), ProtocolError),
        (Step.LOADED, e.StateLoaded(), ParmigError),
        (Step.LOADED, e.StateArrived(48, "x"), ProtocolError),
        (Step.LOADED, e.GuestRuns(1), ParmigError),
    ],
)
def test_what_has_no_place_ends_it_with_the_name_of_the_event(
    step: Step, event: Event, kind: type[ParmigError]
) -> None:
    walk = Walk().to(step)
    last = Act.LET_GO if kind is ProtocolError and not walk.plan.established else Act.DISCARD
    ended(walk, walk.take(event), kind, f"{type(event).__name__} came while {step.value}", last)


# -- failures before hand-over ---------------------------------------------------------------------


@pytest.mark.parametrize("step", BEFORE)
def test_before_hand_over_a_failure_here_discards_the_copy(step: Step) -> None:
    walk = Walk().to(step)
    phase = walk.plan.status.value
    error = GuestError("no")
    ended(walk, walk.take(e.Failed(error)), GuestError, "no", Act.DISCARD)
    assert (walk.plan.status, walk.plan.error, error.phase) == (MigrationStatus.FAILED, error, phase)
    assert not walk.plan.handed_over


@pytest.mark.parametrize("step", BEFORE)
def test_a_cancel_before_hand_over_discards_the_copy(step: Step) -> None:
    walk = Walk().to(step)
    ended(walk, walk.take(e.CancelAsked()), CancelledError, "cancelled; the guest stays at the source", Act.DISCARD)
    assert walk.plan.status is MigrationStatus.CANCELLED


@pytest.mark.parametrize("step", BEFORE)
def test_what_the_source_causes_ends_only_its_session_until_it_is_connected(step: Step) -> None:
    last = Act.LET_GO if step in (Step.STARTING, Step.CONNECTING) else Act.DISCARD
    walk = Walk().to(step)
    words = "the source is gone before hand-over (gone); the guest stays there"
    ended(walk, walk.take(e.PeerVanished(GONE)), PeerLostError, words, last)
    walk = Walk().to(step)
    ended(walk, walk.take(e.Garbled(ProtocolError("what?"))), ProtocolError, "what?", last)
    walk = Walk().to(step)
    failure = m.Failure(ErrorReport(type="GuestError", message="no"))
    ended(walk, walk.hear(failure), PeerFailedError, "the source failed: no", last)
    assert walk.plan.status is MigrationStatus.FAILED


@pytest.mark.parametrize("step", [step for step in BEFORE if step is not Step.LOADED])
def test_a_symptom_ends_it_400_ms_later_unless_the_cause_comes(step: Step) -> None:
    lost = PeerLostError("data channel")
    walk = Walk().to(step)
    now = walk.now_ms
    assert walk.take(e.Suspected(lost)) == []
    assert walk.take(e.Suspected(PeerLostError("another")), now + 100) == []
    assert walk.take(e.Tick(), now + 399) == []
    let_go = step in (Step.STARTING, Step.CONNECTING)
    told = walk.take(e.Tick(), now + 400)
    assert walk.plan.error is lost
    ended(walk, told, PeerLostError, "data channel", Act.LET_GO if let_go else Act.DISCARD)
    walk = Walk().to(step)
    assert walk.take(e.Suspected(lost)) == []
    walk.take(e.Failed(GuestError("killed")))
    assert str(walk.plan.error) == "killed"


# -- limits ----------------------------------------------------------------------------------------


def limit(walk: Walk, after_ms: int) -> list[Instruction]:
    """Nothing is over a millisecond before, and then it is."""
    began = walk.now_ms
    assert walk.take(e.Tick(), began + after_ms - 1) == []
    return walk.take(e.Tick(), began + after_ms)


def test_workers_that_do_not_listen_end_it() -> None:
    walk = Walk()
    words = "the receive workers did not listen within 15 s"
    ended(walk, limit(walk, 15_000), LimitExceededError, words, Act.DISCARD)


def test_a_source_that_does_not_connect_makes_room_for_the_next() -> None:
    walk = Walk().to(Step.CONNECTING)
    words = "the source did not connect all its channels within 15 s"
    ended(walk, limit(walk, 15_000), PeerLostError, words, Act.LET_GO)


def test_a_source_that_falls_silent_is_given_up() -> None:
    walk = Walk().to(Step.RECEIVING)
    assert walk.hear(m.Progressed("active", 1), 50_000) == [e.Show("active", 1)]
    words = "the source sent nothing for 60 s; is it stuck?"
    ended(walk, limit(walk, 60_000), LimitExceededError, words, Act.DISCARD)


def test_from_release_to_hand_over_there_is_one_limit_twice_that_of_the_source() -> None:
    for step in (Step.HOLDING, Step.LOADING, Step.LOADED):
        walk = Walk().to(step)
        walk.hear(m.Progressed("active", 1), 20_000)  # a sign of life does not make it longer
        assert walk.take(e.Tick(), 6_000 + 19_999) == []
        words = f"{step.value} took longer than 20.0 s; is the source stuck?"
        ended(walk, walk.take(e.Tick(), 6_000 + 20_000), LimitExceededError, words, Act.DISCARD)


def test_no_source_makes_it_wait_for_more_than_two_hours() -> None:
    walk = Walk(switchover_ms=10**9).to(Step.HOLDING)
    assert walk.take(e.Tick(), 6_000 + 2 * 3600 * 1000 - 1) == []
    assert walk.take(e.Tick(), 6_000 + 2 * 3600 * 1000)[-1] is Act.DISCARD


def test_a_guest_that_does_not_run_leaves_the_outcome_unknown() -> None:
    walk = Walk().to(Step.RESUMING)
    told = limit(walk, 60_000)
    assert "the guest did not run 60 s after the hand-over, after hand-over: " in str(walk.plan.error)
    assert told[-1] is Act.KEEP


def test_a_source_that_says_no_goodbye_is_waited_for_three_seconds() -> None:
    walk = Walk().to(Step.GOODBYE)
    assert limit(walk, 3_000) == [Act.FINISH]
    assert (walk.plan.status, walk.plan.error) == (MigrationStatus.COMPLETED, None)


# -- after hand-over -------------------------------------------------------------------------------

NOISE: list[Event] = [
    *(e.Heard(message) for message in SENT),
    e.Heard(m.Failure(ErrorReport(type="GuestError", message="no"))),
    e.Heard(m.Progressed("active", 1)),
    e.Garbled(ProtocolError("what?")),
    e.PeerVanished(GONE),
    e.Suspected(GONE),
    e.CancelAsked(),
    e.WorkerDigested(0, {}),
    e.StateArrived(99, "x"),
]


@pytest.mark.parametrize("event", NOISE, ids=str)
def test_nothing_but_the_guest_matters_after_hand_over(event: Event) -> None:
    walk = Walk().to(Step.LOADED)
    walk.take(e.Suspected(GONE))  # before it: the source handed over all the same
    walk.hear(m.HandOver(run=True))
    assert walk.take(event) == []
    assert walk.take(e.Tick(), walk.now_ms + 1000) == []
    told = walk.take(e.GuestRuns(walk.now_ms * MS))
    assert isinstance(told[0], SendMessage)
    assert isinstance(told[0].message, m.Resumed)
    # With the source gone there is no goodbye to wait for.
    assert told[1:] == ([Act.FINISH] if isinstance(event, e.PeerVanished) else [])
    assert walk.plan.over == isinstance(event, e.PeerVanished)
    assert (walk.plan.status, walk.plan.error) == (MigrationStatus.COMPLETED, None)


def test_a_source_that_is_gone_stays_gone_whatever_comes_then() -> None:
    walk = Walk().to(Step.RESUMING)
    assert walk.take(e.PeerVanished(GONE)) == []
    assert walk.take(e.CancelAsked()) == []
    assert walk.take(e.GuestRuns(walk.now_ms * MS))[1:] == [Act.FINISH]


@pytest.mark.parametrize("event", [*NOISE, e.Failed(GuestError("died"))], ids=str)
def test_a_guest_that_ran_has_arrived_whatever_comes_then(event: Event) -> None:
    walk = Walk().to(Step.GOODBYE)
    over = isinstance(event, e.PeerVanished) or event == e.Heard(m.Goodbye())
    assert walk.take(event) == ([Act.FINISH] if over else [])
    assert (walk.plan.status, walk.plan.error, walk.plan.over) == (MigrationStatus.COMPLETED, None, over)


def test_a_guest_that_cannot_run_leaves_the_outcome_unknown_and_the_copy_alone() -> None:
    walk = Walk().to(Step.RESUMING)
    cause = GuestError("cont was refused")
    told = walk.take(e.Failed(cause))
    words = (
        "cont was refused, after hand-over: the source stays paused and leaves the guest to this side; "
        "look whether it runs here, and run parmig recover here, which lets it run"
    )
    ended(walk, told, OutcomeUnknownError, words, Act.KEEP)
    assert walk.plan.error is not None
    assert walk.plan.error.__cause__ is cause
    assert (walk.plan.status, walk.plan.error.phase) == (MigrationStatus.UNKNOWN, "hand-over")
    assert walk.plan.handed_over
