# SPDX-License-Identifier: Apache-2.0
"""One listening port until its peer is accepted: reads the first message of any connection, and nothing more.

At most :data:`MAX_STRANGERS` connections wait to send it, :data:`SHARE` of one address, each for
:data:`FIRST_MESSAGE_NS` and within a few bytes. ``security.strangers`` decides who makes room for the next. Each call
does a bounded amount of work, whoever floods the port. While connections have to make room there is a pause between
two calls that take new ones. Once a peer is taken, the port is closed: from then on the kernel refuses strangers, and
they cost nothing.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from collections.abc import Callable, Sequence

from parmig.errors import PeerLostError
from parmig.linux.timers import Alarm
from parmig.transport.security.session_proof import CHALLENGE_BYTES
from parmig.transport.security.strangers import Strangers, address_of
from parmig.transport.tcp_connection import Connection
from parmig.transport.tcp_framing import encode
from parmig.transport.tcp_listen import Listener
from parmig.transport.transport import Buffer
from parmig.units import NS_PER_MS, NS_PER_S

MAX_STRANGERS, SHARE = 160, 96
"""On the control port each may have sent 256 KiB, so they keep at most 40 MiB."""

FIRST_MESSAGE_NS = 2 * NS_PER_S
TIME_TO_SPEAK_NS = 200 * NS_PER_MS
"""Enough for a round trip between continents, or for a busy host to get its turn. If the strangers of one address use
all of it, 480 others of that address get in each second."""

ACCEPTS_A_TURN = 16
PAUSE_NS = 10 * NS_PER_MS
"""How long nobody is let in after somebody had to make room. With ACCEPTS_A_TURN, 1,600 connections a second are
looked at, and a sender of another address waits at most 2.5 s behind 4,096 that wait in the kernel."""

NO_DESCRIPTORS_NS = 100 * NS_PER_MS
"""How long nobody is let in after descriptors ran out."""

_EVENTS = MAX_STRANGERS + 1


class TcpDoor:
    """The strangers at one port.

    Args:
        listener: owned from here on.
        epoll: watches the listener, the strangers and their time limits; not owned.
        open_connection: makes a connection of what was accepted.
        lets_in: whether whoever connected may speak at all.
        challenges: each connection gets a challenge with the greeting.

    Attributes:
        last: the connection whose message was read last; None: it was answered or dropped.
        distrust: why the last connection that was not trusted was not; empty: all were.
    """

    def __init__(
        self,
        listener: Listener,
        epoll: select.epoll,
        open_connection: Callable[[socket.socket], Connection],
        lets_in: Callable[[socket.socket], bool],
        *,
        challenges: bool,
    ) -> None:
        self.last: Connection | None = None
        self.distrust = ""
        self._listener = listener
        self._epoll = epoll
        self._open_connection = open_connection
        self._lets_in = lets_in
        self._challenges = challenges
        self._connections: dict[int, Connection] = {}  # by descriptor
        self._strangers: Strangers[int] = Strangers(MAX_STRANGERS, SHARE, TIME_TO_SPEAK_NS)
        self._leaving: set[int] = set()
        self._shut_until_ns = 0
        self._alarm = Alarm()  # nobody may poll this channel on its own
        epoll.register(listener, select.EPOLLIN)
        epoll.register(self._alarm, select.EPOLLIN)

    def hear(self) -> list[memoryview] | None:
        """The first message of any stranger; each connection that is ready is read once."""
        message = self._hear()
        first = next(iter(self._strangers.times_ns()), 0)
        ends_ns = [first + FIRST_MESSAGE_NS] if first else []
        self._alarm.set(min([*ends_ns, *([self._shut_until_ns] if self._shut_until_ns else [])], default=0))
        return message

    def _hear(self) -> list[memoryview] | None:
        if self.last is not None:
            self._drop(self.last)  # it was not accepted
            self.last = None
        now = time.monotonic_ns()
        if self._shut_until_ns and now >= self._shut_until_ns:
            self._shut_until_ns = 0
            self._epoll.register(self._listener, select.EPOLLIN)
        ready = [fd for fd, _ in self._epoll.poll(0, _EVENTS)]
        # Who has spoken is heard once more: this process may not have had a turn for long.
        expired = set(self._strangers.expired(now - FIRST_MESSAGE_NS))
        for fd in expired.difference(ready):
            self._drop(self._connections[fd])
        for fd in ready:
            if fd not in self._connections:
                continue
            connection = self._connections[fd]
            if fd in self._leaving:
                connection.drop_input()
                message = None
            else:
                message = connection.read()
            if message is not None:
                self.last = connection
                return message
            if fd in expired:
                self._drop(connection)
            else:
                self._drop_if_ended(connection)
        # Every stranger that has sent something was read. Only now may new ones push them out.
        if self._listener.fileno() in ready:
            self._let_in()
        return None

    def _let_in(self) -> None:
        full = False
        for _ in range(ACCEPTS_A_TURN):
            try:
                sock, other_end = self._listener.accept()
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._drop_all()
                    self._leave_in_kernel(NO_DESCRIPTORS_NS)
                    return
                continue  # it ended before it was let in
            if not self._lets_in(sock) or not self._has_room(sock, other_end):
                full = True
                sock.close()
                continue
            self._greet(self._open_connection(sock))
        if full:
            self._leave_in_kernel(PAUSE_NS)

    def _has_room(self, sock: socket.socket, other_end: object) -> bool:
        """Note *sock* among the strangers, and drop who must make room; False: it is that one itself."""
        now = time.monotonic_ns()
        self._strangers.add(sock.fileno(), address_of(other_end), now)
        surplus = self._strangers.surplus(now)
        if surplus == sock.fileno():
            self._strangers.discard(surplus)
            return False
        if surplus is not None:
            self._drop(self._connections[surplus])
        return True

    def _greet(self, connection: Connection) -> None:
        self._connections[connection.fileno()] = connection
        self._epoll.register(connection, select.EPOLLIN)
        try:
            connection.greet(os.urandom(CHALLENGE_BYTES) if self._challenges else b"")
        except PeerLostError:
            self._drop(connection)
        else:
            self._drop_if_ended(connection)

    def _drop_if_ended(self, connection: Connection) -> None:
        if connection.ended:
            self.distrust = connection.distrust or self.distrust
            self._drop(connection)

    def _leave_in_kernel(self, pause_ns: int) -> None:
        """Let nobody in for *pause_ns*. The port is not polled meanwhile: it would be ready all the time."""
        self._epoll.unregister(self._listener)
        self._shut_until_ns = time.monotonic_ns() + pause_ns

    def _drop(self, connection: Connection) -> None:
        self._connections.pop(connection.fileno(), None)
        self._strangers.discard(connection.fileno())
        self._leaving.discard(connection.fileno())
        connection.close()  # which takes it out of the epoll descriptor, too

    def _drop_all(self) -> None:
        for connection in list(self._connections.values()):
            self._drop(connection)

    def turn_away(self, frames: Sequence[Buffer]) -> None:
        """Answer the sender of the message read last, and end its connection."""
        connection, self.last = self.last, None
        if connection is None:
            return
        try:
            connection.write(encode(frames))
        except PeerLostError:
            self._drop(connection)
            return
        connection.say_no_more()
        self._leaving.add(connection.fileno())  # until it has closed, or its time is up

    def take_last(self) -> Connection | None:
        """The connection whose message was read last, which the caller owns from now on; None: there is none."""
        connection, self.last = self.last, None
        if connection is not None:
            self._connections.pop(connection.fileno(), None)
        return connection

    def close(self) -> None:
        """Close the port, and drop all strangers."""
        self._drop_all()
        self._listener.close()
        self._alarm.close()
