# SPDX-License-Identifier: Apache-2.0
"""Makes the control channel and the state channel outlive their connections, on either side."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from parmig.engine.messages.peer_messages import MAX_CONTROL_BYTES, MAX_STATE_CHUNK_BYTES
from parmig.transport.dial import Dialer, Route
from parmig.transport.lasting_ends import RESUME_BYTES, LastingCaller, LastingListener
from parmig.transport.registry import control_scheme, open_control
from parmig.transport.security.security import Security
from parmig.transport.security.session_proof import SessionProof
from parmig.transport.transport import Endpoint, MigrationTransport
from parmig.values import Path

CONTROL, STATE = "control", "state"
"""What the two channels are called in progress and report."""

# Both send keep-alives: a path may swallow everything while a channel has nothing to say, and the pause is no time to
# find out.
_OPTIONS: dict[str, dict[str, Any]] = {
    CONTROL: {"heartbeat": True, "max_message_bytes": MAX_CONTROL_BYTES},
    STATE: {"heartbeat": True, "max_message_bytes": MAX_STATE_CHUNK_BYTES + 64},
}


class ChannelNote(NamedTuple):
    """What happened to a channel: ``reason`` of a loss, or a new connection after ``lasted_ns``."""

    channel: str
    reason: str = ""
    lasted_ns: int = 0


class LastingChannels:
    """Makes channels that last.

    Args:
        session: the secret of this migration.
        limit_ns: how long an outage may last; 0: channels end with their connections.
        notes: gets what happens to them. A channel adds to it in the thread that uses the channel.
        proves: whether new connections prove the session; else they send it.
        security: of every connection to the peer.

    Attributes:
        session, security: as given.
    """

    def __init__(
        self,
        session: bytes,
        limit_ns: int,
        notes: deque[ChannelNote],
        *,
        proves: bool,
        security: Security | None = None,
    ) -> None:
        self.session = session
        self.security = security
        self._proves = proves
        self._limit_ns = limit_ns
        self._notes = notes

    @property
    def outlive(self) -> bool:
        """Whether the channels outlive their connections."""
        return self._limit_ns > 0

    def proof(self, name: str) -> SessionProof | None:
        """What proves the session on the channel *name*; None: the session itself is sent."""
        return SessionProof(self.session, name) if self._proves else None

    def calling(
        self, name: str, first: MigrationTransport, endpoint: Endpoint, paths: Sequence[Path] = ()
    ) -> MigrationTransport:
        """(source) *first*, which was connected to *endpoint*, as a channel that lasts, by any of *paths*."""
        if not self._limit_ns:
            return first
        scheme = control_scheme(endpoint)
        routes = [Route(str(Endpoint(scheme, endpoint.host, endpoint.port)))]
        routes += [Route(str(Endpoint(scheme, path.remote, endpoint.port)), path.local) for path in paths]
        dialer = Dialer(routes, f"{name} channel", challenges=self._proves, security=self.security, **_OPTIONS[name])
        return LastingCaller(f"{name} channel", first, self.session, dial=dialer.dial, **self._how(name))

    def listening(self, name: str, first: MigrationTransport, endpoint: Endpoint) -> MigrationTransport:
        """(destination) *first*, which has listened at *endpoint*, as a channel that lasts."""
        if not self._limit_ns:
            return first

        def listen() -> MigrationTransport:
            return open_control(
                endpoint,
                f"{name} channel",
                first_message_bytes=RESUME_BYTES,
                challenges=self._proves,
                security=self.security,
                **_OPTIONS[name],
            )

        how = self._how(name)
        return LastingListener(f"{name} channel", first, self.session, listen=listen, endpoint=endpoint, **how)

    def _how(self, name: str) -> dict[str, Any]:
        return {
            "limit_ns": self._limit_ns,
            "proof": self.proof(name),
            "lost": lambda reason: self._notes.append(ChannelNote(name, reason)),
            "resumed": lambda lasted_ns: self._notes.append(ChannelNote(name, lasted_ns=lasted_ns)),
        }
