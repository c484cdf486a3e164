# SPDX-License-Identifier: Apache-2.0
"""Transports by URI scheme."""

from __future__ import annotations

import zmq

from parmig.errors import UsageError
from parmig.transport.base import Endpoint, MigrationTransport
from parmig.transport.file import SCHEME as FILE_SCHEME
from parmig.transport.file import FileTransport
from parmig.transport.zeromq import SCHEME, ZmqTransport


def open_transport(
    endpoint: Endpoint,
    context: zmq.Context[zmq.Socket[bytes]],
    name: str,
    *,
    heartbeat: bool,
    max_message_bytes: int,
    files: bool = False,
) -> MigrationTransport:
    """A new, unconnected channel of the endpoint's scheme.

    Args:
        files: a file will do; where answers are expected it will not.

    Raises:
        UsageError: the scheme is not known, or a file where a peer is needed.
    """
    if endpoint.scheme == FILE_SCHEME:
        if not files:
            raise UsageError(f"{endpoint} is a file, and a migration needs a peer that answers; use parmig save")
        return FileTransport(name)
    if endpoint.scheme != SCHEME:
        raise UsageError(f"unknown transport {endpoint.scheme!r} in {endpoint}; known are {SCHEME} and {FILE_SCHEME}")
    return ZmqTransport(context, name, heartbeat=heartbeat, max_message_bytes=max_message_bytes)
