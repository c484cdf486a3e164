# SPDX-License-Identifier: Apache-2.0
"""Makes the control channel and the state channel outlive their connections, on either side."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from parmig.engine.messages.peer_messages import MAX_CONTROL_BYTES, MAX_STATE_CHUNK_BYTES
from parmig.engine.reporting.outages import CONTROL, STATE, Outages, lost_line, resumed_line
from parmig.transport.dial import Dialer, Route
from parmig.transport.lasting_ends import RESUME_BYTES, LastingCaller, LastingListener
from parmig.transport.registry import control_scheme, open_control
from parmig.transport.security.security import Security
from parmig.transport.security.session_proof import SessionProof
from parmig.transport.transport import Endpoint, MigrationTransport
from parmig.values import Path

# Both send keep-alives: a path may swallow everything while a channel has nothing to say, and the pause is no time to
# find out.
_OPTIONS: dict[str, dict[str, Any]] = {
    CONTROL: {"heartbeat": True, "max_message_bytes": MAX_CONTROL_BYTES},
    STATE: {"heartbeat": True, "max_message_bytes": MAX_STATE_CHUNK_BYTES + 64},
}


class ChannelNote(NamedTuple):
    """What happened to a channel: ``reason`` of a loss, or a new connection after ``lasted_ns``.

    ``restarted``: before that, another process has taken the place of the peer.
    """

    channel: str
    reason: str = ""
    lasted_ns: int = 0
    restarted: bool = False


class LastingChannels:
    """Makes channels that last.

    Args:
        session: the secret of this migration.
        limit_ns: how long an outage may last; 0: channels end with their connections.
        notes: gets what happens to them. A channel adds to it in the thread that uses the channel.
        proves: whether new connections prove the session; else they send it.
        security: of every connection to the peer.
        resumable: (source) a receiver that has ended may be started again, so it is waited for all the time.

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
        resumable: bool = False,
        security: Security | None = None,
    ) -> None:
        self.session = session
        self.security = security
        self._proves = proves
        self._limit_ns = limit_ns
        self._notes = notes
        self._resumable = resumable

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
        how = self._how(name) | {"waits": self._resumable}
        if self._resumable and name == CONTROL:
            how["restarted"] = lambda: self._notes.append(ChannelNote(name, restarted=True))
        return LastingCaller(f"{name} channel", first, self.session, dial=dialer.dial, **how)

    def listening(self, name: str, first: MigrationTransport, endpoint: Endpoint) -> MigrationTransport:
        """(destination) *first*, which has listened at *endpoint*, as a channel that lasts."""
        return first if not self._limit_ns else self._listener(name, first, endpoint)

    def taking_up(self, name: str, endpoint: Endpoint) -> LastingListener:
        """(destination) A channel of a receiver that was killed, which had listened at *endpoint*.

        It listens once its ``listens`` is set.
        """
        self._notes.append(ChannelNote(name, "the receiver was killed, and started again"))
        return self._listener(name, None, endpoint)

    def _listener(self, name: str, first: MigrationTransport | None, endpoint: Endpoint) -> LastingListener:
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


class ShownOutages(Outages):
    """(destination) Outages that are shown to the user while the source may still need this side.

    Args:
        workers: how many channels carry pages.
        show: shows a line.
        matters: whether a loss matters now. Later it only means that the source has ended its workers.
    """

    def __init__(self, workers: int, show: Callable[[str], None], matters: Callable[[], bool]) -> None:
        super().__init__(workers)
        self._show = show
        self._matters = matters

    def note_lost(self, channel: str, reason: str) -> None:
        """Note that *channel* has lost its connection."""
        if self._matters():
            self.lost(channel, time.monotonic_ns(), reason)
            self._show(lost_line(channel, reason))

    def note_resumed(self, channel: str, lasted_ns: int) -> None:
        """Note that *channel* has a connection again."""
        self.resumed(channel, time.monotonic_ns())
        self._show(resumed_line(channel, lasted_ns))

    def take(self, notes: deque[ChannelNote]) -> None:
        """Take all that is noted."""
        while notes:
            note = notes.popleft()
            if note.reason:
                self.note_lost(note.channel, note.reason)
            else:
                self.note_resumed(note.channel, note.lasted_ns)
