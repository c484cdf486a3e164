# SPDX-License-Identifier: Apache-2.0
"""Checks by a plain TCP connection whether anybody listens at an address."""

from __future__ import annotations

import socket
import time

from parmig.transport.transport import Endpoint, unreachable
from parmig.units import NS_PER_MS, NS_PER_S

RETRY_NS = 100 * NS_PER_MS


def probe(name: str, endpoint: Endpoint, local: str, timeout_ns: int) -> None:
    """Try a plain TCP connection first: ZeroMQ would retry for ever, without a reason.

    Raises:
        PeerUnreachableError: nobody accepted a connection within *timeout_ns*.
    """
    host = endpoint.host.strip("[]")
    source = (local.strip("[]"), 0) if local else None
    deadline = time.monotonic_ns() + timeout_ns
    while True:
        left_s = max((deadline - time.monotonic_ns()) / NS_PER_S, 0.1)
        try:
            socket.create_connection((host, endpoint.port), timeout=left_s, source_address=source).close()
            return
        except (OSError, UnicodeError) as error:
            starting = isinstance(error, ConnectionRefusedError)  # the receiver may not listen yet
            if not starting or time.monotonic_ns() + RETRY_NS > deadline:
                raise unreachable(name, endpoint, local, error) from error
        time.sleep(RETRY_NS / NS_PER_S)
