# SPDX-License-Identifier: Apache-2.0
"""``tcp://``: one TCP connection a channel, with framing and bounds of our own. For control, device state, or pages.

A listening channel reads the first message of any connection, and nothing more. At most :data:`MAX_STRANGERS`
connections wait to send it, each for :data:`FIRST_MESSAGE_NS` and within a few bytes. The oldest is dropped to make
room for the next, but not within :data:`TIME_TO_SPEAK_NS`: a flood cannot push out a sender before its message can
arrive. Until then the next ones wait in the kernel. Each call does a bounded amount of work, whoever floods the port.
``accept`` closes the port: from then on the kernel refuses strangers, and they cost nothing.
"""

from __future__ import annotations

import errno
import os
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
from parmig.transport.tcp_framing import MAX_FRAMES, Inbox, encode, vectors
from parmig.transport.tcp_listen import Listener, listen_at
from parmig.transport.transport import Buffer, Endpoint, Incoming, MigrationTransport
from parmig.units import NS_PER_MS, NS_PER_S

SCHEME = "tcp"

MAX_STRANGERS = 64
FIRST_MESSAGE_NS = 2 * NS_PER_S
TIME_TO_SPEAK_NS = 200 * NS_PER_MS
"""Enough for a round trip between continents, or for a busy host to get its turn. If 64 strangers use all of it, 320
others get in each second: among 400 connections that are made again and again, a sender waits 1.3 s."""

ACCEPTS_A_TURN = 16
NO_DESCRIPTORS_NS = 100 * NS_PER_MS
"""How long nobody is let in after descriptors ran out."""

_EVENTS = 2 * MAX_STRANGERS

M = TypeVar("M")


