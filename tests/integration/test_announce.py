# SPDX-License-Identifier: Apache-2.0
"""``--announce``: a guest is announced where it runs in the end, once it runs there, and nowhere else."""

from __future__ import annotations

import pytest

from parmig.config import ReceiveConfig, SendConfig
from parmig.errors import GuestError
from parmig.units import NS_PER_S
from tests.integration.sides import LISTEN, HeldGuest, Migration, never_ran, runs_on

QUICK = "memory=16MiB,rate=20MiB/s"


class Announced(HeldGuest):
    """Notes for each announcement whether the guest ran; each fails after that."""

    def announce(self) -> None:
        self.announcements = [*self.noted(), self.is_running()]
        raise GuestError("the network is gone")

    def noted(self) -> list[bool]:
        return getattr(self, "announcements", [])


@pytest.mark.parametrize("announce", [True, False])
def test_the_destination_announces_a_guest_that_arrived(announce: bool) -> None:
    with (
        Announced(QUICK) as source,  # type: ignore[attr-defined]
        Announced("memory=16MiB", incoming=True) as destination,  # type: ignore[attr-defined]
        Migration(
            source,
            destination,
            SendConfig(workers=2, announce=announce),
            receive=ReceiveConfig(listen=LISTEN, announce=announce),
        ) as at,
    ):
        assert (at.sent().status, at.received().status) == ("completed", "completed")
        assert destination.noted() == [True] * announce
        assert source.noted() == []


@pytest.mark.parametrize("announce", [True, False])
def test_the_source_announces_a_guest_that_was_rolled_back(announce: bool) -> None:
    with (
        Announced(QUICK) as source,  # type: ignore[attr-defined]
        Announced("memory=16MiB", incoming=True, hold=["finish_load"]) as destination,  # type: ignore[attr-defined]
        Migration(
            source,
            destination,
            SendConfig(workers=2, announce=announce, switchover_timeout_ns=2 * NS_PER_S),
            receive=ReceiveConfig(listen=LISTEN, announce=announce),
        ) as at,
    ):
        assert at.sent().status == "failed"
        runs_on(source)
        assert source.noted() == [True] * announce
        destination.open_gates()
        assert at.received().status == "failed"
        assert destination.noted() == []
        never_ran(destination)


def test_a_guest_that_was_not_paused_is_not_announced() -> None:
    with (
        Announced(QUICK, hold=["pause"]) as source,  # type: ignore[attr-defined]
        Announced("memory=16MiB", incoming=True) as destination,  # type: ignore[attr-defined]
        Migration(source, destination, SendConfig(workers=2, announce=True, max_bandwidth_bytes_per_s=1 << 20)) as at,
    ):
        at.at_round(1)
        assert at.sender is not None
        at.sender.cancel()
        assert at.sent().status == "cancelled"
        assert source.noted() == []
