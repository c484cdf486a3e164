# SPDX-License-Identifier: Apache-2.0
"""The source's plan, step by step by hand: which instruction follows which event, what is marked, and the words."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from parmig.engine.messages.worker_messages import CountDirty, DigestRegions, Fence, ScanRegions, SendRegions
from parmig.engine.plan import events as c
from parmig.engine.plan.events import Do, Event, Instruct, Instruction, Throttle
from parmig.engine.records.handover_record import RecordState
from parmig.engine.source_plan.coordinator import Coordinator
from parmig.engine.source_plan.source_steps import Step
from parmig.engine.work.policy import Limits, ThrottleSteps
from parmig.engine.work.shares import ALONE_PAGES, WHOLE_PAGES
from parmig.errors import (
    CancelledError,
    GuestError,
    LimitExceededError,
    NotConvergingError,
    OutcomeUnknownError,
    ParmigError,
    PeerLostError,
    ProtocolError,
)
from parmig.ram.region_digest import combine
from parmig.ram.regions import Region
from parmig.ram.shared import WorkerCounters
from parmig.status import MigrationStatus
from parmig.units import NS_PER_MS, NS_PER_S

MS = NS_PER_MS
REGIONS = [Region(0, number * 512, 512) for number in range(5)]
OWNED = ((0, 1), (2, 3, 4))
DIGESTS = {number: 7 * number for number in range(5)}
DIGEST = combine(DIGESTS, 5)
LIMITS = Limits(300 * MS, 0, 60 * NS_PER_S, switchover_ns=10 * NS_PER_S)


class Walk:
    """A plan for two workers and five regions, whose clock is set by hand."""

    def __init__(self, limits: Limits = LIMITS, *, verify: bool = False, may_ask: bool = False) -> None:
        self.plan = Coordinator(REGIONS, 2, limits, verify=verify, may_ask=may_ask)
        self.now_ms = 0
        self.written: list[RecordState] = []

    def take(self, event: Event, now_ms: int | None = None) -> list[Instruction]:
        """What the plan decides, but for the record: that is written at once, and the plan hears of it."""
        self.now_ms = self.now_ms if now_ms is None else now_ms
        told = self.plan.handle(event, self.now_ms * MS)
        if not told or not isinstance(told[0], c.WriteRecord):
            return told
        self.written.append(told[0].state)
        return [*told[1:], *self.take(c.Recorded(told[0].state))]

    def begin(self, *, needs_sync: bool = False, settles: bool = False) -> list[Instruction]:
        assert self.take(c.WorkersReady(), 10) == [Do.START_LOG]
        return self.take(c.LogStarted(needs_sync, settles), 20)

    def send(self, told: list[Instruction], *, until_ms: int, pages: int = 0) -> list[Instruction]:
        """All of a round; each worker has sent *pages* in it. What follows the last fence comes back."""
        self.now_ms = until_ms
        waiting, round_ = list(told), self.plan.round
        while waiting and self.plan.round == round_:
            one = waiting.pop(0)
            if not isinstance(one, Instruct) or not isinstance(one.instruction, SendRegions | Fence):
                return [one, *waiting]
            if isinstance(one.instruction, SendRegions) and not (one.instruction.last or one.instruction.fence):
                waiting += self.take(c.WorkerIdle(one.worker))
                continue
            before = self.plan.record._now[one.worker].sent_pages
            last = isinstance(one.instruction, SendRegions) and one.instruction.last
            answer = c.WorkerSent if last else c.WorkerFenced
            waiting += self.take(answer(one.worker, WorkerCounters(sent_pages=before + pages)))
        return waiting

    def count(self, pages: int) -> list[Instruction]:
        """Both workers say how many pages are dirty, half of them each."""
        assert self.take(c.WorkerCounted(1, pages // 2)) == []
        return self.take(c.WorkerCounted(0, pages - pages // 2))

    def to_pause(self) -> None:
        """Up to where the guest is to be paused, at 200 ms."""
        assert self.send(self.begin(), until_ms=120, pages=1280) == COUNT
        self.now_ms = 200
        assert self.count(10) == [Do.PAUSE]

    def to_release(self) -> None:
        """Up to where the destination may load, at 260 ms."""
        self.to_pause()
        self.send_last()
        assert self.send(self.take(c.StateSaved(47, "abc"), 245), until_ms=260) == [Do.RELEASE]

    def send_last(self, pages: int = 0) -> None:
        """The final round, from 210 to 230 ms, beside which the state is saved: that lasts longer."""
        save, *told = self.take(c.GuestPaused(205 * MS), 210)
        assert save is Do.SAVE_STATE
        assert self.send(told, until_ms=230, pages=pages) == []
        assert self.plan.step is Step.SAVING


def send(worker: int, round_: int, *regions: int, holes: bool = True, scanned: bool = False) -> Instruct:
    """A bundle of regions."""
    return Instruct(worker, SendRegions(round_, regions, round_ == 1, holes, scanned))


ALONE = ((0, 1, 2, 3, 4),)


def send_whole(round_: int, owned: Sequence[tuple[int, ...]] = OWNED) -> list[Instruction]:
    """Each worker gets all of its regions, and its fence."""
    return [Instruct(worker, SendRegions(round_, regions, False, fence=True)) for worker, regions in enumerate(owned)]


def send_last(round_: int, owned: Sequence[tuple[int, ...]] = ALONE) -> list[Instruction]:
    """The final round: each worker gets all of its regions, and only says when all is sent."""
    return [Instruct(worker, SendRegions(round_, regions, False, last=True)) for worker, regions in enumerate(owned)]


def rescan(round_: int, owned: Sequence[tuple[int, ...]] = ALONE) -> list[Instruction]:
    """The round after saving."""
    return [
        Instruct(worker, SendRegions(round_, regions, False, holes=False, fence=True))
        for worker, regions in enumerate(owned)
    ]


SCAN: list[Instruction] = [Instruct(worker, ScanRegions(regions)) for worker, regions in enumerate(OWNED)]
COUNT: list[Instruction] = [Instruct(worker, CountDirty(regions)) for worker, regions in enumerate(OWNED)]
COUNT_TWO: list[Instruction] = [Instruct(worker, CountDirty((worker,))) for worker in range(2)]
DIGEST_ALL: list[Instruction] = [Instruct(worker, DigestRegions(regions)) for worker, regions in enumerate(OWNED)]


def bundles(round_: int, *, scanned: bool = False) -> list[Instruction]:
    """What a round of many dirty pages begins with."""
    return [send(worker, round_, region, scanned=scanned) for worker, region in ((0, 0), (1, 2), (0, 1), (1, 3))]


def test_a_new_plan_has_done_nothing() -> None:
    plan = Coordinator(REGIONS, 2, LIMITS, verify=True)
    assert (plan.status, plan.step, plan.round) == (MigrationStatus.SETUP, Step.SETUP, 0)
    assert (plan.total_pages, plan.state_bytes, plan.state_digest) == (2560, 0, "")
    assert (plan.source_digest, plan.peer_digest, plan.error) == (None, None, None)
    assert len(plan.record.stolen) == 2
    assert plan.record.ram().total_bytes == 2560 * 4096


def test_rounds_of_a_guest_that_settles_and_whose_log_is_synced() -> None:
    walk = Walk()
    assert walk.begin(needs_sync=True, settles=True) == SCAN
    assert (walk.plan.status, walk.plan.step, walk.plan.round) == (MigrationStatus.ACTIVE, Step.SCANNING, 1)
    assert walk.take(c.WorkerScanned(1)) == []
    assert walk.take(c.WorkerScanned(0)) == [Do.SETTLE]
    assert walk.plan.step is Step.SETTLING
    assert walk.take(c.GuestSettled(4 * MS), 30) == bundles(1, scanned=True)
    assert walk.plan.step is Step.SENDING
    # An idle worker takes what the other was not given yet, then nothing is left.
    assert walk.take(c.WorkerIdle(0)) == [send(0, 1, 4, scanned=True)]
    assert walk.take(c.WorkerIdle(0)) == [Instruct(0, Fence(1))]
    assert walk.take(c.WorkerIdle(0)) == []
    assert walk.take(c.WorkerIdle(1)) == [Instruct(1, Fence(1))]
    assert walk.take(c.WorkerIdle(1)) == []
    assert walk.take(c.WorkerFenced(1, WorkerCounters(sent_pages=2000))) == []
    assert walk.take(c.WorkerFenced(0, WorkerCounters(sent_pages=560)), 130) == [Do.SYNC_LOG]
    assert walk.plan.step is Step.SYNCING_COUNT
    (first,) = walk.plan.record.rounds
    assert (first.sent_pages, first.settle_ms, first.duration_ms, first.paused) == (2560, 4, 110, False)
    assert walk.plan.record.stolen == [1, 0]
    assert walk.take(c.LogSynced()) == COUNT
    assert walk.plan.step is Step.COUNTING
    assert walk.count(10_001) == SCAN
    assert walk.plan.record.facts[0].remaining_pages == 10_001
    assert walk.plan.round == 2
    assert walk.take(c.WorkerScanned(0)) == []
    assert walk.take(c.WorkerScanned(1)) == [Do.SETTLE]
    told = walk.take(c.GuestSettled(0), 140)
    assert told == bundles(2, scanned=True)
    assert walk.send(told, until_ms=150, pages=100) == [Do.SYNC_LOG]
    assert walk.take(c.LogSynced()) == COUNT
    assert walk.count(10) == [Do.PAUSE]
    assert walk.plan.step is Step.PAUSING
    # The paused guest has settled.
    assert walk.take(c.GuestPaused(150 * MS), 160) == [Do.SYNC_LOG, Do.SAVE_STATE]
    assert walk.plan.step is Step.SYNCING_FINAL
    told = walk.take(c.LogSynced(), 170)
    assert told == send_last(3)
    assert walk.plan.step is Step.FINAL
    assert walk.take(c.StateSaved(1, "x"), 175) == []  # the last pages take longer
    assert walk.send(told, until_ms=190, pages=10) == [Do.SYNC_LOG]
    assert walk.plan.step is Step.SYNCING_AGAIN
    told = walk.take(c.LogSynced(), 200)
    assert told == rescan(4)
    assert walk.plan.step is Step.RESCANNING
    assert walk.send(told, until_ms=210) == [Do.RELEASE]
    assert [one.paused for one in walk.plan.record.rounds] == [False, False, True, True]


def test_a_guest_without_either_goes_from_round_to_count_at_once() -> None:
    walk = Walk()
    told = walk.begin()
    assert told == bundles(1)
    assert walk.send(told, until_ms=120, pages=1280) == COUNT
    assert walk.count(10_000) == bundles(2)


@pytest.mark.parametrize(("pages", "whole"), [(WHOLE_PAGES, True), (WHOLE_PAGES + 1, False)])
def test_few_dirty_pages_are_handed_out_at_once(pages: int, whole: bool) -> None:
    walk = Walk(Limits(0))
    assert walk.send(walk.begin(), until_ms=120, pages=1280) == COUNT
    told = walk.count(pages)
    assert told == (send_whole(2) if whole else bundles(2))


@pytest.mark.parametrize("region_pages", [ALONE_PAGES // 2, ALONE_PAGES // 2 + 512])
def test_all_workers_scan_much_memory(region_pages: int) -> None:
    plan = Coordinator([Region(0, number * region_pages, region_pages) for number in range(2)], 2, LIMITS, verify=False)
    walk = Walk()
    walk.plan = plan
    assert walk.send(walk.begin(), until_ms=120, pages=1280) == COUNT_TWO
    assert walk.count(10) == [Do.PAUSE]
    told = walk.take(c.GuestPaused(0))[1:]
    owned = [(0, 1)] if 2 * region_pages <= ALONE_PAGES else [(0,), (1,)]
    assert told == send_last(2, owned)
    walk.take(c.StateSaved(1, "x"))
    assert walk.send(told, until_ms=130) == rescan(3, owned)


def test_what_remained_last_decides_how_much_is_handed_out() -> None:
    walk = Walk(Limits(0))
    assert walk.send(walk.begin(), until_ms=120, pages=1280) == COUNT
    assert walk.send(walk.count(10_000), until_ms=220, pages=100) == COUNT
    assert walk.count(10) == send_whole(3)


def test_a_whole_migration_with_all_its_marks() -> None:
    walk = Walk(verify=True)
    walk.to_pause()
    assert walk.plan.status is MigrationStatus.ACTIVE
    walk.send_last(pages=5)
    assert (walk.plan.status, walk.plan.step) == (MigrationStatus.DEVICE, Step.SAVING)
    told = walk.take(c.StateSaved(47, "abc", 30 * MS), 245)
    assert walk.send(told, until_ms=260) == [Do.ASK_DIGEST, *DIGEST_ALL]
    assert walk.plan.step is Step.DIGESTING
    assert walk.take(c.WorkerDigested(1, {n: DIGESTS[n] for n in OWNED[1]})) == []
    assert walk.take(c.PeerDigested(DIGEST)) == []
    assert walk.take(c.WorkerDigested(0, {n: DIGESTS[n] for n in OWNED[0]}), 280) == [Do.RELEASE]
    assert walk.plan.step is Step.LOADING
    assert walk.take(c.PeerLoaded(6 * MS), 300) == [Do.HAND_OVER]
    assert (walk.plan.status, walk.plan.step) == (MigrationStatus.HAND_OVER, Step.RESUMING)
    assert walk.take(c.PeerResumed(3 * MS), 320) == [Do.FINISH]
    assert (walk.plan.status, walk.plan.step) == (MigrationStatus.COMPLETED, Step.DONE)
    assert {name: instant_ns / MS for name, instant_ns in walk.plan.record.marks.items()} == {
        "active": 20,
        "pausing": 200,
        "stopped": 205,
        "paused": 210,
        "final": 230,
        "saved": 245,
        "rescanned": 260,
        "verified": 280,
        "loaded": 300,
        "resumed": 317,
        "finished": 317,
    }
    plan = walk.plan
    assert (plan.state_bytes, plan.state_digest, plan.source_digest, plan.peer_digest) == (47, "abc", DIGEST, DIGEST)
    assert (plan.record.load_ns, plan.record.state_save_ns) == (6 * MS, 30 * MS)
    assert (plan.error, plan.record.downtime_ms()) == (None, 112)


def test_the_state_is_saved_beside_the_last_pages_and_whatever_ends_last_is_waited_for() -> None:
    walk = Walk()
    walk.to_pause()
    save, *told = walk.take(c.GuestPaused(205 * MS), 210)
    assert (save, told) == (Do.SAVE_STATE, send_last(2))
    assert (walk.plan.status, walk.plan.step) == (MigrationStatus.PRE_SWITCHOVER, Step.FINAL)
    assert walk.take(c.StateSaved(47, "abc", 12 * MS), 222) == []
    assert walk.plan.step is Step.FINAL
    assert walk.send(told, until_ms=230, pages=5) == rescan(3)
    assert (walk.plan.status, walk.plan.step) == (MigrationStatus.DEVICE, Step.RESCANNING)
    marks = walk.plan.record.marks
    assert (marks["final"], marks["saved"]) == (230 * MS, 230 * MS)
    assert walk.send(rescan(3), until_ms=240) == [Do.RELEASE]


@pytest.mark.parametrize("saves_first", [False, True])
def test_the_state_is_saved_once(saves_first: bool) -> None:
    walk = Walk()
    walk.to_pause()
    if saves_first:
        walk.take(c.GuestPaused(205 * MS), 210)
    else:
        walk.send_last()
    walk.take(c.StateSaved(47, "abc"))
    assert walk.take(c.StateSaved(48, "abd")) == [Do.ABANDON]


def test_instants_that_cannot_be_are_moved_to_those_that_can() -> None:
    walk = Walk()
    walk.to_pause()
    walk.send(walk.take(c.GuestPaused(10**18), 210)[1:], until_ms=230)
    walk.send(walk.take(c.StateSaved(47, "abc"), 245), until_ms=260)
    walk.take(c.PeerLoaded(0), 300)
    walk.take(c.PeerResumed(10**18), 320)
    marks = walk.plan.record.marks
    assert (marks["stopped"], marks["paused"]) == (210 * MS, 210 * MS)
    assert marks["verified"] == 260 * MS  # nothing was compared: the phase is empty
    assert (marks["resumed"], marks["finished"]) == (300 * MS, 300 * MS)


def test_the_digest_of_the_destination_may_come_last_and_must_be_the_same() -> None:
    walk = Walk(verify=True)
    walk.to_pause()
    walk.send_last()
    walk.send(walk.take(c.StateSaved(47, "abc"), 245), until_ms=260)
    assert walk.take(c.WorkerDigested(0, {n: DIGESTS[n] for n in OWNED[0]})) == []
    assert walk.take(c.WorkerDigested(1, {n: DIGESTS[n] for n in OWNED[1]})) == []
    assert walk.take(c.PeerDigested("other")) == [Do.ABANDON]
    assert type(walk.plan.error) is ParmigError
    assert str(walk.plan.error) == (
        f"the memories differ: digest {DIGEST} here, other at the destination; "
        "something besides parmig wrote to one of them"
    )
    assert walk.plan.error.phase == "comparing digests"


def test_a_digest_that_comes_last_ends_the_comparison_and_may_come_again() -> None:
    walk = Walk(verify=True)
    walk.to_pause()
    walk.send_last()
    walk.send(walk.take(c.StateSaved(47, "abc"), 245), until_ms=260)
    for worker in range(2):
        assert walk.take(c.WorkerDigested(worker, {n: DIGESTS[n] for n in OWNED[worker]})) == []
    assert walk.take(c.PeerDigested(DIGEST), 285) == [Do.RELEASE]
    assert walk.plan.record.marks["verified"] == 285 * MS
    assert walk.take(c.PeerDigested(DIGEST)) == []
    assert walk.take(c.PeerLoaded(1), 300) == [Do.HAND_OVER]
    assert walk.take(c.PeerDigested(DIGEST)) == []


def test_a_digest_is_said_twice_only_if_it_is_the_same() -> None:
    walk = Walk()
    walk.to_release()
    assert walk.take(c.PeerDigested("x")) == [Do.ABANDON]
    assert str(walk.plan.error) == "PeerDigested came while loading device state at the destination"
    assert type(walk.plan.error) is ProtocolError


@pytest.mark.parametrize(
    ("event", "kind"),
    [
        (c.PeerLoaded(1), ProtocolError),
        (c.PeerResumed(), ProtocolError),
        (c.PeerDigested("early"), ProtocolError),
        (c.LogSynced(), ParmigError),
        (c.WorkerFenced(0, WorkerCounters()), ParmigError),
    ],
)
def test_what_has_no_place_ends_it_with_the_name_of_the_event(event: Event, kind: type[ParmigError]) -> None:
    walk = Walk()
    assert walk.take(event) == [Do.ABANDON]
    assert type(walk.plan.error) is kind
    assert str(walk.plan.error) == f"{type(event).__name__} came while setup"
    assert (walk.plan.status, walk.plan.error.phase) == (MigrationStatus.FAILED, "setup")


def test_before_hand_over_trouble_ends_it_as_it_is() -> None:
    walk = Walk()
    walk.to_release()
    error = GuestError("no")
    assert walk.take(c.Failed(error)) == [Do.ABANDON]
    assert walk.plan.status is MigrationStatus.FAILED
    assert walk.plan.error is error
    assert error.phase == Step.LOADING.value
    walk = Walk()
    walk.to_release()
    assert walk.take(c.CancelAsked()) == [Do.ABANDON]
    assert walk.plan.status is MigrationStatus.CANCELLED
    assert isinstance(walk.plan.error, CancelledError)
    assert str(walk.plan.error) == "cancelled; the guest continues here"


def test_a_symptom_ends_it_400_ms_later_and_only_the_first_counts() -> None:
    walk = Walk()
    walk.to_release()
    gone = PeerLostError("gone")
    assert walk.plan.suspected is None
    assert walk.take(c.Suspected(gone), 1000) == []
    assert walk.take(c.Suspected(PeerLostError("another")), 1300) == []
    assert walk.plan.suspected is gone
    assert walk.take(c.Tick(), 1399) == []
    assert walk.take(c.Tick(), 1400) == [Do.ABANDON]
    assert walk.plan.error is gone
    assert (walk.plan.status, gone.phase) == (MigrationStatus.FAILED, Step.LOADING.value)
    assert walk.plan.over


def test_the_cause_of_a_symptom_is_reported_in_its_place() -> None:
    walk = Walk()
    walk.to_release()
    assert walk.take(c.Suspected(PeerLostError("gone"))) == []
    cause = GuestError("killed")
    assert walk.take(c.Failed(cause)) == [Do.ABANDON]
    assert walk.plan.error is cause


def test_nothing_is_handed_over_while_a_loss_is_suspected() -> None:
    walk = Walk()
    walk.to_release()
    gone = PeerLostError("gone")
    assert walk.take(c.Suspected(gone)) == []
    assert walk.take(c.PeerLoaded(1)) == [Do.ABANDON]
    assert walk.plan.error is gone
    assert walk.written == []


def test_a_loss_that_is_suspected_while_the_record_is_written_ends_it() -> None:
    walk = Walk()
    walk.to_release()
    gone = PeerLostError("gone")
    (write,) = walk.plan.handle(c.PeerLoaded(1), walk.now_ms * MS)
    assert isinstance(write, c.WriteRecord)
    assert walk.take(c.Suspected(gone)) == []
    assert walk.take(c.Recorded(write.state)) == [Do.ABANDON]
    assert walk.plan.error is gone


def test_a_hand_over_that_never_left_gives_the_guest_back() -> None:
    walk = Walk()
    walk.to_release()
    error = PeerLostError("broken pipe")
    assert walk.take(c.PeerLoaded(1)) == [Do.HAND_OVER]
    assert walk.take(c.HandOverNotSent(error)) == [Do.ABANDON]
    assert (walk.plan.status, walk.plan.error) == (MigrationStatus.FAILED, error)
    assert error.phase == Step.RESUMING.value
    walk = Walk()
    walk.to_release()
    assert walk.take(c.HandOverNotSent(error)) == [Do.ABANDON]
    assert str(walk.plan.error) == "HandOverNotSent came while loading device state at the destination"


def test_an_error_keeps_the_phase_that_it_has() -> None:
    error = GuestError("no")
    error.phase = "elsewhere"
    walk = Walk()
    walk.take(c.Failed(error))
    assert walk.plan.error is error
    assert error.phase == "elsewhere"


def test_after_hand_over_a_suspected_loss_ends_the_migration_at_once() -> None:
    cause = GuestError("no")
    walk = Walk()
    walk.to_release()
    walk.take(c.PeerLoaded(1), 300)
    assert walk.take(c.Suspected(cause)) == [Do.GIVE_UP]
    assert walk.plan.status is MigrationStatus.UNKNOWN
    assert isinstance(walk.plan.error, OutcomeUnknownError)
    assert walk.plan.error.__cause__ is cause


def test_after_hand_over_trouble_is_wrapped_and_an_unknown_outcome_is_not_wrapped_again() -> None:
    cause, unknown = GuestError("no"), OutcomeUnknownError("who knows")
    for error in (cause, unknown):
        walk = Walk()
        walk.to_release()
        walk.take(c.PeerLoaded(1), 300)
        assert walk.take(c.CancelAsked()) == []
        assert walk.take(c.Failed(error)) == [Do.GIVE_UP]
        assert walk.plan.status is MigrationStatus.UNKNOWN
        if error is unknown:
            assert walk.plan.error is unknown
            continue
        assert isinstance(walk.plan.error, OutcomeUnknownError)
        assert walk.plan.error.__cause__ is cause
        assert str(walk.plan.error) == (
            "no, after hand-over: the guest may run at the destination, so it stays paused here; "
            "look there, and run parmig recover here, which asks the destination"
        )


# -- limits -------------------------------------------------------------------------------------


def test_the_time_limit_counts_from_the_first_round() -> None:
    walk = Walk()
    assert walk.take(c.Tick(), 10**6) == []
    walk.take(c.WorkersReady(), 10)
    assert walk.take(c.Tick(), 10**6) == []
    walk = Walk()
    told = walk.begin()
    assert walk.take(c.Tick(), 60_019) == []
    assert walk.take(c.Tick(), 60_020) == [Do.ABANDON]
    assert str(walk.plan.error) == "not ready to pause after 60.0 s and 0 rounds; raise --timeout or --downtime-limit"
    walk = Walk()
    told = walk.begin()
    walk.send(told, until_ms=1044, pages=5120)
    walk.count(30720)
    assert walk.take(c.Tick(), 60_020) == [Do.ABANDON]
    assert str(walk.plan.error) == (
        "not ready to pause after 60.0 s and 1 rounds; 120 MiB remain, at 39.06 MiB/s a pause of 3072.0 ms, "
        "raise --timeout or --downtime-limit"
    )
    assert isinstance(walk.plan.error, LimitExceededError)


def test_the_time_limit_is_looked_at_after_each_round_too() -> None:
    for ended_ms, verdict in ((60_019, bundles(2)), (60_020, [Do.ABANDON])):
        walk = Walk()
        assert walk.send(walk.begin(), until_ms=ended_ms, pages=1280) == COUNT
        assert walk.count(10**6) == verdict


def test_without_limits_time_does_not_matter() -> None:
    walk = Walk(Limits(300 * MS))
    assert walk.take(c.Tick(), 10**9) == []
    walk.begin()
    assert walk.take(c.Tick(), 10**9) == []
    walk = Walk(Limits(300 * MS))
    walk.to_pause()
    assert walk.take(c.Tick(), 10**9) == []


def test_the_limit_of_the_pause_replaces_the_time_limit() -> None:
    walk = Walk(Limits(300 * MS, 0, NS_PER_S))
    walk.to_pause()
    assert walk.take(c.Tick(), 10**9) == []
    walk = Walk()
    walk.to_pause()
    assert walk.take(c.Tick(), 10_199) == []
    assert walk.take(c.Tick(), 10_200) == [Do.ABANDON]
    assert str(walk.plan.error) == (
        "pausing the guest did not end within the 10.0 s that a switchover may take; "
        "see what hangs there, or raise --switchover-timeout"
    )


def test_after_hand_over_the_limit_gives_no_advice_that_comes_too_late() -> None:
    walk = Walk()
    walk.to_release()
    walk.take(c.PeerLoaded(1), 300)
    assert walk.take(c.Tick(), 10_299) == []
    assert walk.take(c.Tick(), 10_300) == [Do.GIVE_UP]
    assert str(walk.plan.error).startswith(
        "resuming at the destination did not end within the 10.0 s that a switchover may take, after hand-over: "
    )


def stall(limits: Limits) -> tuple[list[list[Instruction]], Walk]:
    """A guest of which 30720 pages are dirty after each round of 1024 ms and 10240 pages. What followed each count."""
    walk = Walk(limits)
    told = walk.begin()
    seen = []
    while not walk.plan.machine.ended:
        told = [one for one in told if not isinstance(one, Throttle)]
        assert walk.send(told, until_ms=walk.now_ms + 1024, pages=5120) == COUNT
        told = walk.count(30720)
        seen.append(told)
        assert len(seen) < 100
    return seen, walk


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (
            Limits(300 * MS),
            "the guest dirties memory as fast as it can be sent: 120 MiB remain, at 39.06 MiB/s a pause of 3072.0 ms, "
            "beyond --downtime-limit 300.0 ms; "
            "allow a longer pause, give it more bandwidth, or slow the guest (--auto-converge)",
        ),
        (
            Limits(300 * MS, 1000 * MS),
            "the guest dirties memory as fast as it can be sent: 120 MiB remain, at 39.06 MiB/s a pause of 3072.0 ms, "
            "beyond --downtime-limit 300.0 ms and --max-downtime 1000.0 ms; "
            "allow a longer pause, give it more bandwidth, or slow the guest (--auto-converge)",
        ),
        (
            Limits(300 * MS, throttle=ThrottleSteps(20, 10, 35)),
            "the guest dirties memory as fast as it can be sent, even throttled by 35 %: 120 MiB remain, at 39.06 MiB/s"
            " a pause of 3072.0 ms, beyond --downtime-limit 300.0 ms; "
            "allow a longer pause, give it more bandwidth, or slow the guest",
        ),
    ],
)
def test_a_guest_that_never_shrinks_ends_it_with_what_can_be_done(limits: Limits, words: str) -> None:
    seen, walk = stall(limits)
    assert seen[-1] == [Do.ABANDON]
    assert isinstance(walk.plan.error, NotConvergingError)
    assert str(walk.plan.error) == words
    assert walk.plan.status is MigrationStatus.FAILED


def test_a_throttle_is_told_before_the_next_round_and_only_when_it_changes() -> None:
    seen, walk = stall(Limits(300 * MS, throttle=ThrottleSteps(20, 10, 35)))
    throttles = [one for told in seen for one in told if isinstance(one, Throttle)]
    assert throttles == [Throttle(20), Throttle(30), Throttle(35)]
    assert all(not isinstance(one, Throttle) for told in seen for one in told[1:])
    assert walk.take(c.Throttled()) == []


def test_a_throttle_is_lifted_once_the_guest_is_paused() -> None:
    walk = Walk(Limits(300 * MS, throttle=ThrottleSteps(20, 10, 35)))
    told = walk.begin()
    while walk.plan.record.throttle_percent < 30:
        told = [one for one in told if not isinstance(one, Throttle)]
        assert walk.send(told, until_ms=walk.now_ms + 1024, pages=5120) == COUNT
        told = walk.count(30720)
    assert walk.take(c.Throttled()) == []
    assert walk.send(told[1:], until_ms=walk.now_ms + 1024, pages=5120) == COUNT
    assert walk.count(10) == [Do.PAUSE]
    told = walk.take(c.GuestPaused(0))
    assert told[:2] == [Throttle(0), Do.SAVE_STATE]
    assert Throttle(0) not in told[1:]
    assert walk.plan.record.max_throttle_percent == 30


def test_regions_stay_with_the_worker_that_remembers_them() -> None:
    """In round 1 an idle worker takes over all that is left. From then on it leaves the owner a quarter."""
    walk = Walk()
    regions = [Region(0, number * 4096, 4096) for number in range(8)]
    walk.plan = Coordinator(regions, 2, LIMITS, verify=False, remembering=True)
    assert walk.begin() == [send(0, 1, 0), send(1, 1, 4), send(0, 1, 1), send(1, 1, 5)]
    assert [walk.take(c.WorkerIdle(0)) for _ in range(5)] == [
        *([send(0, 1, number)] for number in (2, 3, 7, 6)),
        [Instruct(0, Fence(1))],
    ]
    assert walk.take(c.WorkerIdle(1)) == [Instruct(1, Fence(1))]
    assert walk.take(c.WorkerFenced(0, WorkerCounters(sent_pages=24_000)), 1000) == []
    told = walk.take(c.WorkerFenced(1, WorkerCounters(sent_pages=8000)), 1001)
    assert told == [Instruct(0, CountDirty((0, 1, 2, 3, 6, 7))), Instruct(1, CountDirty((4, 5)))]
    assert walk.take(c.WorkerCounted(0, 30_000), 1002) == []
    told = walk.take(c.WorkerCounted(1, 2000), 1003)
    assert told == [send(0, 2, 0), send(1, 2, 4), send(0, 2, 1), send(1, 2, 5)]
    assert [walk.take(c.WorkerIdle(1)) for _ in range(4)] == [
        *([send(1, 2, number)] for number in (7, 6, 3)),
        [Instruct(1, Fence(2))],
    ]