class TcpTransport(MigrationTransport):
    """One channel over TCP. With ``heartbeat`` each side sends keep-alives, so the other notices a stopped process or a
    vanished host.

    ``token`` has no meaning here: the first message of any connection is read, and its reader checks the content.

    Attributes:
        distrust: (listening side) why the last stranger that was not trusted was not; empty: there was none.
    """

    distrust = ""

    def __init__(self, name: str, *, max_message_bytes: int, **options: Any) -> None:
        super().__init__(name, max_message_bytes=max_message_bytes, **options)
        self._epoll: select.epoll | None = None
        self._listener: Listener | None = None
        self._shut_until_ns = 0
        self._strangers: dict[int, tuple[Connection, int]] = {}  # by descriptor, oldest first, with their time limits
        self._leaving: set[int] = set()
        self._last: Connection | None = None
        self._peer: Connection | None = None

    # -- opening --------------------------------------------------------------------------------

    def bind(self, endpoint: Endpoint) -> Endpoint:
        self._listener, bound = self._listen_at(endpoint)
        self._epoll = select.epoll()
        self._epoll.register(self._listener, select.EPOLLIN)
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
                frames = self._hear_strangers(epoll)
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
        connection = self._last if self._peer is None else self._peer
        return connection.challenge if connection is not None else b""

    @property
    def closed_by_peer(self) -> bool:
        return self._peer is not None and self._peer.closed

    @property
    def encryption(self) -> Encryption | None:
        connection = self._last if self._peer is None else self._peer
        return connection.encryption if connection is not None else None

    def _lost(self, peer: Connection) -> PeerLostError:
        return PeerLostError(f"{self._name}: the connection to the peer was lost: {peer.ended}")

    # -- strangers ------------------------------------------------------------------------------

    def _hear_strangers(self, epoll: select.epoll) -> list[memoryview] | None:
        """The first message of any stranger; each connection that is ready is read once."""
        if self._last is not None:
            self._drop(self._last)  # it was not accepted
            self._last = None
        now = time.monotonic_ns()
        for connection, until_ns in list(self._strangers.values()):
            if until_ns > now:
                break
            self._drop(connection)
        if self._shut_until_ns and now >= self._shut_until_ns and self._listener is not None:
            self._shut_until_ns = 0
            epoll.register(self._listener, select.EPOLLIN)
        ready = [fd for fd, _ in epoll.poll(0, _EVENTS)]
        for fd in ready:
            if fd not in self._strangers:
                continue
            connection, _ = self._strangers[fd]
            if fd in self._leaving:
                connection.drop_input()
                message = None
            else:
                message = connection.read()
            if message is not None:
                self._last = connection
                return message
            if connection.ended:
                self.distrust = connection.distrust or self.distrust
                self._drop(connection)
        # Every stranger that has sent something was read. Only now may new ones push them out.
        if self._listener is not None and self._listener.fileno() in ready:
            self._let_in(epoll)
        return None

    def _let_in(self, epoll: select.epoll) -> None:
        assert self._listener is not None
        for _ in range(ACCEPTS_A_TURN):
            if len(self._strangers) >= MAX_STRANGERS:
                oldest, until_ns = next(iter(self._strangers.values()))
                may_go_ns = until_ns - FIRST_MESSAGE_NS + TIME_TO_SPEAK_NS
                if time.monotonic_ns() < may_go_ns:
                    self._leave_in_kernel(epoll, may_go_ns)
                    return
                self._drop(oldest)
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._drop_strangers()
                    self._leave_in_kernel(epoll, time.monotonic_ns() + NO_DESCRIPTORS_NS)
                    return
                continue  # it ended before it was let in
            if not self._lets_in(sock):
                sock.close()
                continue
            connection = self._open_connection(sock, self._first_message_bytes)
            self._strangers[sock.fileno()] = (connection, time.monotonic_ns() + FIRST_MESSAGE_NS)
            epoll.register(sock, select.EPOLLIN)
            try:
                connection.greet(os.urandom(CHALLENGE_BYTES) if self._challenges else b"")
            except PeerLostError:
                self._drop(connection)

    def _leave_in_kernel(self, epoll: select.epoll, until_ns: int) -> None:
        """Let nobody in until *until_ns*. The port is not polled meanwhile: it would be ready all the time."""
        assert self._listener is not None
        epoll.unregister(self._listener)
        self._shut_until_ns = until_ns

    def _drop(self, connection: Connection) -> None:
        self._strangers.pop(connection.fileno(), None)
        self._leaving.discard(connection.fileno())
        connection.close()  # which takes it out of the epoll descriptor, too

    def _drop_strangers(self, but: Connection | None = None) -> None:
        for connection, _ in list(self._strangers.values()):
            if connection is not but:
                self._drop(connection)

    def turn_away(self, frames: Sequence[Buffer]) -> None:
        """(listening side) Answer the sender of the message read last, and end its connection."""
        connection, self._last = self._last, None
        if connection is None:
            return
        try:
            connection.write(encode(frames))
        except PeerLostError:
            self._drop(connection)
            return
        connection.say_no_more()
        self._leaving.add(connection.fileno())  # until it has closed, or its time is up

    def accept(self) -> None:
        peer, self._last = self._last, None
        if peer is None:
            raise PeerLostError(f"{self._name}: no connection waits to be accepted")
        self._drop_strangers(but=peer)
        self._strangers.clear()
        self._leaving.clear()
        self._close_port()
        peer.inbox.max_message_bytes = MAX_FRAMES * self._max_message_bytes
        peer.settle(beats=self._heartbeat, accepted=True)
        self._peer = peer

    def _close_port(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()

    # -- polling and the end --------------------------------------------------------------------

    def pollables(self) -> list[int]:
        return [self._epoll.fileno()] if self._epoll is not None else []

    def shutdown(self, linger_ms: int = 0) -> None:
        self._drop_strangers()
        self._close_port()
        peer, self._peer = self._peer, None
        if peer is not None:
            peer.close(linger_ms)
        epoll, self._epoll = self._epoll, None
        if epoll is not None:
            epoll.close()
