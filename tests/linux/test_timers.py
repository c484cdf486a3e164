# SPDX-License-Identifier: Apache-2.0
"""A descriptor that is readable from a time on."""

from __future__ import annotations

import select
import time
from contextlib import closing

from parmig.linux.timers import Alarm
from parmig.units import NS_PER_MS


def test_an_alarm_is_readable_from_its_time_on() -> None:
    with closing(Alarm()) as alarm:
        poll = select.poll()
        poll.register(alarm, select.POLLIN)
        assert not poll.poll(0)
        at_ns = time.monotonic_ns() + 20 * NS_PER_MS
        alarm.set(at_ns)
        assert poll.poll(10_000)
        assert time.monotonic_ns() >= at_ns
        assert poll.poll(0), "nobody reads it"
        alarm.set(time.monotonic_ns() + 3600 * 1000 * NS_PER_MS)
        assert not poll.poll(0)
        alarm.set(1)
        assert poll.poll(0)
        alarm.set(0)
        assert not poll.poll(0)
