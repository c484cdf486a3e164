# SPDX-License-Identifier: Apache-2.0
"""The plan of a snapshot: the guest goes on as soon as its state is saved, and the file is finished after that."""

from __future__ import annotations

import pytest

from parmig.engine.messages.worker_messages import CountDirty, DigestRegions, Fence, SendRegions
from parmig.engine.plan import events as e
from parmig.engine.plan.events import Do, Event, Instruct, Instruction
from parmig.engine.work.policy import Limits
from parmig.errors import ParmigError, SnapshotError
from parmig.ram.region_digest import combine
from parmig.ram.regions import Region
from parmig.ram.shared import WorkerCounters
from parmig.snapshot.plan import SnapshotPlan
from parmig.snapshot.snapshot_events import Committed, Composed, WentOn
from parmig.status import MigrationStatus
from parmig.units import NS_PER_MS

WORKERS = 3
PIECES = 7
PAUSE = [Do.PAUSE, Do.SAVE_STATE, Do.GO_ON, Do.COMPOSE, Do.COMMIT, Do.FINISH]


class World:
    """Does what the plan says, at once, and answers; *fail_at* answers with a failure instead."""

    def __init__(self, *, needs_sync: bool = False, fail_at: Do | None = None) -> None:
        self.plan = SnapshotPlan([Region(0, n * 512, 512) for n in range(9)], WORKERS, Limits(300 * NS_PER_MS))
        self.needs_sync, self.fail_at = needs_sync, fail_at
        self.done: list[Do] = []
        self.digested: list[int] = []
        self.now_ns = 0

    def run(self) -> None:
        answers: list[Event] = [e.WorkersReady()]
        while answers and not self.plan.machine.ended:
            self.now_ns += 1000
            for instruction in self.plan.handle(answers.pop(0), self.now_ns):
                answers += self.answer(instruction)

    def answer(self, instruction: Instruction) -> list[Event]:
        if isinstance(instruction, Do):
            self.done.append(instruction)
            if instruction is self.fail_at:
                return [e.Failed(SnapshotError("full"))]
        match instruction:
            case Instruct(worker=worker, instruction=SendRegions(last=True)):
                return [e.WorkerSent(worker, WorkerCounters())]
            case Instruct(worker=worker, instruction=SendRegions(fence=False)):
                return [e.WorkerIdle(worker)]
            case Instruct(worker=worker, instruction=Fence() | SendRegions()):
                return [e.WorkerFenced(worker, WorkerCounters())]
            case Instruct(worker=worker, instruction=CountDirty()):
                return [e.WorkerCounted(worker, 0)]
            case Instruct(worker=worker, instruction=DigestRegions(regions=numbers)):
                assert Do.COMPOSE in self.done
                self.digested += numbers
                return [e.WorkerDigested(worker, {number: number + 1 for number in numbers})]
            case Do.START_LOG:
                return [e.LogStarted(self.needs_sync)]
            case Do.SYNC_LOG:
                return [e.LogSynced()]
            case Do.PAUSE:
                return [e.GuestPaused(self.now_ns)]
            case Do.SAVE_STATE:
                return [e.StateSaved(10, "digest")]
            case Do.GO_ON:
                return [WentOn(self.now_ns)]
            case Do.COMPOSE:
                return [Composed(PIECES)]
            case Do.COMMIT:
                return [Committed()]
        return []


@pytest.mark.parametrize("needs_sync", [False, True])
def test_the_steps_come_in_order_and_each_piece_is_digested_once(needs_sync: bool) -> None:
    world = World(needs_sync=needs_sync)
    world.run()
    assert world.plan.status is MigrationStatus.COMPLETED
    assert [one for one in world.done if one not in (Do.START_LOG, Do.SYNC_LOG)] == PAUSE
    assert sorted(world.digested) == list(range(PIECES))
    assert world.plan.file_digest == combine({number: number + 1 for number in range(PIECES)}, PIECES)


def test_the_pause_ends_when_the_guest_goes_on_not_when_the_file_is_finished() -> None:
    world = World()
    world.run()
    marks = world.plan.record.marks
    assert marks["stopped"] < marks["resumed"] < marks["finished"]
    phases = world.plan.record.phases()
    assert phases.state_load == phases.state_transfer == phases.verify == 0


@pytest.mark.parametrize("fail_at", PAUSE[:-1])
def test_a_failure_anywhere_leads_back_to_a_running_guest(fail_at: Do) -> None:
    world = World(fail_at=fail_at)
    world.run()
    assert world.plan.status is MigrationStatus.FAILED
    assert world.done[-1] is Do.ABANDON
    assert isinstance(world.plan.error, SnapshotError)
    assert world.plan.error.phase == world.plan.step.value


def test_a_cancel_while_the_file_is_finished_leaves_no_file() -> None:
    world = World(fail_at=Do.COMPOSE)
    world.answer = lambda instruction: (  # type: ignore[method-assign]
        [e.CancelAsked()] if instruction is Do.COMPOSE else World.answer(world, instruction)
    )
    world.run()
    assert world.plan.status is MigrationStatus.CANCELLED
    assert isinstance(world.plan.error, ParmigError)
