# SPDX-License-Identifier: Apache-2.0
"""A channel for few messages that outlives its connections: control and device state.

Both ends count the messages that they have sent and received. A connection that takes the place of a lost one begins
with both counts, and each end sends again what the other has not received. So every message arrives once and in order.

Each message has one frame more at its front. Integers are big-endian::

    M  u8 kind, u64 count    a message; the sender has received *count* messages
    A  u8 kind, u64 count    the sender has received *count* messages

``lasting_ends`` has the messages that begin a later connection.
"""

from __future__ import annotations

import select
import struct
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Sequence

from parmig.errors import PeerLostError, ProtocolError
from parmig.transport.security.encryption import Encryption
from parmig.transport.security.session_proof import SessionProof
from parmig.transport.transport import Buffer, Endpoint, Incoming, MigrationTransport
from parmig.units import NS_PER_MS, NS_PER_S, format_ms

MAX_UNACKED = 1 << 16
"""Messages that may wait for the peer's count. Device state has a window of its own, in bytes."""

ACK_EVERY = 8
"""So many messages in a row are acknowledged without a message of our own."""

GONE_NS, CLOSED_NS = 3 * NS_PER_S, 2 * NS_PER_S
"""A peer whose host is there, and who is not back after this, has ended: its connection was closed, or its port refuses
connections; the shorter time is for both. A live peer notices within a second that its connection is lost, and then
connects or listens again."""

_COUNT = struct.Struct(">cQ")


