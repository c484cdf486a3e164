# SPDX-License-Identifier: Apache-2.0
"""The connecting end of a channel on a stream socket, until both sides have greeted."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable

from parmig.errors import PeerLostError, PeerNotTrustedError, PeerUnreachableError
from parmig.transport.security.security import Security
from parmig.transport.tcp_connection import Connection
from parmig.transport.tcp_framing import Inbox
from parmig.transport.transport import Endpoint, unreachable
from parmig.units import NS_PER_S

_RETRY_S = 0.1

_MAY_START = (ConnectionRefusedError, ConnectionResetError, FileNotFoundError)


def dial(endpoint: Endpoint, local: str, timeout_s: float) -> socket.socket:
    """A TCP connection to *endpoint*, from address *local* if given. Raises OSError or UnicodeError."""
    source = (local.strip("[]"), 0) if local else None
    return socket.create_connection(
        (endpoint.host.strip("[]"), endpoint.port), timeout=timeout_s, source_address=source
    )


def open_connection(sock: socket.socket, inbox: Inbox, security: Security | None, host: str) -> Connection:
    """What speaks on *sock*, which it owns, by *security*.

    Args:
        host: what this side has connected to; empty: it has listened.

    Raises:
        HostRefusedError: the files of *security* cannot be used.
    """
    if security is None:
        return Connection(sock, inbox)
    from parmig.transport.tls_connection import TlsConnection  # OpenSSL takes 40 ms to import; only keys need it

    return TlsConnection(sock, inbox, security, host)


def connect_and_greet(
    name: str,
    endpoint: Endpoint,
    local: str,
    timeout_ns: int,
    open_connection: Callable[[socket.socket], Connection],
    dial: Callable[[Endpoint, str, float], socket.socket] = dial,
    challenge_bytes: int = 0,
) -> Connection:
    """A connection to a peer that speaks parmig's framing; see ``MigrationTransport.connect``.

    Args:
        name: what errors call the channel.
        open_connection: takes a connected socket, which it owns from then on.
        dial: makes a connected socket.
        challenge_bytes: size of the challenge that comes with the peer's greeting.

    Raises:
        PeerUnreachableError: no peer answered in time, or it does not speak this framing.
        PeerNotTrustedError: one side does not trust the keys of the other, or has none.
    """
    deadline = time.monotonic() + timeout_ns / NS_PER_S
    while True:
        left_s = max(0.1, deadline - time.monotonic())
        answered, why = False, None
        try:
            connection = open_connection(dial(endpoint, local, left_s))
            answered = True
            if _hear_greeting(connection, deadline, challenge_bytes):
                return connection
            connection.close()
            if connection.distrust:
                raise PeerNotTrustedError(f"{name}: {endpoint}: {connection.distrust}")
            # Closed without a greeting: it had too many strangers at once.
            again = connection.closed
        except (OSError, UnicodeError) as error:
            why, again = error, isinstance(error, _MAY_START)  # refused: the receiver may be starting
        if not again or time.monotonic() + _RETRY_S > deadline:
            if answered:
                raise PeerUnreachableError(
                    f"{name}: {endpoint} answers, but does not speak parmig's protocol: {connection.ended}; "
                    "check that it is a parmig receiver of the same version"
                )
            raise unreachable(name, endpoint, local, why) from why
        time.sleep(_RETRY_S)


def _hear_greeting(connection: Connection, deadline: float, challenge_bytes: int) -> bool:
    """Greet, and wait for the peer's greeting. False: it did not come; the connection says why."""
    readable = select.poll()
    readable.register(connection, select.POLLIN)
    try:
        connection.greet()
    except PeerLostError:
        pass  # reading shows it
    while not connection.hear_greeting(challenge_bytes):
        left_s = deadline - time.monotonic()
        if not connection.ended and left_s <= 0:
            connection.ended = "it sent no greeting in time"
        if connection.ended:
            return False
        readable.poll(left_s * 1000)
    return True
