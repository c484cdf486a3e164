# SPDX-License-Identifier: Apache-2.0
"""One TCP or Unix connection that carries messages: what arrives is bounded, what leaves never blocks the caller.

Each connection has a thread that sends keep-alives, and what the kernel does not take at once. It sends while the
caller is busy, so the peer can tell a busy process from a stopped one. The thread starts when it is first needed, and
never for a stranger.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from parmig.errors import PeerLostError, PeerNotTrustedError, ProtocolError
from parmig.linux import sockets
from parmig.transport.security.encryption import Encryption
from parmig.transport.tcp_framing import GREETING, Inbox
from parmig.transport.tcp_message import HEAD_CHUNK_BYTES, StreamedMessage
from parmig.transport.tcp_output import Output
from parmig.transport.tcp_silence import SilenceWatch, limit_silence
from parmig.transport.vectors import MAX_VECTORS, advance
from parmig.units import KIB, MIB, NS_PER_MS, NS_PER_S

SILENCE_LIMIT_NS = 3 * NS_PER_S
"""A peer that sends keep-alives and then nothing for this long is lost: its process is stopped. TCP itself notices a
killed process or a vanished host sooner."""

VANISHED_MS, PATIENT_MS = 800, 10_000
"""TCP gives up on data that was not acknowledged for this long. The first is for those who send little: channels with
keep-alives, where something small is always under way, and whoever has listened. The second is for the others, whose
receiver may be too busy to make room; ``tcp_silence`` watches those."""

TURN_BYTES = 4 * MIB
"""One call reads at most this much. A whole message of device state is smaller."""

_CHUNK_BYTES = 256 * KIB

PAYLOAD_SILENCE_S = 10.0
"""A peer that sends nothing for this long in the middle of a message is lost."""

T = TypeVar("T")


class Connection(Output):
    """One connection. It owns its socket.

    Args:
        sock: connected; this object closes it.
        inbox: takes what arrives.

    Attributes:
        ended: why nothing more will arrive; empty while more may.
        closed: whether the peer, or something between, has closed the connection. Else it went silent.
        distrust: why one side does not trust the other; empty: that is not why the connection ended.
        encryption: what encrypts the connection and who is at the other end, once both sides have agreed on it; None:
            nothing does.
    """

    distrust = ""
    encryption: Encryption | None = None

    def __init__(self, sock: socket.socket, inbox: Inbox) -> None:
        super().__init__(sock)
        sock.setblocking(False)
        self._crosses_hosts = sock.family != socket.AF_UNIX
        if self._crosses_hosts:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._readable = select.poll()
        self._readable.register(sock, select.POLLIN)
        self.inbox = inbox
        self.ended = ""
        self._heard_ns = 0
        self._watch: SilenceWatch | None = None
        self._message: StreamedMessage | None = None
        self._scratch = memoryview(b"")

    def fileno(self) -> int:
        """What to poll for reading."""
        return self._sock.fileno()

    def settle(self, *, beats: bool, accepted: bool = False) -> None:
        """Watch the connection, now that the peer is known to be the right one.

        Args:
            beats: with keep-alives.
            accepted: this side has listened, and sends only answers.
        """
        if self._crosses_hosts:
            limit_silence(self._sock, VANISHED_MS if beats or accepted else PATIENT_MS)
            self._watch = None if beats else SilenceWatch(self._sock)
        self._beats = beats
        if beats:
            with self._lock:
                self._start_thread()

    # -- what arrives ---------------------------------------------------------------------------

    def hear_greeting(self, challenge_bytes: int = 0) -> bool:
        """Whether the peer's greeting has arrived, with a challenge of this size. False: not yet, or ``ended``."""
        challenge = self._take(lambda: self.inbox.take_greeting(challenge_bytes), len(GREETING) + challenge_bytes)
        self.challenge = challenge or b""
        return challenge is not None

    def read(self) -> list[memoryview] | None:
        """The next message. None: not all of it has arrived, or ``ended``. Reads at most TURN_BYTES."""
        return self._take(self.inbox.take, _CHUNK_BYTES)

    def receive(self) -> StreamedMessage | None:
        """The next message as soon as its head has arrived; otherwise as :meth:`read`.

        First drops what is left of the payload of the previous message.

        Raises:
            PeerLostError: the rest of that payload did not come.
        """
        if self._message is not None:
            self._message.drop()
        head = self._take(self.inbox.take_head, HEAD_CHUNK_BYTES)
        self._message = None if head is None else StreamedMessage(*head, self.fill, self.scratch)
        return self._message

    def _take(self, take: Callable[[], T | None], chunk_bytes: int) -> T | None:
        """Read into the inbox until *take* returns something, which is returned; None: nothing more is there now."""
        taken = 0
        try:
            limit = min(TURN_BYTES, self.inbox.max_message_bytes + KIB)
            while (item := take()) is None and not self.ended and (taken < limit or self._holds_more()):
                data = self._receive(chunk_bytes)
                if not data:
                    return None
                taken += len(data)
                self._heard_ns = time.monotonic_ns()
                self.inbox.feed(data)
        except ProtocolError as error:
            self.ended = str(error)
            return None
        except PeerNotTrustedError as error:
            self.ended = self.distrust = str(error)
            return None
        return item

    def fill(self, targets: Sequence[memoryview]) -> None:
        """Fill *targets* with the next bytes, which are payload; wait for them.

        Raises:
            PeerLostError: they do not come.
        """
        left = [view for target in targets if len(view := memoryview(target).cast("B"))]
        while left and (moved := self.inbox.move_into(left[0])):
            advance(left, moved)
        while left:
            try:
                count = self._take_into(left[:MAX_VECTORS])
                if not count:
                    self.ended = "it was closed in the middle of a message"
            except BlockingIOError:
                if not self._readable.poll(PAYLOAD_SILENCE_S * 1000):
                    self.ended = f"nothing came for {PAYLOAD_SILENCE_S:g} s in the middle of a message"
                count = 0
            except OSError as error:
                self._end_by(error)
            if self.ended:
                raise PeerLostError(f"the connection to the peer was lost: {self.ended}")
            advance(left, count)
        self._heard_ns = time.monotonic_ns()

    def scratch(self, size_bytes: int) -> memoryview:
        """Memory for a payload. Every call returns the same memory."""
        if len(self._scratch) < size_bytes:
            self._scratch = memoryview(bytearray(size_bytes))
        return self._scratch[:size_bytes]

    def _receive(self, chunk_bytes: int = _CHUNK_BYTES) -> bytes:
        """The bytes that are there. Empty: there are none now, or ``ended``."""
        try:
            data = self._take_bytes(min(chunk_bytes, self.inbox.max_message_bytes + KIB))
        except BlockingIOError:
            silent_ns = time.monotonic_ns() - self._heard_ns
            if self._beats and self._heard_ns and silent_ns > SILENCE_LIMIT_NS:
                self.ended = f"nothing was heard for {silent_ns / NS_PER_S:.1f} s"
            if self._watch is not None:
                self.ended = self._watch.look(time.monotonic_ns())
            return b""
        except OSError as error:
            self._end_by(error)
            return b""
        if not data:
            self.ended, self.closed = "it was closed", True
        return data

    def _end_by(self, error: OSError) -> None:
        self.ended, self.closed = error.strerror or str(error), isinstance(error, ConnectionError)

    def _take_bytes(self, most_bytes: int) -> bytes:
        """At most *most_bytes* of what is there; empty: the peer has closed. Raises BlockingIOError or OSError."""
        return self._sock.recv(most_bytes)

    def _take_into(self, targets: list[memoryview]) -> int:
        """Put what is there into *targets*; returns how much, 0: the peer has closed. Raises as :meth:`_take_bytes`."""
        return self._sock.recvmsg_into(targets)[0]

    def _holds_more(self) -> bool:
        """Whether bytes that have left the socket wait to be taken."""
        return False

    def drop_input(self) -> None:
        """Read and drop what has arrived, at most TURN_BYTES. Sets ``ended`` if the peer has closed."""
        taken = 0
        while not self.ended and taken < TURN_BYTES and (data := self._receive()):
            taken += len(data)

    # -- the end --------------------------------------------------------------------------------

    def say_no_more(self) -> None:
        """End the sending direction. What was sent before still arrives."""
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def close(self, linger_ms: int = 0) -> None:
        """Close; wait *linger_ms* at most until the peer's host has everything."""
        deadline = time.monotonic_ns() + linger_ms * NS_PER_MS
        while self._under_way() and time.monotonic_ns() < deadline:
            time.sleep(0.001)
        self._closing = True
        if self._out:
            try:
                self._sock.shutdown(socket.SHUT_RDWR)  # so that the thread does not wait for room
            except OSError:
                pass
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
        if linger_ms:
            self.say_no_more()
            self.drop_input()  # unread bytes would make the kernel reset the connection
        self._sock.close()

    def _under_way(self) -> bool:
        """Whether the peer's kernel has not acknowledged everything yet."""
        if self._broken is not None or self.ended:
            return False
        return bool(self._out) or sockets.unacknowledged_bytes(self._sock) > 0
