# SPDX-License-Identifier: Apache-2.0
"""The coordinator while send workers die, and while the receiver is killed and started again.

In the end the destination has the newest version of every region.
"""

from __future__ import annotations

import random
from collections import deque

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from parmig.engine.messages.worker_messages import CheckHeld, CountDirty, Fence, ScanRegions, SendRegions
from parmig.engine.plan import events as c
from parmig.engine.plan.events import AskDigests, Do, Event, Instruct, Instruction, Replace
from parmig.engine.plan.held_events import PeerRestarted, WorkerCheckedHeld
from parmig.engine.plan.plan import MAX_DEATHS
from parmig.engine.source_plan.coordinator import Coordinator
from parmig.engine.source_plan.source_steps import Step
from parmig.engine.work.policy import Limits
from parmig.errors import WorkerError
from parmig.ram.regions import Region
from parmig.ram.shared import WorkerCounters
from parmig.status import MigrationStatus
from parmig.units import NS_PER_MS

PAGES = 512


class Worker:
    """A send worker with its channel. Until it is connected, old batches of the one before it may still arrive."""

    def __init__(self, old: deque[tuple[int, int] | Event] | None = None) -> None:
        self.inbox: deque[object] = deque()
        self.channel: deque[tuple[int, int] | Event] = old or deque()
        self.connected = old is None


