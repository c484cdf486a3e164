# SPDX-License-Identifier: Apache-2.0
"""Makes the control channel and the state channel outlive their connections, on either side."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from parmig.engine.path_search import WILDCARDS
from parmig.engine.peer_messages import MAX_CONTROL_BYTES, MAX_STATE_CHUNK_BYTES
from parmig.transport.lasting_ends import RESUME_BYTES, LastingCaller, LastingListener
from parmig.transport.registry import open_control
from parmig.transport.transport import Endpoint, MigrationTransport
from parmig.values import Path

CONTROL, STATE = "control", "state"
"""What the two channels are called in progress and report."""

_OPTIONS: dict[str, dict[str, Any]] = {
    CONTROL: {"heartbeat": True, "max_message_bytes": MAX_CONTROL_BYTES},
    STATE: {"heartbeat": False, "max_message_bytes": MAX_STATE_CHUNK_BYTES + 64},
}


class ChannelNote(NamedTuple):
    """What happened to a channel: ``reason`` of a loss, or a new connection after ``lasted_ns``."""

    channel: str
    reason: str = ""
    lasted_ns: int = 0


class LastingChannels:
    """Makes channels that last.

    Args:
        session: what proves that a connection belongs to this migration.
        limit_ns: how long an outage may last; 0: channels end with their connections.
        notes: gets what happens to them. A channel adds to it in the thread that uses the channel.
        hosts: (destination) where to listen after a loss, besides the host of the first connection.

    Attributes:
        paths: (source) other ways to the destination, to be tried after a loss.
    """

    def __init__(self, session: bytes, limit_ns: int, notes: deque[ChannelNote], hosts: Sequence[str] = ()) -> None:
        self._session = session
        self._limit_ns = limit_ns
        self._notes = notes
        self._hosts = tuple(hosts)
        self.paths: tuple[Path, ...] = ()

    def calling(self, name: str, first: MigrationTransport, endpoint: Endpoint) -> MigrationTransport:
        """(source) *first*, which was connected to *endpoint*, as a channel that lasts."""
        if not self._limit_ns:
            return first

        failures = 0

        def dial(timeout_ns: int) -> MigrationTransport:
            nonlocal failures
            ways = (Path(endpoint.host), *self.paths)
            way = ways[failures % len(ways)]
            there = Endpoint(endpoint.scheme, way.remote, endpoint.port)
            transport = open_control(there, f"{name} channel", **_OPTIONS[name])
            try:
                transport.connect(there, local=way.local, timeout_ns=timeout_ns)
            except BaseException:
                failures += 1
                transport.shutdown()
                raise
            return transport

        return LastingCaller(f"{name} channel", first, self._session, dial=dial, **self._how(name))

    def listening(self, name: str, first: MigrationTransport, endpoint: Endpoint) -> MigrationTransport:
        """(destination) *first*, which has listened at *endpoint*, as a channel that lasts."""
        if not self._limit_ns:
            return first

        hosts = (endpoint.host, *self._hosts) if endpoint.host not in WILDCARDS else (endpoint.host,)
        everywhere = Endpoint(endpoint.scheme, ",".join(dict.fromkeys(hosts)), endpoint.port)

        def listen() -> MigrationTransport:
            return open_control(endpoint, f"{name} channel", first_message_bytes=RESUME_BYTES, **_OPTIONS[name])

        how = self._how(name)
        return LastingListener(f"{name} channel", first, self._session, listen=listen, endpoint=everywhere, **how)

    def _how(self, name: str) -> dict[str, Any]:
        return {
            "limit_ns": self._limit_ns,
            "lost": lambda reason: self._notes.append(ChannelNote(name, reason)),
            "resumed": lambda lasted_ns: self._notes.append(ChannelNote(name, lasted_ns=lasted_ns)),
        }
