# SPDX-License-Identifier: Apache-2.0
"""Both plans against each other, through a network that delays, drops, repeats and cuts, with either side killed.

What holds, whatever goes wrong:

1. At no instant do both sides run the guest.
2. A source that ended as failed or cancelled has its guest as it was, and the destination never took over.
3. A source that completed handed over, and the guest is at the destination.
4. A source that does not know stands still. The destination knows: it completed, or it discarded its copy, and has
   that on record. Then the guest runs nowhere until ``parmig recover`` asks there and continues it here.
5. So if both sides live, the guest is on exactly one of them, unless the source does not know.
6. A killed source's guest goes on by its guardian, if the hand-over was not begun.
"""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parmig.engine.records.handover_record import RecordState
from parmig.errors import NotVerifiedError
from parmig.status import MigrationStatus
from tests.property.two_plans import KINDS, World

RAN_BACK = (MigrationStatus.FAILED, MigrationStatus.CANCELLED)
VERIFY = ("", "before", "after")
ENDED_THERE = (MigrationStatus.COMPLETED, *RAN_BACK)


def judge(world: World) -> str:
    """Check what holds at the end; returns what it came to."""
    source, destination = world.source.status, world.destination.status
    lost = world.hand_over_sent and not world.hand_over_taken
    if world.alive["source"]:
        match source:
            case MigrationStatus.COMPLETED:
                assert not world.source_runs
                assert world.destination_runs == world.runs
            case MigrationStatus.UNKNOWN:
                assert not world.source_runs
            case _:
                assert source in RAN_BACK
                assert world.source_runs == world.runs
                assert not world.destination_runs
                assert not world.hand_over_taken
    if world.alive["destination"]:
        assert destination in ENDED_THERE, "the destination always knows"
        assert world.destination_runs == (world.runs and destination is MigrationStatus.COMPLETED)
        assert world.discarded == (destination in RAN_BACK)
    if all(world.alive.values()):
        if destination is MigrationStatus.COMPLETED:
            assert source in (MigrationStatus.COMPLETED, MigrationStatus.UNKNOWN)
        else:
            assert source in RAN_BACK or (source is MigrationStatus.UNKNOWN and lost)
        if world.runs:
            unsettled = source is MigrationStatus.UNKNOWN and destination is not MigrationStatus.COMPLETED
            assert world.source_runs + world.destination_runs == (0 if unsettled else 1)
    if not world.alive["source"] and world.records["source"] is RecordState.OPEN and world.runs and world.guarded:
        assert world.source_runs
    return f"{source.value} {destination.value}"


def test_left_alone_the_guest_moves() -> None:
    for seed in range(50):
        world = World(seed, 2, verify=VERIFY[seed % 3], runs=True, faults={})
        world.run()
        assert judge(world) == "completed completed"


def test_a_paused_guest_moves_and_stays_paused() -> None:
    for verify in VERIFY:
        world = World(1, 2, verify=verify, runs=False, faults={})
        world.run()
        assert judge(world) == "completed completed"


@pytest.mark.parametrize("damaged", [{2: 17}, {0: 511, 3: 0}])
def test_what_differs_is_named_and_the_guest_runs_at_the_destination(damaged: dict[int, int]) -> None:
    for seed in range(20):
        world = World(seed, 2, verify="after", runs=True, faults={})
        world.damaged = damaged
        world.run()
        assert judge(world) == "completed completed"
        error = world.source.error
        assert isinstance(error, NotVerifiedError)
        for region, page in damaged.items():
            assert f"block 'ram' byte {(512 * region + page) * 4096:#x}" in str(error)
        assert world.source.source_digest != world.source.peer_digest == world.destination.digest
        assert world.destination.source_digest == world.source.source_digest


@pytest.mark.parametrize("kind", KINDS)
def test_a_comparison_that_goes_wrong_ends_with_its_own_error_and_moves_no_guest(kind: str) -> None:
    came_to: Counter[str] = Counter()
    for seed in range(3):
        whole = World(seed, 2, verify="after", runs=True, faults={})
        whole.run()
        for step in range(whole.steps - 25, whole.steps):
            world = World(seed, 2, verify="after", runs=True, faults={step: kind})
            world.run()
            judge(world)
            if world.alive["source"] and world.source.status is MigrationStatus.COMPLETED:
                assert isinstance(world.source.error, NotVerifiedError | None)
                came_to["no error" if world.source.error is None else "not verified"] += 1
    assert came_to["no error"] or kind == "kill source"
    assert came_to["not verified"] or kind in ("repeat", "cancel destination", "kill source"), came_to


@pytest.mark.parametrize("kind", KINDS)
def test_one_runs_whatever_goes_wrong_at_whichever_step(kind: str) -> None:
    came_to: Counter[str] = Counter()
    for seed in range(4):
        whole = World(seed, 2, verify=VERIFY[seed % 3], runs=True, faults={})
        whole.run()
        for step in range(whole.steps):
            world = World(seed, 2, verify=VERIFY[seed % 3], runs=True, faults={step: kind})
            world.run()
            came_to[judge(world)] += 1
    # It went wrong early enough to fail, and late enough to complete.
    assert came_to["completed completed"]
    assert any(not key.startswith("completed") for key in came_to), came_to


faults = st.dictionaries(st.integers(0, 200), st.sampled_from(KINDS), max_size=4)


@settings(max_examples=500)
@given(st.integers(0, 1 << 32), st.integers(1, 3), st.sampled_from(VERIFY), st.booleans(), faults)
def test_one_runs_whatever_goes_wrong_in_any_combination(
    seed: int, workers: int, verify: str, runs: bool, wrong: dict[int, str]
) -> None:
    world = World(seed, workers, verify=verify, runs=runs, faults=wrong)
    world.run()
    judge(world)


def test_every_outcome_is_reached() -> None:
    """Else the tests above would promise less than they seem to."""
    came_to = Counter()
    for seed in range(200):
        for kind in ("cut", "drop", "hang"):
            world = World(seed, 2, verify="", runs=True, faults={40 + seed % 100: kind})
            world.run()
            came_to[judge(world)] += 1
    assert {"completed completed", "failed failed", "unknown completed", "unknown failed"} <= set(came_to), came_to
