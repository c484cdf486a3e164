# SPDX-License-Identifier: Apache-2.0
"""The coordinator in a world that answers in any order, dirties what it likes, and fails anywhere."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parmig.engine.messages.worker_messages import CountDirty, DigestRegions, Fence, ScanRegions, SendRegions
from parmig.engine.plan import events as c
from parmig.engine.plan.events import Do, Event, Instruct, Instruction, Throttle
from parmig.engine.records.handover_record import RecordState
from parmig.engine.source_plan.coordinator import Coordinator
from parmig.engine.source_plan.source_steps import Step
from parmig.engine.work.policy import Limits, ThrottleSteps
from parmig.engine.work.shares import ALONE_PAGES
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
from parmig.ram.ack_rate import ChannelLoad
from parmig.ram.region_digest import combine
from parmig.ram.regions import Region
from parmig.ram.shared import WorkerCounters
from parmig.status import MigrationStatus
from parmig.units import NS_PER_MS, NS_PER_S

REGION_PAGES = 512
STEPS = ThrottleSteps(20, 10, 99)


class World:
    """Guest, workers and destination, as queues of answers; checks every instruction as it comes."""

    def __init__(
        self,
        *,
        workers: int,
        regions: int,
        seed: int,
        needs_sync: bool = False,
        settles: bool = False,
        verify: bool = False,
        remembering: bool = False,
        same_memory: bool = True,
        throttle: ThrottleSteps | None = None,
    ) -> None:
        self.random = random.Random(seed)
        self.workers = workers
        pages = ALONE_PAGES if seed % 2 else REGION_PAGES  # much memory, or little
        self.regions = [Region(0, number * pages, pages) for number in range(regions)]
        self.needs_sync = needs_sync
        self.settles = settles
        self.scanned: Counter[int] = Counter()
        self.scans_told: set[int] = set()
        self.settled = 0  # the last round in which the guest settled
        self.verify = verify
        self.remembering = remembering
        self.loads = [self.random.choice([None, 0, 10**5, 10**7, 10**8, 10**9]) for _ in range(workers)]
        self.wire_bytes = 0
        self.same_memory = same_memory
        self.plan = Coordinator(
            self.regions, workers, Limits(300 * NS_PER_MS, 0, 0, throttle), verify=verify, remembering=remembering
        )
        self.throttle_percent = 0
        self.throttles: list[int] = []  # at the beginning of each round
        self.stands = False
        self.now_ns = 10**9
        self.dirty = self.random.randrange(0, 200_000)
        self.queues: list[list[Event]] = [[] for _ in range(workers)]  # a worker answers in order
        self.guest: list[Event] = []
        self.peer: list[Event] = []
        self.disk: list[Event] = []
        self.written: list[RecordState] = []
        self.done: list[Do] = []
        self.given: Counter[int] = Counter()
        self.fenced: set[int] = set()
        self.fenced_and_told: set[int] = set()
        self.taking_part: set[int] = set()
        self.unfenced: dict[int, int] = {}
        self.round = 0
        self.rounds_after: dict[str, int] = {"pause": 0, "save": 0}
        self.counters = [WorkerCounters() for _ in range(workers)]
        self.stopped_ns = 0
        self.loaded = self.saved = False
        self.saves_late = False

    # -- carrying out ---------------------------------------------------------------------------

    def handle(self, event: Event) -> None:
        self.now_ns += self.random.randrange(1, 50 * NS_PER_MS)
        for instruction in self.plan.handle(event, self.now_ns):
            self.obey(instruction)

    def obey(self, instruction: Instruction) -> None:
        assert not {Do.ABANDON, Do.GIVE_UP, Do.FINISH} & set(self.done), "an instruction after the end"
        if isinstance(instruction, Instruct):
            self.tell(instruction.worker, instruction.instruction)
            return
        if isinstance(instruction, Throttle):
            self.throttle(instruction.percent)
            return
        if isinstance(instruction, c.WriteRecord):
            self.written.append(instruction.state)
            if instruction.state is not RecordState.COMPLETED:  # nothing waits for that
                self.disk.append(c.Recorded(instruction.state))
            return
        self.done.append(instruction)
        carry_out: dict[Do, Callable[[], None]] = {
            Do.START_LOG: lambda: self.guest.append(c.LogStarted(self.needs_sync, self.settles)),
            Do.SETTLE: self.settle,
            Do.SYNC_LOG: lambda: self.guest.append(c.LogSynced()),
            Do.PAUSE: self.pause,
            Do.SAVE_STATE: self.save,
            Do.ASK_DIGEST: self.ask_digest,
            Do.RELEASE: self.release,
            Do.HAND_OVER: self.hand_over,
            Do.ABANDON: self.abandon,
            Do.GIVE_UP: lambda: self.expect(Do.HAND_OVER in self.done),
            Do.FINISH: lambda: self.expect(Do.HAND_OVER in self.done),
        }
        carry_out[instruction]()

    @staticmethod
    def expect(holds: bool) -> None:
        assert holds

    def throttle(self, percent: int) -> None:
        if self.stands:
            assert percent == 0 < self.throttle_percent, "lifted without need"
        else:
            assert self.throttle_percent < percent <= STEPS.max_percent, "eased or lifted while it runs"
        self.throttle_percent = percent
        self.guest.append(c.Throttled())

    def tell(self, worker: int, instruction: object) -> None:
        answers = self.queues[worker]
        match instruction:
            case ScanRegions(regions=regions):
                assert self.settles
                assert not self.stands, "the paused guest has settled"
                if self.settled == self.round:
                    self.round_is_over()
                    self.scanned, self.scans_told = Counter(), set()
                    self.settled = -1
                self.scanned.update(regions)
                answers.append(c.WorkerScanned(worker))
            case SendRegions(round=round_, regions=regions, first_pass=first_pass, scanned=scanned) as send:
                if round_ != self.round:
                    self.begin_round(round_)
                assert scanned == (self.settles and not self.stands)
                assert not scanned or self.settled == round_, "pages are read before the guest settled"
                assert worker not in self.fenced, "regions after the worker's fence"
                assert first_pass == (round_ == 1)
                assert regions
                self.given.update(regions)
                self.taking_part.add(worker)
                self.count_pages(worker, len(regions))
                assert all(self.unfenced.get(region, worker) == worker for region in regions), "no fence between two"
                if send.last:
                    assert self.stands
                    self.unfenced |= dict.fromkeys(regions, worker)
                if send.fence or send.last:
                    self.fence(worker, c.WorkerSent if send.last else c.WorkerFenced)
                else:
                    answers.append(c.WorkerIdle(worker, self.load(worker)))
            case Fence(round=round_):
                if round_ != self.round:
                    self.begin_round(round_)
                if self.remembering:  # what is left may belong to others, who remember it
                    assert all(region in self.given for region in self.plan._work.owned[worker])
                else:
                    assert sum(self.given.values()) == len(self.regions), "a fence while regions are left"
                self.fence(worker)
            case CountDirty(regions=regions):
                self.round_is_over()
                assert list(regions) == list(self.plan._work.owned[worker])
                answers.append(c.WorkerCounted(worker, self.dirty // self.workers))
            case DigestRegions(regions=regions):
                answers.append(c.WorkerDigested(worker, {number: number * 7 for number in regions}))
            case _:
                pytest.fail(f"unknown instruction {instruction}")

    def load(self, worker: int) -> ChannelLoad | None:
        """What a worker reports of its channel: nothing, no rate yet, or any rate."""
        rate = self.loads[worker]
        if rate is None:
            return None
        rate = rate and self.random.randrange(rate // 10, rate)
        self.wire_bytes += self.random.randrange(1 << 24)
        return ChannelLoad(rate, self.random.randrange(1 << 24), self.wire_bytes)

    def fence(self, worker: int, answer: type[c.WorkerSent | c.WorkerFenced] = c.WorkerFenced) -> None:
        assert worker not in self.fenced, "two fences in a round"
        self.fenced.add(worker)
        self.taking_part.add(worker)
        self.queues[worker].append(answer(worker, self.counters[worker]))
        if self.fenced == self.taking_part:
            self.dirty = self.random.randrange(0, max(1, self.dirty))

    def count_pages(self, worker: int, regions: int) -> None:
        pages = self.random.randrange(0, regions * REGION_PAGES)
        old = self.counters[worker]
        self.counters[worker] = msgspec.structs.replace(
            old, sent_pages=old.sent_pages + pages, scan_ns=old.scan_ns + self.random.randrange(0, NS_PER_MS)
        )

    def begin_round(self, round_: int) -> None:
        """Only when every worker has answered the fence of the round before."""
        self.round_is_over()
        assert round_ == self.round + 1
        self.round, self.given, self.fenced = round_, Counter(), set()
        self.fenced_and_told, self.taking_part = set(), set()
        self.throttles.append(self.throttle_percent)
        self.rounds_after["pause"] += Do.PAUSE in self.done
        self.rounds_after["save"] += self.saved
        assert self.saved == (self.rounds_after["pause"] == 2), "the scan that follows saving is not the second one"

    def settle(self) -> None:
        assert self.scanned == Counter(range(len(self.regions))), "a region was scanned twice or left out"
        assert self.scans_told == set(range(self.workers)), "settled before every scan was done"
        self.settled = self.round + 1
        self.guest.append(c.GuestSettled(self.random.randrange(0, NS_PER_MS)))

    def round_is_over(self) -> None:
        if self.round:
            assert self.given == Counter(range(len(self.regions))), "a region was left out or handed out twice"
            assert self.fenced, "a round without a fence"
            assert self.fenced_and_told == self.fenced == self.taking_part, "a fence was not asked for or not answered"

    def pause(self) -> None:
        self.round_is_over()
        assert self.done.count(Do.PAUSE) == 1
        self.stopped_ns = self.now_ns + self.random.randrange(0, 1000)
        self.guest.append(c.GuestPaused(self.stopped_ns))

    def save(self) -> None:
        self.round_is_over()
        assert self.done.count(Do.SAVE_STATE) == 1
        assert Do.PAUSE in self.done
        assert self.throttle_percent == 0, "a guest that is throttled is saved"
        assert self.rounds_after == {"pause": 0, "save": 0}, "saving does not begin at the pause"
        self.guest.append(c.StateSaved(4711, "state"))

    def ask_digest(self) -> None:
        assert self.verify
        self.round_is_over()
        digest = combine({number: number * 7 for number in range(len(self.regions))}, len(self.regions))
        self.peer.append(c.PeerDigested(digest if self.same_memory else "other"))

    def release(self) -> None:
        self.round_is_over()
        assert not self.unfenced, "released before all pages were in place"
        assert self.rounds_after == {"pause": 2, "save": 1}, "no scan after the state was saved"
        assert self.verify == (Do.ASK_DIGEST in self.done)
        self.peer.append(c.PeerLoaded(self.random.randrange(0, 10 * NS_PER_MS)))

    def hand_over(self) -> None:
        assert self.loaded, "handed over before the destination had loaded"
        assert self.written == [RecordState.HANDED_OVER], "handed over before that was on record"
        self.peer.append(c.PeerResumed())

    def abandon(self) -> None:
        assert Do.HAND_OVER not in self.done, "the source resumed after hand-over"
        assert self.written in ([], [RecordState.HANDED_OVER, RecordState.RETURNED])

    # -- going on -------------------------------------------------------------------------------

    def next_event(self) -> Event | None:
        ready = [queue for queue in (*self.queues, self.guest, self.peer, self.disk) if queue]
        if self.saves_late and len(ready) > 1 and isinstance(next(iter(self.guest), None), c.StateSaved):
            ready.remove(self.guest)
        if not ready:
            return None
        event = self.random.choice(ready).pop(0)
        if isinstance(event, c.WorkerFenced):
            self.unfenced = {region: worker for region, worker in self.unfenced.items() if worker != event.worker}
        if isinstance(event, c.WorkerFenced | c.WorkerSent):
            self.fenced_and_told.add(event.worker)
        if isinstance(event, c.WorkerScanned):
            self.scans_told.add(event.worker)
        self.loaded |= isinstance(event, c.PeerLoaded)
        self.stands |= isinstance(event, c.GuestPaused)
        self.saved |= isinstance(event, c.StateSaved)
        return event

    def run_on(self) -> None:
        """Feed events until nothing is left."""
        while (event := self.next_event()) is not None:
            self.handle(event)

    def run(self, *, at: int = -1, trouble: Event | None = None) -> int:
        """Feed events until nothing is left; before event number *at* comes *trouble*. Returns how many."""
        self.handle(c.WorkersReady())
        events = 0
        while True:
            if events == at and trouble is not None:
                self.handle(trouble)
            event = self.next_event()
            if event is None:
                return events
            self.handle(event)
            events += 1
            assert events < 20_000, "it does not end"


worlds = st.fixed_dictionaries(
    {
        "workers": st.integers(1, 5),
        "regions": st.integers(0, 24),
        "seed": st.integers(0, 1 << 32),
        "needs_sync": st.booleans(),
        "settles": st.booleans(),
        "verify": st.booleans(),
        "remembering": st.booleans(),
        "throttle": st.sampled_from([None, STEPS]),
    }
)
World_ = dict[str, int]


@given(worlds)
def test_left_alone_it_hands_over_once(settings_: World_) -> None:
    world = World(**settings_)  # type: ignore[arg-type]
    world.run()
    assert world.plan.status is MigrationStatus.COMPLETED
    assert world.plan.step is Step.DONE
    assert world.plan.error is None
    assert [
        world.done.count(one) for one in (Do.START_LOG, Do.PAUSE, Do.SAVE_STATE, Do.RELEASE, Do.HAND_OVER, Do.FINISH)
    ] == [1] * 6
    order = [one for one in world.done if one not in (Do.SYNC_LOG, Do.SETTLE)]
    wanted = [
        Do.START_LOG,
        Do.PAUSE,
        Do.SAVE_STATE,
        *([Do.ASK_DIGEST] if world.verify else []),
        Do.RELEASE,
        Do.HAND_OVER,
        Do.FINISH,
    ]
    assert order == wanted
    # A log that needs it is brought up to date before each count and each round but the first.
    counted = len(world.plan.record.facts)
    assert world.done.count(Do.SYNC_LOG) == (counted + 2 if world.needs_sync else 0)
    # The guest settles in each round in which it runs.
    assert world.done.count(Do.SETTLE) == (counted if world.settles else 0)
    assert [report.settle_ms > 0 for report in world.plan.record.rounds if report.paused] == [False, False]
    assert world.plan.state_bytes == 4711
    assert [report.paused for report in world.plan.record.rounds] == [False] * counted + [True, True]


@given(worlds)
def test_the_phases_of_the_pause_add_up_to_the_downtime(settings_: World_) -> None:
    world = World(**settings_)  # type: ignore[arg-type]
    world.run()
    record = world.plan.record
    phases = msgspec.structs.astuple(record.phases())
    downtime_ms = record.downtime_ms()
    assert downtime_ms is not None
    assert sum(phases) == pytest.approx(downtime_ms, abs=1e-6)
    assert min(phases) >= 0
    assert record.marks["stopped"] == min(world.stopped_ns, record.marks["paused"])


@given(worlds)
def test_what_the_workers_counted_is_in_the_rounds(settings_: World_) -> None:
    world = World(**settings_)  # type: ignore[arg-type]
    world.run()
    record = world.plan.record
    assert record.ram().sent_pages == sum(one.sent_pages for one in world.counters)
    assert [one.sent_pages for one in record.per_worker([])] == [one.sent_pages for one in world.counters]


@given(worlds)
def test_the_record_has_the_throttle_of_each_round(settings_: World_) -> None:
    world = World(**settings_)  # type: ignore[arg-type]
    world.run()
    told = [one.throttle_percent for one in world.plan.record.rounds]
    assert told == [*world.throttles[:-2], 0, 0]
    assert world.plan.record.max_throttle_percent == max(told)
    if settings_["throttle"] is None:
        assert not any(told)


troubles = st.sampled_from(
    [
        lambda: c.Failed(GuestError("trouble")),
        lambda: c.Suspected(PeerLostError("gone")),
        lambda: c.CancelAsked(),
        lambda: c.WorkersReady(),  # an event at a time that has no place for it
    ]
)


@settings(max_examples=300)
@given(worlds, troubles, st.floats(0, 1))
def test_whenever_trouble_comes_the_guest_goes_on_on_one_side(
    settings_: World_, make: Callable[[], Event], when: float
) -> None:
    length = World(**settings_).run()  # type: ignore[arg-type]
    world = World(**settings_)  # type: ignore[arg-type]
    trouble = make()
    world.run(at=int(when * (length - 1)), trouble=trouble)
    handed_over = Do.HAND_OVER in world.done
    ends = [one for one in world.done if one in (Do.ABANDON, Do.GIVE_UP, Do.FINISH)]
    assert len(ends) == 1
    if not handed_over:
        assert ends == [Do.ABANDON]
        cancelled = isinstance(trouble, c.CancelAsked)
        assert world.plan.status is (MigrationStatus.CANCELLED if cancelled else MigrationStatus.FAILED)
        assert isinstance(world.plan.error, ParmigError)
        assert isinstance(world.plan.error, CancelledError) == cancelled
        assert world.plan.error.phase
    elif isinstance(trouble, c.CancelAsked):
        assert ends == [Do.FINISH]  # too late to cancel
    else:
        assert ends == [Do.GIVE_UP]
        assert world.plan.status is MigrationStatus.UNKNOWN
    assert world.plan.machine.ended


def event_numbers(world: dict[str, object]) -> int:
    return World(**world).run()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "make", [lambda: c.Failed(GuestError("x")), lambda: c.Suspected(PeerLostError("x")), c.CancelAsked]
)
def test_trouble_at_every_single_event_is_survived(make: Callable[[], Event]) -> None:
    settings_: dict[str, object] = {"workers": 2, "regions": 6, "seed": 7, "needs_sync": True, "verify": True}
    settings_["settles"] = True
    outcomes = Counter()
    for at in range(event_numbers(settings_)):
        world = World(**settings_)  # type: ignore[arg-type]
        world.run(at=at, trouble=make())
        outcomes[world.done[-1]] += 1
        assert (world.done[-1] is Do.ABANDON) == (Do.HAND_OVER not in world.done)
    assert outcomes[Do.ABANDON] > 20
    assert len(outcomes) == 2


@given(worlds)
def test_after_the_end_everything_is_ignored(settings_: World_) -> None:
    world = World(**settings_)  # type: ignore[arg-type]
    world.run()
    for event in (c.Failed(GuestError("late")), c.CancelAsked(), c.Tick(), c.PeerResumed(), c.WorkerIdle(0)):
        assert world.plan.handle(event, world.now_ns) == []
    assert world.plan.status is MigrationStatus.COMPLETED


def test_memories_that_differ_end_the_migration_before_hand_over() -> None:
    world = World(workers=2, regions=5, seed=1, verify=True, same_memory=False)
    world.run()
    assert world.done[-1] is Do.ABANDON
    assert "other at the destination" in str(world.plan.error)


def run_until(world: World, step: Step) -> None:
    world.handle(c.WorkersReady())
    world.saves_late = step is Step.SAVING  # else the plan may never come to wait for that alone
    while world.plan.step is not step:
        event = world.next_event()
        assert event is not None
        world.handle(event)


def test_the_time_limit_ends_a_migration_that_sends_and_spares_one_that_pauses() -> None:
    for step, ends in ((Step.SENDING, True), (Step.FINAL, False), (Step.LOADING, False)):
        world = World(workers=2, regions=5, seed=1)
        world.plan.limits = Limits(300 * NS_PER_MS, 0, 3600 * NS_PER_S)
        run_until(world, step)
        assert world.plan.handle(c.Tick(), world.now_ns) == []
        late = world.plan.handle(c.Tick(), world.now_ns + 3600 * NS_PER_S)
        assert late == ([Do.ABANDON] if ends else [])
        assert isinstance(world.plan.error, LimitExceededError) == ends


@pytest.mark.parametrize(("throttle", "words"), [(None, "(--auto-converge)"), (STEPS, "even throttled by 99 %")])
def test_a_guest_that_never_shrinks_ends_with_the_options_that_help(throttle: ThrottleSteps | None, words: str) -> None:
    world = World(workers=2, regions=5, seed=1, throttle=throttle)
    world.handle(c.WorkersReady())
    while not world.plan.machine.ended:
        event = world.next_event()
        assert event is not None
        world.dirty = 10**9
        if isinstance(event, c.WorkerCounted):
            event = c.WorkerCounted(event.worker, 10**9)
        world.handle(event)
    assert isinstance(world.plan.error, NotConvergingError)
    assert "--downtime-limit 300" in str(world.plan.error)
    assert words in str(world.plan.error)
    assert world.done[-1] is Do.ABANDON


def paused_world(step: Step, *, seed: int = 1) -> World:
    """A world whose plan stands at *step*, with a limit of the pause of ten seconds."""
    world = World(workers=2, regions=5, seed=seed, needs_sync=True, verify=True)
    world.plan.limits = Limits(300 * NS_PER_MS, 0, 3600 * NS_PER_S, switchover_ns=10 * NS_PER_S)
    run_until(world, step)
    return world


IN_PAUSE = (
    *(Step.PAUSING, Step.SYNCING_FINAL, Step.FINAL, Step.SAVING, Step.SYNCING_AGAIN, Step.RESCANNING),
    *(Step.DIGESTING, Step.LOADING),
)


@pytest.mark.parametrize("step", IN_PAUSE)
def test_no_step_of_the_pause_outlasts_its_limit_and_the_error_names_it(step: Step) -> None:
    world = paused_world(step)
    began_ns = world.plan.record.marks["pausing"]
    assert world.plan.handle(c.Tick(), began_ns + 10 * NS_PER_S - 1) == []
    assert world.plan.handle(c.Tick(), began_ns + 10 * NS_PER_S) == [Do.ABANDON]
    assert world.plan.status is MigrationStatus.FAILED
    assert isinstance(world.plan.error, LimitExceededError)
    assert step.value in str(world.plan.error)
    assert "--switchover-timeout" in str(world.plan.error)


def test_after_hand_over_the_same_limit_runs_again_and_ends_in_unknown() -> None:
    world = paused_world(Step.RESUMING)
    handed_over_ns = world.plan.record.marks["loaded"]
    assert world.plan.handle(c.Tick(), handed_over_ns + 10 * NS_PER_S - 1) == []
    assert world.plan.handle(c.Tick(), handed_over_ns + 10 * NS_PER_S) == [Do.GIVE_UP]
    assert world.plan.status is MigrationStatus.UNKNOWN
    assert isinstance(world.plan.error, OutcomeUnknownError)
    assert Step.RESUMING.value in str(world.plan.error)


anything = st.one_of(
    st.just(c.WorkersReady()),
    st.builds(c.LogStarted, st.booleans()),
    st.just(c.LogSynced()),
    st.builds(c.WorkerIdle, st.integers(0, 1)),
    st.builds(c.WorkerSent, st.integers(0, 1), st.just(WorkerCounters())),
    st.builds(c.WorkerFenced, st.integers(0, 1), st.just(WorkerCounters())),
    st.builds(c.WorkerCounted, st.integers(0, 1), st.integers(0, 1000)),
    st.builds(c.WorkerDigested, st.integers(0, 1), st.just({0: 1})),
    st.builds(c.GuestPaused, st.integers(0, 1 << 40)),
    st.just(c.Throttled()),
    st.just(c.StateSaved(1, "late")),
    st.builds(c.PeerDigested, st.text(max_size=3)),
    st.builds(c.PeerLoaded, st.integers(0, 1000)),
    st.builds(c.PeerResumed, st.integers(0, 1 << 40)),
    st.just(c.Failed(GuestError("any"))),
    st.just(c.Failed(CancelledError("any"))),
    st.just(c.Failed(ProtocolError("any"))),
    st.just(c.Suspected(PeerLostError("any"))),
    st.just(c.CancelAsked()),
    st.just(c.Tick()),
)
Moments = list[tuple[Event, int]]


@settings(max_examples=300)
@given(st.lists(st.tuples(anything, st.integers(0, 4 * NS_PER_S)), max_size=12))
def test_after_hand_over_no_events_in_whatever_order_end_in_anything_but_completed_or_unknown(events: Moments) -> None:
    world = paused_world(Step.RESUMING)
    decided = []
    for event, later_ns in events:
        world.now_ns += later_ns
        decided += world.plan.handle(event, world.now_ns)
    decided += world.plan.handle(c.Tick(), world.now_ns + 10 * NS_PER_S)
    done = [one for one in decided if one != c.WriteRecord(RecordState.COMPLETED)]
    assert done in ([Do.FINISH], [Do.GIVE_UP])
    if done == [Do.FINISH]:
        assert any(isinstance(event, c.PeerResumed) for event, _ in events)
        assert (world.plan.status, world.plan.error) == (MigrationStatus.COMPLETED, None)
    else:
        assert world.plan.status is MigrationStatus.UNKNOWN
        assert isinstance(world.plan.error, OutcomeUnknownError)
        assert world.plan.error.phase == Step.RESUMING.value


@settings(max_examples=300)
@given(st.sampled_from(IN_PAUSE), st.lists(anything, max_size=8), st.integers(0, 1 << 32))
def test_what_the_destination_says_hands_over_only_when_it_has_loaded_what_was_released(
    step: Step, events: list[Event], seed: int
) -> None:
    world = paused_world(step, seed=seed)
    for event in events:
        released = world.plan.step is Step.LOADING
        if Do.HAND_OVER in world.plan.handle(event, world.now_ns):
            assert released
            assert isinstance(event, c.PeerLoaded)
            return
    assert world.plan.status not in (MigrationStatus.HAND_OVER, MigrationStatus.COMPLETED, MigrationStatus.UNKNOWN)


def test_a_digest_that_is_said_twice_does_no_harm() -> None:
    for step in (Step.LOADING, Step.RESUMING):
        world = paused_world(step)
        digest = world.plan.peer_digest
        assert digest
        assert world.plan.handle(c.PeerDigested(digest), world.now_ns) == []
        world.run_on()
        assert world.plan.status is MigrationStatus.COMPLETED


@pytest.mark.parametrize("event", [c.PeerLoaded(1), c.PeerResumed(), c.PeerDigested("early")])
def test_what_the_destination_says_too_early_is_a_fault_of_the_protocol(event: Event) -> None:
    world = paused_world(Step.SAVING)
    assert world.plan.handle(event, world.now_ns) == [Do.ABANDON]
    assert isinstance(world.plan.error, ProtocolError)