class World:
    """A guest that writes, workers that die, and a destination that places what arrives and may be started again."""

    def __init__(
        self,
        *,
        workers: int,
        regions: int,
        seed: int,
        settles: bool,
        remembering: bool,
        deaths: int,
        restarts: int = 0,
        needs_sync: bool = False,
    ) -> None:
        self.random = random.Random(seed)
        self.settles = settles
        self.needs_sync = needs_sync
        self.deaths = deaths
        self.restarts = restarts
        self.now_ns = 10**9
        self.plan = Coordinator(
            [Region(0, number * PAGES, PAGES) for number in range(regions)],
            workers,
            Limits(300 * NS_PER_MS),
            verify=False,
            remembering=remembering,
            replaces=True,
        )
        self.newest = [0] * regions
        self.placed = [-1] * regions
        self.dirty = [True] * regions
        self.reported = [False] * regions
        self.unknown = set(range(regions))
        self.workers = [Worker() for _ in range(workers)]
        self.pending: deque[Event] = deque()
        self.asked: deque[AskDigests] = deque()
        self.stands = False
        self.released = False
        self.writes = 200

    def handle(self, event: Event) -> None:
        self.now_ns += self.random.randrange(1, 20 * NS_PER_MS)
        for instruction in self.plan.handle(event, self.now_ns):
            self.obey(instruction)

    def obey(self, instruction: Instruction) -> None:
        match instruction:
            case Instruct(worker=worker, instruction=order):
                self.workers[worker].inbox.append(order)
            case Replace(worker=worker, regions=regions):
                assert not self.stands, "the guest waits for a worker"
                self.unknown.update(regions)
                for region in regions:
                    self.dirty[region], self.reported[region] = True, False
                self.workers[worker] = Worker(self.workers[worker].channel)
                self.handle(c.ChannelLost(f"worker {worker}", "it died"))
            case AskDigests():
                self.asked.append(instruction)
            case Do.START_LOG:
                self.pending.append(c.LogStarted(self.needs_sync, self.settles))
            case Do.SYNC_LOG:
                self.pending.append(c.LogSynced())
            case Do.SETTLE:
                self.pending.append(c.GuestSettled(1))
            case Do.PAUSE:
                assert all(worker.connected for worker in self.workers), "paused without a worker"
                assert not self.unknown, "paused before lost regions were sent again"
                self.stands = True
                self.pending.append(c.GuestPaused(self.now_ns))
            case Do.SAVE_STATE:
                self.pending.append(c.StateSaved(1, "state"))
            case Do.RELEASE:
                self.released = True
                assert not any(worker.channel for worker in self.workers), "something is under way"
                assert self.placed == self.newest, "a page is lost, or an old one came last"

    # -- what may happen next ---------------------------------------------------------------------

    def step(self) -> bool:
        """Let something happen; returns whether anything could."""
        choices = []
        if self.pending:
            choices.append(lambda: self.handle(self.pending.popleft()))
        if self.asked:
            choices.append(self.answer)
        for number, worker in enumerate(self.workers):
            if not worker.connected:
                choices.append(lambda number=number: self.connect(number))
            elif worker.inbox:
                choices.append(lambda number=number: self.work(number))
            if worker.channel:
                choices.append(lambda worker=worker: self.deliver(worker))
        if not choices:
            return False
        if not self.stands and self.writes and self.random.random() < 0.3:
            self.write()
        if self.deaths and self.plan.replaces_workers and self.random.random() < 0.05:
            self.kill(self.random.randrange(len(self.workers)))
        elif self.restarts and self.plan.replaces_workers and self.random.random() < 0.03:
            self.restart()
        else:
            self.random.choice(choices)()
        return True

    def write(self) -> None:
        self.writes -= 1
        if self.newest:
            region = self.random.randrange(len(self.newest))
            self.newest[region] += 1
            self.dirty[region] = True

    def kill(self, number: int) -> None:
        worker = self.workers[number]
        if not worker.connected:
            return
        self.deaths -= 1
        if worker.inbox and self.random.random() < 0.5:
            self.work(number, half=True)
        worker.channel = deque(item for item in worker.channel if not isinstance(item, Event))
        self.handle(c.WorkerDied(number, WorkerError("killed")))

    def restart(self) -> None:
        """The receiver is killed and started again: of each channel it has placed only the beginning."""
        self.restarts -= 1
        self.asked.clear()
        for number, worker in enumerate(self.workers):
            if worker.inbox and self.random.random() < 0.5:
                self.work(number, half=True)
            for _ in range(self.random.randrange(len(worker.channel) + 1)):
                if not isinstance(item := worker.channel.popleft(), Event):
                    self.placed[item[0]] = item[1]
            worker.channel.clear()
        self.handle(PeerRestarted(tuple(WorkerCounters() for _ in self.workers)))

    def answer(self) -> None:
        asked = self.asked.popleft()
        held = np.full(PAGES, self.placed[asked.region] + 1, dtype=np.uint64)
        self.handle(c.PeerDigests(asked.region, asked.first, held.tobytes()))

    def check(self, number: int, order: CheckHeld) -> Event:
        """Compare a region with what the destination held; some are not armed."""
        region = order.region
        differs = int(np.frombuffer(order.digests, dtype=np.uint64)[0]) != self.newest[region] + 1
        unarmed = differs and self.random.random() < 0.1
        self.unknown.discard(region)
        self.reported[region] = differs
        if unarmed:
            self.unknown.add(region)
            self.dirty[region], self.reported[region] = True, False
        return WorkerCheckedHeld(number, region, PAGES * (not differs), PAGES * differs, unarmed)

    def connect(self, number: int) -> None:
        self.workers[number].connected = True
        self.workers[number].channel.clear()  # the receive worker has closed the old connection
        self.handle(c.ChannelResumed(f"worker {number}"))

    def deliver(self, worker: Worker) -> None:
        item = worker.channel.popleft()
        if isinstance(item, Event):
            self.handle(item)
        else:
            region, version = item
            self.placed[region] = version

    def work(self, number: int, *, half: bool = False) -> None:
        """Carry out an order; with *half* only its first half, and without an answer."""
        worker = self.workers[number]
        answer: Event | None = None
        match worker.inbox.popleft():
            case ScanRegions(regions=regions):
                for region in regions[: len(regions) // 2] if half else regions:
                    self.reported[region] |= self.dirty[region]
                    self.dirty[region] = False
                answer = c.WorkerScanned(number)
            case SendRegions(regions=regions, first_pass=first_pass, scanned=scanned) as send:
                for region in regions[: len(regions) // 2] if half else regions:
                    self.send(worker, region, first_pass=first_pass, scanned=scanned)
                if send.fence:
                    worker.channel.append(c.WorkerFenced(number, WorkerCounters()))
                elif send.last:
                    answer = c.WorkerSent(number, WorkerCounters())
                else:
                    answer = c.WorkerIdle(number)
            case Fence():
                worker.channel.append(c.WorkerFenced(number, WorkerCounters()))
            case CountDirty(regions=regions):
                answer = c.WorkerCounted(number, PAGES * sum(self.dirty[region] for region in regions))
            case CheckHeld() as order:
                answer = self.check(number, order)
        if answer is not None and not half:
            self.handle(answer)

    def send(self, worker: Worker, region: int, *, first_pass: bool, scanned: bool) -> None:
        assert first_pass or region not in self.unknown, "what nobody knows is taken for known"
        marks = self.reported if scanned else self.dirty
        if marks[region] or first_pass:
            worker.channel.append((region, self.newest[region]))
        marks[region] = False
        self.unknown.discard(region)

    def run(self) -> None:
        self.handle(c.WorkersReady())
        for _ in range(50_000):
            if self.released or self.plan.over:
                return
            assert self.step(), f"it waits for nothing while {self.plan.step.value}"
        raise AssertionError("it does not end")


@settings(max_examples=300)
@given(
    st.integers(1, 4),
    st.integers(0, 12),
    st.integers(0, 1 << 32),
    st.booleans(),
    st.booleans(),
    st.integers(0, MAX_DEATHS),
)
def test_workers_die_and_the_newest_version_of_every_region_arrives(
    workers: int, regions: int, seed: int, settles: bool, remembering: bool, deaths: int
) -> None:
    world = World(workers=workers, regions=regions, seed=seed, settles=settles, remembering=remembering, deaths=deaths)
    world.run()
    assert world.released, world.plan.error
    assert world.plan.step is Step.LOADING


@settings(max_examples=300)
@given(
    st.integers(1, 4),
    st.integers(0, 12),
    st.integers(0, 1 << 32),
    st.sampled_from([(False, False), (True, False), (False, True)]),
    st.booleans(),
    st.integers(0, 2),
    st.integers(1, 4),
)
def test_the_receiver_is_started_again_and_the_newest_version_of_every_region_arrives(
    workers: int, regions: int, seed: int, log: tuple[bool, bool], remembering: bool, deaths: int, restarts: int
) -> None:
    settles, needs_sync = log
    world = World(
        workers=workers,
        regions=regions,
        seed=seed,
        settles=settles,
        needs_sync=needs_sync,
        remembering=remembering,
        deaths=deaths,
        restarts=restarts,
    )
    world.run()
    assert world.released, world.plan.error
    assert len(world.plan.record.restarts) <= restarts


def test_one_death_too_many_ends_it() -> None:
    world = World(workers=2, regions=8, seed=1, settles=False, remembering=False, deaths=0)
    world.handle(c.WorkersReady())
    for _ in range(MAX_DEATHS):
        world.kill(0)
        world.connect(0)
    assert not world.plan.over
    world.kill(0)
    assert world.plan.status is MigrationStatus.FAILED
    assert isinstance(world.plan.error, WorkerError)
