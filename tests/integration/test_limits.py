# SPDX-License-Identifier: Apache-2.0
"""Limits on rate and time, and a guest that writes faster than it can be sent."""

from __future__ import annotations

import pytest

from parmig.units import MIB, NS_PER_MS, NS_PER_S
from tests.integration.sides import Discard, guests, migrate, never_ran, runs_on

RESTLESS = "memory=16MiB,rate=400MiB/s"
"""Dirties all of its memory many times in each round at 32 MiB/s."""
NARROW = {"max_bandwidth_bytes_per_s": 32 * MIB}


@pytest.mark.parametrize("workers", [1, 3])
def test_the_bandwidth_limit_holds_for_all_workers_together_within_five_percent(workers: int) -> None:
    """A property of the limiter, on the clock of the report: 64 MiB at 28 MiB/s, about 2.3 s."""
    with guests("memory=64MiB,rate=0") as (source, destination):
        report, _ = migrate(source, destination, workers=workers, max_bandwidth_bytes_per_s=28 * MIB)
    assert report.error is None
    first = report.rounds[0]
    assert first.wire_bytes > 64 * MIB
    assert first.wire_bytes / first.duration_ms * 1000 == pytest.approx(28 * MIB, rel=0.05)


@pytest.mark.parametrize("tracker", ["pagemap", "bitmap", "digest"])
def test_a_guest_that_writes_faster_than_it_is_sent_fails_and_goes_on_at_the_source(tracker: str) -> None:
    with guests(RESTLESS) as (source, destination):
        report, received = migrate(source, destination, tracker=tracker, downtime_limit_ns=20 * NS_PER_MS, **NARROW)
        assert report.error is not None
        assert (report.status, report.error.type, report.exit_code) == ("failed", "NotConvergingError", 1), report.error
        assert "--downtime-limit 20.0 ms" in report.error.message
        assert received.error is not None
        assert received.error.type == "PeerFailedError"
        assert not any(one.paused for one in report.rounds)
        runs_on(source)
        never_ran(destination)


def test_with_a_longer_pause_allowed_it_completes_at_a_local_minimum() -> None:
    with guests(RESTLESS) as (source, destination):
        report, _ = migrate(
            source, destination, downtime_limit_ns=20 * NS_PER_MS, max_downtime_ns=5 * NS_PER_S, **NARROW
        )
        assert (report.error, report.status, report.verified) == (None, "completed", True)
        assert len([one for one in report.rounds if not one.paused]) > 4
        assert report.downtime_ms is not None
        assert report.downtime_ms > 20
        destination.pause(Discard())
        destination.check()


@pytest.mark.parametrize("rate", [8 * MIB, 32 * MIB])
def test_the_time_limit_ends_it_in_round_1_and_later(rate: int) -> None:
    with guests(RESTLESS) as (source, destination):
        report, _ = migrate(source, destination, timeout_ns=NS_PER_S, max_bandwidth_bytes_per_s=rate)
        assert report.error is not None
        assert (report.status, report.error.type) == ("failed", "LimitExceededError"), report.error
        assert "--timeout" in report.error.message
        assert (len(report.rounds) == 0) is (rate == 8 * MIB)
        runs_on(source)
        never_ran(destination)
