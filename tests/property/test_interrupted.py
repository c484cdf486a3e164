# SPDX-License-Identifier: Apache-2.0
"""The coordinator while its channels lose their connections and get others."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from parmig.engine.plan import events as c
from parmig.engine.plan.events import Do
from parmig.engine.reporting.outages import MAX_LISTED, Outages
from parmig.engine.source_plan.source_steps import Step
from parmig.status import BEFORE_PAUSE, MigrationStatus
from parmig.units import NS_PER_MS
from tests.property.test_coordinator import World, World_, worlds


class Flapping(World):
    """A world whose channels are lost and come back at any time."""

    waited = 0

    def pause(self) -> None:
        assert not self.plan.record.outages.interrupted, "paused while a channel had no connection"
        super().pause()

    def flap(self) -> None:
        channel = self.random.choice(["control", "state", *(f"worker {number}" for number in range(self.workers))])
        if channel in self.plan.record.outages.interrupted:
            self.handle(c.ChannelResumed(channel, 10, "there"))
        elif self.plan.status in BEFORE_PAUSE:
            self.handle(c.ChannelLost(channel, "it was cut"))

    def run_flapping(self, often: float) -> None:
        self.handle(c.WorkersReady())
        while not self.plan.over:
            if self.random.random() < often:
                self.flap()
            event = self.next_event()
            if event is not None:
                self.handle(event)
                continue
            assert self.plan.step is Step.RECONNECTING, "it waits for nothing"
            self.waited += 1
            for channel in self.plan.record.outages.interrupted:
                self.handle(c.ChannelResumed(channel))


@given(worlds, st.floats(0, 0.5))
def test_it_hands_over_once_and_never_pauses_without_a_connection(settings_: World_, often: float) -> None:
    world = Flapping(**settings_)  # type: ignore[arg-type]
    world.run_flapping(often)
    assert world.plan.status is MigrationStatus.COMPLETED
    assert world.done.count(Do.PAUSE) == world.done.count(Do.HAND_OVER) == 1
    outages = world.plan.record.outages
    listed = outages.reports(0, world.now_ns)
    assert len(listed) == min(outages.count, MAX_LISTED)
    assert all(report.lasted_ms >= 0 for report in listed)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 50)), max_size=60), st.integers(1, 3))
def test_a_standstill_is_the_time_in_which_no_worker_has_a_connection(
    flaps: list[tuple[int, int]], workers: int
) -> None:
    outages, lost, now = Outages(workers), set[int](), 0
    standing: list[bool] = []
    for worker, after in flaps:
        standing += [len(lost) == workers] * after
        now += after
        if worker >= workers:
            continue
        if worker in lost:
            outages.resumed(f"worker {worker}", now)
        else:
            outages.lost(f"worker {worker}", now, "cut")
        lost ^= {worker}
    for since in range(0, now, 7):
        assert outages.standstill_ns(since, now) == sum(standing[since:])


def test_the_report_has_what_is_known_of_each_outage() -> None:
    outages = Outages(2)
    outages.lost("worker 1", 5 * NS_PER_MS, "cut")
    outages.lost("control", 6 * NS_PER_MS, "silent")
    outages.resumed("worker 1", 9 * NS_PER_MS, route="tcp://there", again_bytes=7)
    outages.resumed("worker 0", 9 * NS_PER_MS)  # it was never lost
    worker, control = outages.reports(NS_PER_MS, 10 * NS_PER_MS)
    assert (worker.channel, worker.began_ms, worker.lasted_ms, worker.ended) == ("worker 1", 4, 4, True)
    assert (worker.reason, worker.route, worker.again_bytes) == ("cut", "tcp://there", 7)
    assert (control.channel, control.lasted_ms, control.ended) == ("control", 4, False)
    assert [one.channel for one in outages.reports(0, 1, completed=True)] == ["worker 1"]
    assert outages.interrupted == ("control",)
    assert (outages.count, outages.again_bytes) == (2, 7)
