# SPDX-License-Identifier: Apache-2.0
"""The connecting end of a channel on a stream socket, until both sides have greeted."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable

from parmig.errors import PeerUnreachableError
from parmig.transport.tcp_framing import GREETING
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


def connect_and_greet(
    name: str,
    endpoint: Endpoint,
    local: str,
    timeout_ns: int,
    dial: Callable[[Endpoint, str, float], socket.socket] = dial,
    *,
    challenge_bytes: int = 0,
) -> tuple[socket.socket, bytes]:
    """A connection to a peer that speaks parmig's framing; see ``MigrationTransport.connect``.

    Returns:
        The connection, and the challenge of *challenge_bytes* bytes that came with the greeting.

    Raises:
        PeerUnreachableError: no peer answered in time, or it does not speak this framing.
    """
    deadline = time.monotonic() + timeout_ns / NS_PER_S
    while True:
        left_s = max(0.1, deadline - time.monotonic())
        answered = False
        try:
            sock = dial(endpoint, local, left_s)
            answered = True
            challenge = _hear_greeting(sock, deadline, challenge_bytes)
            if challenge is not None:
                return sock, challenge
            why = None
        except (OSError, UnicodeError) as error:
            why = error
        # Refused: the receiver may be starting. Closed without a greeting: it had too many strangers at once.
        again = isinstance(why, _MAY_START) or (answered and why is None)
        if not again or time.monotonic() + _RETRY_S > deadline:
            if answered:
                raise PeerUnreachableError(
                    f"{name}: {endpoint} answers, but does not speak parmig's protocol; "
                    "check that it is a parmig receiver of the same version"
                ) from why
            raise unreachable(name, endpoint, local, why) from why
        time.sleep(_RETRY_S)


def _hear_greeting(sock: socket.socket, deadline: float, challenge_bytes: int) -> bytes | None:
    """Send the greeting and wait for the peer's; return the challenge. None: the peer closed the connection before.

    Raises:
        OSError: no greeting came in time, or it is not parmig's; *sock* is closed.
    """
    heard = b""
    try:
        sock.sendall(GREETING)
        while len(heard) < len(GREETING) + challenge_bytes and GREETING.startswith(heard[: len(GREETING)]):
            sock.settimeout(max(0.001, deadline - time.monotonic()))
            data = sock.recv(len(GREETING) + challenge_bytes - len(heard))
            if not data:
                sock.close()
                return None
            heard += data
    except OSError:
        sock.close()
        raise
    if not heard.startswith(GREETING):
        sock.close()
        raise OSError(errno.EPROTO, "the greeting is not parmig's")
    return heard[len(GREETING) :]
