# SPDX-License-Identifier: Apache-2.0
"""Slices are re-armed by the owner of the log, one after the other, and nobody else is answered."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from parmig.errors import GuestError
from parmig.ram.rearm import RearmClient, RearmServer
from parmig.ram.regions import Region

ASK_AS_NOBODY = """
import os, socket, sys
os.setuid(65534)
asking = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
asking.settimeout(10)
asking.connect("\\0" + sys.argv[1])
print(asking.send(bytes(24)) and asking.recv(10))
"""


class Owner:
    """Keeps what was asked, and does what it is told to."""

    def __init__(self) -> None:
        self.asked: list[tuple[Region, bool]] = []
        self.error: Exception | None = None
        self.server = RearmServer(self.rearm)

    def rearm(self, span: Region, everything: bool) -> None:
        self.asked.append((span, everything))
        if self.error is not None:
            raise self.error


@pytest.fixture
def owner() -> Iterator[Owner]:
    one = Owner()
    yield one
    one.server.close()


def test_the_owner_is_asked_for_each_slice_before_the_worker_goes_on(owner: Owner) -> None:
    with closing(RearmClient(owner.server.name)) as one, closing(RearmClient(owner.server.name)) as other:
        one.rearm(Region(0, 64, 128), everything=True)
        assert owner.asked == [(Region(0, 64, 128), True)]
        other.rearm(Region(3, 1 << 40, 1), everything=False)
        one.rearm(Region(1, 0, 7), everything=False)
        assert owner.asked[1:] == [(Region(3, 1 << 40, 1), False), (Region(1, 0, 7), False)]


@pytest.mark.parametrize("error", [ValueError("no such block"), OSError(5, "it broke")])
def test_what_the_owner_cannot_do_is_an_error_of_the_guest_and_the_next_slice_is_answered(
    owner: Owner, error: Exception
) -> None:
    with closing(RearmClient(owner.server.name)) as client:
        owner.error = error
        with pytest.raises(GuestError, match=r"first_page=64.*(no such block|it broke)"):
            client.rearm(Region(0, 64, 64), everything=False)
        owner.error = None
        client.rearm(Region(0, 0, 64), everything=False)


def test_an_owner_that_went_away_is_an_error_of_the_guest() -> None:
    owner = Owner()
    with closing(RearmClient(owner.server.name)) as client:
        client.rearm(Region(0, 0, 64), everything=True)
        owner.server.close()
        with pytest.raises(GuestError):
            client.rearm(Region(0, 0, 64), everything=True)
    with pytest.raises(GuestError, match="cannot be asked"):
        RearmClient(owner.server.name)


def test_a_worker_that_hangs_up_or_talks_nonsense_disturbs_no_other(owner: Owner) -> None:
    with closing(RearmClient(owner.server.name)) as client:
        RearmClient(owner.server.name).close()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
            stranger.connect(f"\0{owner.server.name}")
            stranger.send(bytes(1000))
            assert stranger.recv(100) == b""  # hung up on
        client.rearm(Region(0, 0, 64), everything=False)
    assert owner.asked == [(Region(0, 0, 64), False)]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may start a process of another user")
def test_other_users_are_not_answered(owner: Owner) -> None:
    command = [sys.executable, "-I", "-c", ASK_AS_NOBODY, owner.server.name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.stdout.strip() == "b''" or "BrokenPipe" in done.stderr or "ConnectionReset" in done.stderr, done
    assert owner.asked == []


def test_closing_ends_the_thread_with_workers_connected() -> None:
    before = threading.active_count()
    owner = Owner()
    client = RearmClient(owner.server.name)
    owner.server.close()
    assert threading.active_count() == before
    client.close()
