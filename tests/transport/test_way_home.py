# SPDX-License-Identifier: Apache-2.0
"""A channel that lost its own path goes back to it, and only when it is back."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from parmig.errors import PeerUnreachableError
from parmig.transport import way_home
from parmig.transport.dial import Dialer, Route
from parmig.transport.way_home import WayHome
from tests.support import wait_until


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Dialer, int]]:
    """A dialer whose first attempt on its own path has failed, and the port of that."""
    monkeypatch.setattr(way_home, "LOOK_EVERY_NS", 0)
    with socket.create_server(("127.0.0.1", 0)) as other, socket.socket() as own:
        own.bind(("127.0.0.1", 0))  # nobody listens there
        ports = [sock.getsockname()[1] for sock in (own, other)]
        dialer = Dialer([Route(f"tcp://127.0.0.1:{port}") for port in ports], "channel", max_message_bytes=1 << 16)
        with pytest.raises(PeerUnreachableError):
            dialer.dial(0)
        assert not dialer.at_home
        yield dialer, ports[0]


def test_a_host_that_refuses_is_back(away: tuple[Dialer, int]) -> None:
    dialer, port = away
    home = WayHome(dialer, port)

    def came() -> bool:
        home.look()
        return dialer.at_home

    wait_until(came, "the way home")
    home.look()
    assert dialer.at_home


def test_a_host_that_cannot_be_reached_is_not_back(away: tuple[Dialer, int]) -> None:
    dialer, _ = away
    dialer._routes = (Route("tcp://127.0.0.1:9", "192.0.2.1"), dialer.route)  # not an address of this host
    home = WayHome(dialer, 9)
    for _ in range(20):
        home.look()
    assert not dialer.at_home


def test_a_channel_at_home_stays() -> None:
    dialer = Dialer([Route("tcp://127.0.0.1:9"), Route("tcp://127.0.0.1:10")], "channel", max_message_bytes=1 << 16)
    home = WayHome(dialer, 9)
    home.look()
    assert dialer.at_home
    assert home._probe is None
