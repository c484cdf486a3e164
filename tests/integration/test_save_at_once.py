# SPDX-License-Identifier: Apache-2.0
"""Saving begins right behind the pause, and only behind one that succeeded."""

from __future__ import annotations

import pytest

from parmig.engine.plan import events
from parmig.engine.plan.events import Event
from parmig.engine.source.send_run import SendRun
from parmig.errors import GuestError
from parmig.guests.guest import StateSink
from tests.integration.sides import HeldGuest, Migration, guests, never_ran, runs_on

QUICK = "memory=16MiB,rate=20MiB/s"


class Unpausable(HeldGuest):
    """A guest whose pause fails at its end, once. Counts how often it is saved."""

    saves = 0
    fails = True

    def pause(self, sink: StateSink) -> int:
        stopped_ns = super().pause(sink)
        if self.fails:
            self.fails = False
            raise GuestError("the pause failed at its end")
        return stopped_ns

    def save_state(self, sink: StateSink) -> None:
        self.saves += 1
        super().save_state(sink)


def test_saving_does_not_wait_until_the_plan_hears_of_the_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    with guests(QUICK, hold_source=["save_state"]) as (source, destination):
        feed = SendRun._feed

        def feed_later(run: SendRun, event: Event) -> None:
            if isinstance(event, events.GuestPaused):
                source.gates["save_state"].wait()
                source.open_gates()
            feed(run, event)

        monkeypatch.setattr(SendRun, "_feed", feed_later)
        with Migration(source, destination) as migration:
            assert migration.sent().status == "completed"


def test_a_guest_whose_pause_failed_is_not_saved() -> None:
    with Unpausable(QUICK) as source, HeldGuest("memory=16MiB", incoming=True) as destination:
        with Migration(source, destination) as migration:
            report = migration.sent()
        assert report.status == "failed"
        assert report.error is not None
        assert "the pause failed at its end" in report.error.message
        assert source.saves == 0
        runs_on(source)
        never_ran(destination)
