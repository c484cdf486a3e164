# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from parmig.engine.plan import events as c
from parmig.engine.plan.events import Do, Throttle
from parmig.engine.reporting.change import Change, SetRate, changed
from parmig.engine.work.policy import Limits, ThrottleSteps
from parmig.errors import UsageError
from tests.engine.plan.test_plan import COUNT, Walk, bundles

MS = 1_000_000
LIMITS = Limits(300 * MS, 0, 0, ThrottleSteps(20, 10, 99), 30_000 * MS, throttles=False)


def test_what_is_not_named_stays_as_it_is() -> None:
    assert changed(LIMITS, Change()) == LIMITS
    after = changed(LIMITS, Change(downtime_limit_ns=MS, auto_converge="on"))
    assert after == Limits(MS, 0, 0, LIMITS.throttle, 30_000 * MS, throttles=True)
    assert changed(after, Change(auto_converge="off", timeout_ns=5 * MS)).throttles is False


@pytest.mark.parametrize(
    "change",
    [
        Change(downtime_limit_ns=30_000 * MS),
        Change(max_downtime_ns=31_000 * MS),
        Change(downtime_limit_ns=0),
        Change(timeout_ns=-1),
        Change(max_bandwidth_bytes_per_s=-1),
    ],
)
def test_a_limit_that_cannot_be_is_refused(change: Change) -> None:
    with pytest.raises(UsageError):
        changed(LIMITS, change)


def test_a_guest_that_does_not_converge_pauses_after_this_round_if_asked() -> None:
    walk = Walk(Limits(0))
    told = walk.begin()
    assert walk.take(c.LimitsChanged(Change(switchover="now")), 50) == []
    assert walk.send(told, until_ms=120, pages=1280) == COUNT
    taken = [walk.plan.takes_changes]
    assert walk.count(2000) == [Do.PAUSE]
    assert [*taken, walk.plan.takes_changes] == [True, False]
    (report,) = walk.plan.record.change_reports()
    assert (report.at_ms, report.change) == (50, Change(switchover="now"))


def test_a_new_rate_holds_at_once() -> None:
    walk = Walk()
    walk.begin()
    assert walk.take(c.LimitsChanged(Change(max_bandwidth_bytes_per_s=7))) == [SetRate(7)]
    assert walk.take(c.LimitsChanged(Change(max_bandwidth_bytes_per_s=0))) == [SetRate(0)]


def test_a_guest_that_is_slowed_down_runs_freely_once_that_is_switched_off() -> None:
    walk = Walk(LIMITS)
    assert walk.take(c.LimitsChanged(Change(downtime_limit_ns=1))) == []
    told = walk.begin()
    assert walk.take(c.LimitsChanged(Change(auto_converge="on"))) == []
    for round_ in (2, 3):
        assert walk.send(told, until_ms=100 * round_, pages=1280) == COUNT
        told = walk.count(2500)
    assert told == [Throttle(20), *bundles(3)]
    assert walk.take(c.LimitsChanged(Change(auto_converge="off"))) == [Throttle(0)]
    assert walk.send(told[1:], until_ms=400, pages=1280) == COUNT
    assert walk.count(2500) == bundles(4)
