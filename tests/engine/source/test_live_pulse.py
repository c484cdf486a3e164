# SPDX-License-Identifier: Apache-2.0
"""A running command shows how fast its guest runs."""

from __future__ import annotations

from docs.examples import tiny_guest
from parmig.engine.source.live_pulse import EVERY_NS, LivePulse
from parmig.guests.pulse import Pulsing
from parmig.guests.registry import open_guest
from tests.support import wait_until

assert tiny_guest  # importing it registers the scheme


def test_the_guest_is_asked_once_a_second_and_never_twice_at_a_time() -> None:
    with open_guest("synthetic:memory=2MiB,rate=4MiB/s", incoming=False) as guest:
        assert isinstance(guest, Pulsing)
        wait_until(lambda: len(set(guest.pulse().pages.tolist())) > 1, "a sample after writes")
        live = LivePulse(guest)
        assert live.is_due(5)
        assert not live.is_due(5 + 2 * EVERY_NS), "the guest has not answered yet"
        live.ask()
        assert live.bytes_per_s is not None
        assert live.bytes_per_s > 0
        assert not live.is_due(4 + EVERY_NS)
        assert live.is_due(5 + EVERY_NS)


def test_a_guest_that_is_gone_is_noticed_elsewhere() -> None:
    with open_guest("synthetic:memory=2MiB", incoming=False) as guest:
        live = LivePulse(guest)
        guest.discard()
        wait_until(lambda: not guest.is_running(), "the end of the guest")
        assert live.is_due(0)
        live.ask()
        assert live.bytes_per_s is None
        assert live.is_due(EVERY_NS)


def test_a_guest_that_does_not_count_is_not_asked() -> None:
    with open_guest("tiny:256KiB", incoming=False) as guest:
        assert not LivePulse(guest).is_due(0)
