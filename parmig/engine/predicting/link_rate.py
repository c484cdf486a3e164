# SPDX-License-Identifier: Apache-2.0
"""How fast the network to a receiver can be, as far as this host knows without sending anything."""

from __future__ import annotations

import contextlib
import os
import socket

from parmig.errors import HostRefusedError, PeerRefusedError
from parmig.linux.networks import device_to, own_addresses
from parmig.transport.transport import UNIX_SCHEME, Endpoint

PAYLOAD = 1448 / 1538
"""The share of a link's rate that is left for the bytes of a TCP stream: an Ethernet frame of 1500 bytes takes 1538 on
the wire, and has 1448 for the stream."""


def rate_to(endpoint: Endpoint) -> float:
    """What the network device that leads to *endpoint* carries, in bytes that parmig sends a second.

    Raises:
        HostRefusedError: no real network device leads there, or it does not say how fast it is.
        PeerRefusedError: the host has no address, or there is no route to it.
    """
    give = "give --rate RATE, for example what iperf3 measures"
    if endpoint.scheme == UNIX_SCHEME:
        raise HostRefusedError(f"{endpoint} is on this host, where processors are the limit; {give}")
    host = endpoint.host.strip("[]")
    local, remote = _addresses(host)
    number = device_to(remote, local)
    if number is None:
        raise PeerRefusedError(f"there is no route from {local} to {host}; {give}")
    name = socket.if_indextoname(number)
    if not os.path.exists(f"/sys/class/net/{name}/device"):
        raise HostRefusedError(f"{name}, which leads to {host}, is no real device, so nobody knows its rate; {give}")
    speed = max((one.bytes_per_s for one in own_addresses() if one.device == number), default=0)
    if not speed:
        raise HostRefusedError(f"{name}, which leads to {host}, does not say how fast it is; {give}")
    return speed * PAYLOAD


def _addresses(host: str) -> tuple[str, str]:
    """The address of this host from which *host* is reached, and its own."""
    with contextlib.suppress(OSError, UnicodeError):
        for family, kind, _, _, address in socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM):
            with socket.socket(family, kind) as probe:
                probe.connect(address)  # sends nothing: it only chooses the route
                return str(probe.getsockname()[0]), str(address[0])
    raise PeerRefusedError(f"{host!r} has no address that can be reached from here; check the name, or give --rate")
