# SPDX-License-Identifier: Apache-2.0
"""When the pause begins: on the user's word, at the time limit, and after the user's programs."""

from __future__ import annotations

import msgspec

from parmig.engine.hooks import BEFORE_HAND_OVER, BEFORE_PAUSE, RunHook
from parmig.engine.plan import events as c
from parmig.engine.plan.events import Do, WriteRecord
from parmig.engine.plan.hook_events import HookEnded
from parmig.engine.records.handover_record import RecordState
from parmig.engine.reporting.change import Change
from parmig.engine.source_plan.source_pause import HOLD_NS
from parmig.engine.source_plan.source_steps import Step
from parmig.engine.work.policy import Limits
from parmig.errors import HookError
from parmig.status import MigrationStatus
from parmig.units import NS_PER_MS, NS_PER_S
from tests.engine.plan.test_plan import COUNT, LIMITS, Walk, send_whole

MANUAL = msgspec.structs.replace(LIMITS, manual=True)
HOLD_MS = HOLD_NS // NS_PER_MS


def held() -> Walk:
    """A plan that could pause at 200 ms, and waits for the user."""
    walk = Walk(MANUAL)
    assert walk.send(walk.begin(), until_ms=120, pages=1280) == COUNT
    walk.now_ms = 200
    assert walk.count(10) == []
    assert walk.plan.step is Step.HOLDING
    return walk


def test_while_the_user_decides_there_is_a_round_each_second() -> None:
    walk = held()
    assert walk.take(c.Tick(), 199 + HOLD_MS) == []
    told = walk.take(c.Tick(), 200 + HOLD_MS)
    assert told == send_whole(2)
    assert walk.send(told, until_ms=1210, pages=5) == COUNT
    assert walk.count(10) == []


def test_the_users_word_begins_a_last_round_at_once_and_then_the_pause() -> None:
    walk = held()
    told = walk.take(c.LimitsChanged(Change(switchover="now")), 300)
    assert told == send_whole(2)
    assert walk.send(told, until_ms=310, pages=5) == COUNT
    assert walk.count(10) == [Do.PAUSE]


def test_a_guest_that_does_not_converge_is_held_too() -> None:
    walk = Walk(msgspec.structs.replace(MANUAL, downtime_ns=0))
    told = walk.begin()
    while walk.plan.step is not Step.HOLDING:
        assert walk.send(told, until_ms=walk.now_ms + 100, pages=1280) == COUNT
        told = walk.count(2500)
    assert walk.plan.error is None


def test_a_held_guest_can_be_left() -> None:
    walk = held()
    assert walk.take(c.CancelAsked()) == [Do.ABANDON]
    assert walk.plan.status is MigrationStatus.CANCELLED


def test_at_the_time_limit_the_guest_is_paused_if_asked() -> None:
    walk = Walk(Limits(0, 0, NS_PER_S, pauses_at_timeout=True))
    told = walk.begin()
    assert walk.take(c.Tick(), 1100) == []
    assert walk.send(told, until_ms=1200, pages=1280) == COUNT
    assert walk.count(2500) == [Do.PAUSE]


def test_a_program_before_the_pause_is_followed_by_a_round() -> None:
    walk = Walk()
    walk.plan.hooks = frozenset({BEFORE_PAUSE})
    assert walk.send(walk.begin(), until_ms=120, pages=1280) == COUNT
    assert walk.count(10) == [RunHook(BEFORE_PAUSE)]
    assert walk.plan.takes_changes
    told = walk.take(HookEnded(BEFORE_PAUSE), 900)
    assert told == send_whole(2)
    assert walk.send(told, until_ms=910, pages=5) == COUNT
    assert walk.count(10) == [Do.PAUSE]


def test_a_program_that_fails_before_the_pause_cancels() -> None:
    walk = Walk()
    walk.plan.hooks = frozenset({BEFORE_PAUSE})
    assert walk.send(walk.begin(), until_ms=120, pages=1280) == COUNT
    walk.count(10)
    error = HookError("no")
    assert walk.take(HookEnded(BEFORE_PAUSE, error)) == [Do.ABANDON]
    assert (walk.plan.status, walk.plan.error) == (MigrationStatus.FAILED, error)


def test_a_program_before_the_hand_over_is_a_phase_of_the_pause() -> None:
    walk = Walk()
    walk.plan.hooks = frozenset({BEFORE_HAND_OVER})
    walk.to_release()
    plan, ms = walk.plan, NS_PER_MS
    assert plan.handle(c.PeerLoaded(6 * ms), 300 * ms) == [RunHook(BEFORE_HAND_OVER)]
    assert plan.handle(HookEnded(BEFORE_HAND_OVER), 340 * ms) == [WriteRecord(RecordState.HANDED_OVER)]
    assert plan.handle(c.Recorded(RecordState.HANDED_OVER), 341 * ms) == [Do.HAND_OVER]
    plan.handle(c.PeerResumed(), 350 * ms)
    phases = plan.record.phases()
    assert (phases.hook, phases.resume) == (40, 10)
    assert sum(msgspec.structs.astuple(phases)) == plan.record.downtime_ms()


def test_a_program_before_the_hand_over_that_fails_leaves_the_guest_here() -> None:
    walk = Walk()
    walk.plan.hooks = frozenset({BEFORE_HAND_OVER})
    walk.to_release()
    walk.plan.handle(c.PeerLoaded(0), 300 * NS_PER_MS)
    assert walk.plan.handle(HookEnded(BEFORE_HAND_OVER, HookError("no")), 310 * NS_PER_MS) == [Do.ABANDON]
    assert walk.plan.status is MigrationStatus.FAILED


def test_a_failure_that_is_suspected_counts_when_the_program_has_ended() -> None:
    walk = Walk()
    walk.plan.hooks = frozenset({BEFORE_HAND_OVER})
    walk.to_release()
    walk.plan.handle(c.PeerLoaded(0), 300 * NS_PER_MS)
    lost = HookError("stands for a lost connection")
    walk.plan.handle(c.Suspected(lost), 301 * NS_PER_MS)
    assert walk.plan.handle(HookEnded(BEFORE_HAND_OVER), 302 * NS_PER_MS) == [Do.ABANDON]
    assert walk.plan.error is lost


def test_a_predicted_pause_waits_for_smaller_rounds_and_no_longer() -> None:
    walk = Walk(msgspec.structs.replace(LIMITS, predicted=True))
    assert walk.send(walk.begin(), until_ms=1120, pages=2560) == COUNT
    told = walk.count(300)
    assert walk.plan.step is Step.SENDING
    assert walk.send(told, until_ms=1184, pages=150) == COUNT
    assert walk.count(300) == [Do.PAUSE]
