# SPDX-License-Identifier: Apache-2.0
"""Makes the control channel and the state channel outlive their connections, on either side."""

from __future__ import annotations

from collections.abc import Callable

from parmig.transport.lasting_ends import RESUME_BYTES, LastingCaller, LastingListener
from parmig.transport.registry import open_control
from parmig.transport.tcp import TcpTransport
from parmig.transport.transport import Endpoint, MigrationTransport

CONTROL, STATE = "control", "state"
"""What the two channels are called in progress and report."""

Lost = Callable[[str, str], None]
"""Takes the name of a channel that lost its connection, and the reason."""

Resumed = Callable[[str, int], None]
"""Takes the name of a channel that has a connection again, and the length of the outage in nanoseconds."""


class LastingChannels:
    """Makes channels that last.

    Args:
        session: what proves that a connection belongs to this migration.
        limit_ns: how long an outage may last; 0: channels end with their connections.
        lost, resumed: called in the thread that uses the channel.
    """

    def __init__(self, session: bytes, limit_ns: int, lost: Lost, resumed: Resumed) -> None:
        self._session = session
        self._limit_ns = limit_ns
        self._lost, self._resumed = lost, resumed

    def calling(
        self, name: str, first: TcpTransport, endpoint: Endpoint, *, heartbeat: bool, max_message_bytes: int
    ) -> MigrationTransport:
        """(source) *first*, which was connected to *endpoint*, as a channel that lasts."""
        if not self._limit_ns:
            return first

        def dial(timeout_ns: int) -> TcpTransport:
            transport = open_control(
                endpoint, f"{name} channel", heartbeat=heartbeat, max_message_bytes=max_message_bytes
            )
            try:
                transport.connect(endpoint, timeout_ns=timeout_ns)
            except BaseException:
                transport.shutdown()
                raise
            return transport

        return LastingCaller(
            f"{name} channel",
            first,
            self._session,
            limit_ns=self._limit_ns,
            lost=lambda reason: self._lost(name, reason),
            resumed=lambda lasted_ns: self._resumed(name, lasted_ns),
            dial=dial,
        )

    def listening(
        self, name: str, first: TcpTransport, endpoint: Endpoint, *, heartbeat: bool, max_message_bytes: int
    ) -> MigrationTransport:
        """(destination) *first*, which has listened at *endpoint*, as a channel that lasts."""
        if not self._limit_ns:
            return first
        return LastingListener(
            f"{name} channel",
            first,
            self._session,
            limit_ns=self._limit_ns,
            lost=lambda reason: self._lost(name, reason),
            resumed=lambda lasted_ns: self._resumed(name, lasted_ns),
            listen=lambda: open_control(
                endpoint,
                f"{name} channel",
                heartbeat=heartbeat,
                max_message_bytes=max_message_bytes,
                first_message_bytes=RESUME_BYTES,
            ),
            endpoint=endpoint,
        )