class LastingTransport(MigrationTransport):
    """What both ends have in common. ``connect``, ``bind`` and ``accept`` were done by the first connection.

    Args:
        name: what errors call the channel.
        first: connected, and empty in both directions; owned from here on. None: another process had this end, and has
            ended; this one begins without a connection, and with counts of 0.
        session: the secret of the session, 16 bytes.
        limit_ns: how long an outage may last.
        lost: called with the reason when an outage begins, in the thread that uses this channel.
        resumed: called with the length of the outage in nanoseconds, likewise.
        proof: proves the session on each new connection; None: the session itself is sent.
        restarted: called before that if another process has the other end now. Whatever was under way is dropped. None:
            that is an error once a message was sent or received.
        waits: whether to wait all the time for a peer that has ended, since another process may take its place.

    Attributes:
        outlives: whether a loss is survived from now on; False: it is an error.
    """

    def __init__(
        self,
        name: str,
        first: MigrationTransport | None,
        session: bytes,
        *,
        limit_ns: int,
        lost: Callable[[str], None],
        resumed: Callable[[int], None],
        proof: SessionProof | None = None,
        restarted: Callable[[], None] | None = None,
        waits: bool = False,
    ) -> None:
        super().__init__(name, max_message_bytes=0)
        self.outlives = True
        self._session = session
        self._proof = proof
        self._limit_ns = limit_ns
        self._note_lost, self._note_resumed, self._note_restarted = lost, resumed, restarted
        self._waits = waits
        self._inner: MigrationTransport | None = None
        self._encryption: Encryption | None = None
        self._unacked: deque[list[Buffer]] = deque()
        self._sent = self._received = self._acknowledged = 0
        self._epoch = 0
        self._cause = PeerLostError(f"{name}: the channel is closed")
        self._lost_ns = 0
        self._gone_ns = 0
        self._closed = False
        self._epoll = select.epoll()
        if first is not None:
            self._take(first)
        else:
            self._lost_ns = time.monotonic_ns()
            self._cause = PeerLostError(f"{name}: the peer has not come back")

    # -- what the two ends do differently ---------------------------------------------------------

    @abstractmethod
    def _begin_again(self) -> None:
        """The connection was lost: begin to look for another one."""

    @abstractmethod
    def _look_again(self) -> tuple[MigrationTransport, int | None] | None:
        """The next connection, if there is one now, with the peer's count. None: another process has that end now."""

    # -- messages -------------------------------------------------------------------------------

    def write(self, frames: Sequence[Buffer], *, kept: bool = False) -> None:
        """As :meth:`MigrationTransport.write`; during an outage the message waits. The frames must not change."""
        if len(self._unacked) >= MAX_UNACKED:
            raise PeerLostError(f"{self._name}: the peer has not acknowledged {MAX_UNACKED} messages")
        if self._inner is None and not self._lost_ns:
            raise self._cause
        self._unacked.append(list(frames))
        self._sent += 1
        if self._inner is not None:
            self._send(self._inner, frames)

    def _send(self, inner: MigrationTransport, frames: Sequence[Buffer], kind: bytes = b"M") -> None:
        self._acknowledged = self._received
        try:
            inner.write([_COUNT.pack(kind, self._received), *frames])
        except PeerLostError as error:
            self._lose(error)

    def receive(self, timeout_ms: int = 0) -> Incoming | None:
        frames = self.read(timeout_ms)
        return None if frames is None else Incoming(frames)

    def read(self, timeout_ms: int = 0) -> list[memoryview] | None:
        """As :meth:`MigrationTransport.read`. Call it several times a second during an outage.

        Raises:
            PeerLostError: an outage lasts too long.
        """
        deadline_ns = time.monotonic_ns() + timeout_ms * NS_PER_MS
        while (message := self._next()) is None and (left_ns := deadline_ns - time.monotonic_ns()) > 0:
            self._epoll.poll(min(left_ns / NS_PER_S, 0.1))
        return message

    def _next(self) -> list[memoryview] | None:
        if self._inner is None:
            self._go_on()
        while self._inner is not None:
            try:
                frames = self._inner.read()
            except PeerLostError as error:
                self._lose(error)
                return None
            if frames is None:
                return None
            kind, count = self._head(frames)
            self._acknowledge(count)
            if kind == b"M":
                self._received += 1
                if self._received - self._acknowledged >= ACK_EVERY:
                    self._send(self._inner, (), b"A")
                return frames[1:]
        return None

    def _head(self, frames: list[memoryview]) -> tuple[bytes, int]:
        if len(frames[0]) == _COUNT.size:
            kind, count = _COUNT.unpack(frames[0])
            if (kind, len(frames) > 1) in ((b"M", True), (b"A", False)):
                return kind, count
        raise ProtocolError(f"{self._name}: {len(frames)} frames, the first of {len(frames[0])} bytes, are no message")

    def _acknowledge(self, count: int) -> None:
        """The peer has received *count* messages."""
        first = self._sent - len(self._unacked)
        if not first <= count <= self._sent:
            raise ProtocolError(
                f"{self._name}: the peer has received {count} messages, expected {first} to {self._sent}"
            )
        for _ in range(count - first):
            self._unacked.popleft()

    # -- outages --------------------------------------------------------------------------------

    @property
    def encryption(self) -> Encryption | None:
        """Of the last connection."""
        return self._encryption

    def _take(self, inner: MigrationTransport) -> None:
        self._inner, self._encryption = inner, inner.encryption
        for fd in inner.pollables():
            self._epoll.register(fd, select.EPOLLIN)

    def _lose(self, error: PeerLostError) -> None:
        """The connection ended by *error*, which is raised if that is the end of the channel."""
        inner, self._inner = self._inner, None
        assert inner is not None
        closed = inner.closed_by_peer
        inner.shutdown()
        self._cause = error
        if not self.outlives:
            raise error
        self._lost_ns = time.monotonic_ns()
        self._closed, self._gone_ns = closed, GONE_NS if closed else 0
        self._note_lost(str(error))
        self._begin_again()

    def _go_on(self) -> None:
        """Take the next connection if there is one.

        Raises:
            PeerLostError: the outage has lasted too long.
        """
        if not self._lost_ns:
            raise self._cause
        connection = self._look_again()
        if connection is None:
            lasted_ns = time.monotonic_ns() - self._lost_ns
            limit_ns = min((0 if self._waits else self._gone_ns) or self._limit_ns, self._limit_ns)
            if lasted_ns > limit_ns or not self.outlives:
                self._lost_ns = 0
                words = f"{self._cause}; there was no new connection within {format_ms(lasted_ns / NS_PER_MS)}"
                self._cause = PeerLostError(words)
                raise self._cause
            return
        inner, count = connection
        lasted_ns, self._lost_ns = time.monotonic_ns() - self._lost_ns, 0
        self._take(inner)
        if count is None:
            self._begin_anew()
        else:
            self._acknowledge(count)
        for frames in list(self._unacked):
            if self._inner is inner:
                self._send(inner, frames)
        self._note_resumed(lasted_ns)

    def _begin_anew(self) -> None:
        """Another process has the other end now, which knows of no message."""
        if self._note_restarted is None and (self._sent or self._received):
            raise PeerLostError(f"{self._name}: the peer was started again, and has lost what was sent before")
        self._unacked.clear()
        self._sent = self._received = self._acknowledged = 0
        if self._note_restarted is not None:
            self._note_restarted()

    # -- the rest -------------------------------------------------------------------------------

    def bind(self, endpoint: Endpoint) -> Endpoint:
        raise NotImplementedError(f"{self._name}: it has listened already")

    def connect(self, endpoint: Endpoint, *, local: str = "", timeout_ns: int) -> None:
        raise NotImplementedError(f"{self._name}: it was connected already")

    def accept(self) -> None:
        raise NotImplementedError(f"{self._name}: its peer was accepted already")

    def pollables(self) -> list[int]:
        """Descriptors to poll; they stay the same whatever happens to the connection."""
        return [self._epoll.fileno()] if not self._epoll.closed else []

    def shutdown(self, linger_ms: int = 0) -> None:
        inner, self._inner = self._inner, None
        self._lost_ns = 0
        if inner is not None:
            inner.shutdown(linger_ms)
        self._epoll.close()
