# SPDX-License-Identifier: Apache-2.0
"""Transports by URI scheme."""

from __future__ import annotations

import zmq

from parmig.errors import UsageError
from parmig.transport.base import Endpoint, MigrationTransport
from parmig.transport.zeromq import SCHEME, ZmqTransport


def open_transport(
    endpoint: Endpoint, context: zmq.Context[zmq.Socket[bytes]], name: str, *, heartbeat: bool, max_message_bytes: int
) -> MigrationTransport:
    """A new, unconnected channel of the endpoint's scheme.

    Raises:
        UsageError: the scheme is not known.
    """
    if endpoint.scheme != SCHEME:
        raise UsageError(f"unknown transport {endpoint.scheme!r} in {endpoint}; known is {SCHEME}")
    return ZmqTransport(context, name, heartbeat=heartbeat, max_message_bytes=max_message_bytes)
