# SPDX-License-Identifier: Apache-2.0
"""``tcp://``: one TCP connection a channel, with framing and bounds of our own. For control, device state, or pages.

A listening channel reads the first message of any connection, and nothing more: ``tcp_door``.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from parmig.errors import PeerLostError
from parmig.transport.security.encryption import Encryption
from parmig.transport.security.session_proof import CHALLENGE_BYTES
from parmig.transport.tcp_connect import connect_and_greet, dial, open_connection
from parmig.transport.tcp_connection import Connection
from parmig.transport.tcp_door import TcpDoor
from parmig.transport.tcp_framing import MAX_FRAMES, Inbox, encode, vectors
from parmig.transport.tcp_listen import Listener, listen_at
from parmig.transport.transport import Buffer, Endpoint, Incoming, MigrationTransport

SCHEME = "tcp"

M = TypeVar("M")


class TcpTransport(MigrationTransport):
    """One channel over TCP. With ``heartbeat`` each side sends keep-alives, so the other notices a stopped process or a
    vanished host.

    ``token`` has no meaning here: the first message of any connection is read, and its reader checks the content.
    """

    def __init__(self, name: str, *, max_message_bytes: int, **options: Any) -> None:
        super().__init__(name, max_message_bytes=max_message_bytes, **options)
        self._epoll: select.epoll | None = None
        self._door: TcpDoor | None = None
        self._peer: Connection | None = None

    # -- opening --------------------------------------------------------------------------------

    def bind(self, endpoint: Endpoint) -> Endpoint:
        listener, bound = self._listen_at(endpoint)
        self._epoll = select.epoll()
        self._door = TcpDoor(
            listener,
            self._epoll,
            lambda sock: self._open_connection(sock, self._first_message_bytes),
            self._lets_in,
            challenges=self._challenges,
        )
        return bound

    def _listen_at(self, endpoint: Endpoint) -> tuple[Listener, Endpoint]:
        """What listens, and where. Raises HostRefusedError."""
        return listen_at(endpoint)

    def connect(self, endpoint: Endpoint, *, local: str = "", timeout_ns: int) -> None:
        host, challenge_bytes = endpoint.host.strip("[]"), CHALLENGE_BYTES if self._challenges else 0

        def opened(sock: socket.socket) -> Connection:
            return self._open_connection(sock, MAX_FRAMES * self._max_message_bytes, host)

        self._peer = connect_and_greet(self._name, endpoint, local, timeout_ns, opened, self._dial, challenge_bytes)
        self._peer.settle(beats=self._heartbeat)
        self._epoll = select.epoll()
        self._epoll.register(self._peer, select.EPOLLIN)

    _dial = staticmethod(dial)

    def _lets_in(self, sock: socket.socket) -> bool:
        """Whether whoever connected may speak at all."""
        return True

    def _open_connection(self, sock: socket.socket, max_message_bytes: int, host: str = "") -> Connection:
        """Args: host: what this side has connected to; empty: it has listened."""
        return open_connection(sock, Inbox(self._max_message_bytes, max_message_bytes), self._security, host)

    # -- messages -------------------------------------------------------------------------------

    def write(self, frames: Sequence[Buffer], *, kept: bool = False) -> None:
        self._open_epoll()
        if self._peer is None:
            raise PeerLostError(f"{self._name}: nobody was accepted yet")
        if self._peer.ended:
            raise self._lost(self._peer)
        try:
            if kept:
                self._peer.write(*vectors(frames))
            else:
                self._peer.write(encode(frames))
        except PeerLostError as error:
            raise PeerLostError(f"{self._name}: cannot send: {error}") from error

    def receive(self, timeout_ms: int = 0) -> Incoming | None:
        return self._next(Connection.receive, Incoming, timeout_ms)

    def read(self, timeout_ms: int = 0) -> list[memoryview] | None:
        """The next message, once all of it has arrived: for control and device state."""
        return self._next(Connection.read, lambda frames: frames, timeout_ms)

    def _next(
        self, hear: Callable[[Connection], M | None], of_stranger: Callable[[list[memoryview]], M], timeout_ms: int
    ) -> M | None:
        """The next message of the peer, read by *hear*; before a peer is accepted, the first message of a stranger."""
        epoll = self._open_epoll()
        deadline = time.monotonic() + timeout_ms / 1000
        while True:
            if self._peer is not None:
                message = self._hear_peer(self._peer, hear)
            else:
                frames = None if self._door is None else self._door.hear()
                message = None if frames is None else of_stranger(frames)
            if message is not None:
                return message
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return None
            epoll.poll(min(left_s, 0.1))

    def _open_epoll(self) -> select.epoll:
        if self._epoll is None:
            raise PeerLostError(f"{self._name}: the channel is closed")
        return self._epoll

    def _hear_peer(self, peer: Connection, hear: Callable[[Connection], M | None]) -> M | None:
        message = hear(peer)
        if message is None and peer.ended:
            raise self._lost(peer)
        return message

    @property
    def challenge(self) -> bytes:
        connection = self._speaker
        return connection.challenge if connection is not None else b""

    @property
    def _speaker(self) -> Connection | None:
        """The connection to the peer. Before a peer is accepted, that whose message was read last."""
        return self._peer if self._peer is not None or self._door is None else self._door.last

    @property
    def closed_by_peer(self) -> bool:
        return self._peer is not None and self._peer.closed

    @property
    def encryption(self) -> Encryption | None:
        connection = self._speaker
        return connection.encryption if connection is not None else None

    def take_distrust(self) -> str:
        """(listening side) Why somebody who has connected since the last call was not trusted; empty: all were."""
        if self._door is None:
            return ""
        distrust, self._door.distrust = self._door.distrust, ""
        return distrust

    def _lost(self, peer: Connection) -> PeerLostError:
        return PeerLostError(f"{self._name}: the connection to the peer was lost: {peer.ended}")

    # -- strangers ------------------------------------------------------------------------------

    def turn_away(self, frames: Sequence[Buffer]) -> None:
        """(listening side) Answer the sender of the message read last, and end its connection."""
        if self._door is not None:
            self._door.turn_away(frames)

    def accept(self) -> None:
        peer = self._door.take_last() if self._door is not None else None
        if peer is None:
            raise PeerLostError(f"{self._name}: no connection waits to be accepted")
        self._close_port()
        peer.inbox.max_message_bytes = MAX_FRAMES * self._max_message_bytes
        peer.settle(beats=self._heartbeat, accepted=True)
        self._peer = peer

    def _close_port(self) -> None:
        door, self._door = self._door, None
        if door is not None:
            door.close()

    # -- polling and the end --------------------------------------------------------------------

    def pollables(self) -> list[int]:
        return [self._epoll.fileno()] if self._epoll is not None else []

    def shutdown(self, linger_ms: int = 0) -> None:
        self._close_port()
        peer, self._peer = self._peer, None
        if peer is not None:
            peer.close(linger_ms)
        epoll, self._epoll = self._epoll, None
        if epoll is not None:
            epoll.close()
