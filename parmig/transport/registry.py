# SPDX-License-Identifier: Apache-2.0
"""Transports by URI scheme."""

from __future__ import annotations

import zmq

from parmig.errors import UsageError
from parmig.transport.file import SCHEME as FILE_SCHEME
from parmig.transport.file import FileTransport
from parmig.transport.tcp import SCHEME as TCP_SCHEME
from parmig.transport.tcp import TcpTransport
from parmig.transport.transport import Endpoint, MigrationTransport
from parmig.transport.zeromq import SCHEME as DATA_SCHEME
from parmig.transport.zeromq import ZmqTransport

__all__ = ["DATA_SCHEME", "open_control", "open_transport"]


def open_transport(
    endpoint: Endpoint,
    context: zmq.Context[zmq.Socket[bytes]],
    name: str,
    *,
    heartbeat: bool = False,
    max_message_bytes: int,
    token: bytes = b"",
    files: bool = False,
) -> MigrationTransport:
    """A new, unconnected channel of the endpoint's scheme.

    Args:
        context: for schemes of ZeroMQ.
        heartbeat: (tcp) watch the peer by keep-alives, not only its connection.
        token: (zmq+tcp) what the connecting side must say in the handshake; empty: anybody may connect.
        files: a file will do; where answers are expected it will not.

    Raises:
        UsageError: the scheme is not known, or a file where a peer is needed.
    """
    if endpoint.scheme == FILE_SCHEME:
        if not files:
            raise UsageError(f"{endpoint} is a file, and a migration needs a peer that answers; use parmig save")
        return FileTransport(name)
    if endpoint.scheme == TCP_SCHEME:
        return TcpTransport(name, heartbeat=heartbeat, max_message_bytes=max_message_bytes)
    if endpoint.scheme == DATA_SCHEME:
        return ZmqTransport(context, name, max_message_bytes=max_message_bytes, token=token)
    raise UsageError(
        f"unknown transport {endpoint.scheme!r} in {endpoint}; known are {TCP_SCHEME}, {DATA_SCHEME} and {FILE_SCHEME}"
    )


def open_control(
    endpoint: Endpoint, name: str, *, heartbeat: bool, max_message_bytes: int, first_message_bytes: int = 0
) -> TcpTransport:
    """A channel for control or device state: plain TCP, whatever carries the pages.

    Args:
        first_message_bytes: (listening) what a stranger may say before it is accepted.

    Raises:
        UsageError: as :func:`open_transport`.
    """
    if endpoint.scheme == FILE_SCHEME:
        raise UsageError(f"{endpoint} is a file, and a migration needs a peer that answers; use parmig save")
    if endpoint.scheme not in (TCP_SCHEME, DATA_SCHEME):
        raise UsageError(f"unknown transport {endpoint.scheme!r} in {endpoint}; known are {TCP_SCHEME}, {DATA_SCHEME}")
    return TcpTransport(
        name, heartbeat=heartbeat, max_message_bytes=max_message_bytes, first_message_bytes=first_message_bytes
    )
