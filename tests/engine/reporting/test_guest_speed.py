# SPDX-License-Identifier: Apache-2.0
"""What the guest feels, as the report has it."""

from __future__ import annotations

import numpy as np
import pytest

from parmig.config import SendConfig
from parmig.engine.demo.demo import Demo
from parmig.engine.demo.demo_config import DemoConfig
from parmig.engine.reporting.guest_speed import (
    POINT_NS,
    POINTS_MAX,
    GuestSpeedReport,
    Stretch,
    note_arrival,
    speed_until_pause,
)
from parmig.experiments.parmig_peer import felt
from parmig.guests.pulse import Pulse
from parmig.ram.blocks import PAGE_BYTES
from parmig.units import MIB, NS_PER_MS, NS_PER_S

BEGAN_NS = 100 * NS_PER_S
BYTES_PER_PAGE_AND_MS = PAGE_BYTES * 1000


def pulse(*speeds: tuple[int, int], before_ms: int = 500) -> Pulse:
    """A sample each 5 ms: so many pages in a ms for so many ms, beginning *before_ms* before the migration."""
    per_ms = np.concatenate([np.full(ms, pages) for pages, ms in speeds])
    pages = np.concatenate(([0], np.cumsum(per_ms)))[::5]
    at_ns = BEGAN_NS + (np.arange(len(pages)) * 5 - before_ms) * NS_PER_MS
    return Pulse(at_ns, pages, 9.0)


def test_each_part_has_its_speed() -> None:
    speed = speed_until_pause(
        pulse((20, 500), (18, 100), (10, 200), (16, 300)),
        BEGAN_NS,
        100.0,
        [Stretch(100.0, 200.0), Stretch(300.0, 100.0)],
        BEGAN_NS + 500 * NS_PER_MS,
    )
    assert speed is not None
    assert speed.before_bytes_per_s == 20 * BYTES_PER_PAGE_AND_MS
    assert speed.setup_bytes_per_s == 18 * BYTES_PER_PAGE_AND_MS
    assert speed.per_round_bytes_per_s == [10 * BYTES_PER_PAGE_AND_MS, 16 * BYTES_PER_PAGE_AND_MS]
    assert speed.rounds_bytes_per_s == pytest.approx(13 * BYTES_PER_PAGE_AND_MS)
    assert speed.slow_down_percent == pytest.approx(35)
    assert (speed.longest_stall_ms, speed.asked_bytes_per_s) == (5, 9.0)
    assert [at_ms for at_ms, _ in speed.curve] == list(range(-450, 501, POINT_NS // NS_PER_MS))
    assert speed.curve[0][1] == 20 * BYTES_PER_PAGE_AND_MS


def test_a_long_migration_has_no_more_points() -> None:
    speed = speed_until_pause(pulse((1, 60_500)), BEGAN_NS, 1.0, [], BEGAN_NS + 60 * NS_PER_S)
    assert speed is not None
    assert POINTS_MAX - 2 <= len(speed.curve) <= POINTS_MAX
    assert speed.curve[-1][0] == 60_000
    assert speed.rounds_bytes_per_s is None
    assert speed.slow_down_percent is None


def test_a_guest_without_samples_has_no_speed() -> None:
    nothing = Pulse(np.zeros(0, np.int64), np.zeros(0, np.int64))
    assert speed_until_pause(nothing, BEGAN_NS, 1.0, [], BEGAN_NS + 1) is None
    assert note_arrival(None, nothing) is None


def test_a_guest_that_began_with_the_migration_has_no_speed_before() -> None:
    speed = speed_until_pause(
        pulse((20, 500), before_ms=0), BEGAN_NS, 100.0, [Stretch(100.0, 50.0)], BEGAN_NS + 400 * NS_PER_MS
    )
    assert speed is not None
    assert (speed.before_bytes_per_s, speed.slow_down_percent) == (None, None)
    assert speed.rounds_bytes_per_s == 20 * BYTES_PER_PAGE_AND_MS


def test_a_demonstration_reports_what_its_guest_feels() -> None:
    sending = SendConfig(workers=1, verify=True)
    report = Demo(DemoConfig(memory_bytes=8 * MIB, dirty_rate_bytes_per_s=8 * MIB), sending).run()
    speed = report.guest_speed
    assert speed is not None
    assert speed.asked_bytes_per_s == 8 * MIB
    assert len(speed.per_round_bytes_per_s) == sum(not one.paused for one in report.rounds)
    assert all(one.began_ms >= report.setup_time_ms - 1 for one in report.rounds)
    assert speed.after_bytes_per_s
    row = felt(report, report)
    assert row["guest_rounds_bytes_per_s"] == speed.rounds_bytes_per_s
    assert row["guest_longest_stall_ms"] >= report.downtime_ms
    report.guest_speed = None
    assert felt(report, report) == {}


def test_at_the_destination_alone_there_is_a_report_of_its_own() -> None:
    arrived = note_arrival(None, pulse((20, 500)))
    assert arrived == GuestSpeedReport(
        asked_bytes_per_s=9.0, after_bytes_per_s=20 * BYTES_PER_PAGE_AND_MS, longest_stall_ms=5
    )
