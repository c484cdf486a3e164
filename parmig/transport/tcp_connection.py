# SPDX-License-Identifier: Apache-2.0
"""One TCP connection that carries messages: what arrives is bounded, what leaves never blocks the caller.

A thread of the connection's own sends what the kernel does not take at once, and keep-alives. So they leave also while
the caller is busy, and a peer whose threads all stand still (a stopped process) is told from one that is busy. It is
started when it is first needed: never for strangers.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from collections import deque

from parmig.errors import PeerLostError, ProtocolError
from parmig.linux import sockets
from parmig.transport.tcp_framing import GREETING, KEEP_ALIVE, Inbox
from parmig.units import KIB, MIB, NS_PER_MS, NS_PER_S

BEAT_S = 0.2
"""A keep-alive goes out when nothing else did for so long."""

SILENCE_LIMIT_NS = 3 * NS_PER_S
"""A peer that sends keep-alives and then nothing for so long is lost: its process is stopped. Of a process that is
killed or a host that vanished TCP itself knows sooner."""

VANISHED_MS, PATIENT_MS = 800, 10_000
"""TCP gives up on data that nobody acknowledged for so long: on channels with keep-alives, where something is always
under way and small; and on others, whose receiver may be too busy to make room."""

MAX_QUEUED_BYTES = 16 * MIB
"""More than this is not kept for a peer that does not read."""

TURN_BYTES = 4 * MIB
"""Taken in at most by one call; a whole message of device state and more."""

_CHUNK_BYTES = 256 * KIB


class Connection:
    """A connected socket, from here on its own.

    Args:
        sock: connected; owned.
        inbox: for what arrives.

    Attributes:
        ended: why nothing more will arrive; empty while it may.
    """

    def __init__(self, sock: socket.socket, inbox: Inbox) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock = sock
        self.inbox = inbox
        self.ended = ""
        self._lock = threading.Lock()
        self._out: deque[memoryview] = deque()
        self._queued_bytes = 0
        self._broken: OSError | None = None
        self._wake = threading.Event()
        self._closing = False
        self._thread: threading.Thread | None = None
        self._beats = False
        self._sent_s = 0.0
        self._heard_ns = 0

    def fileno(self) -> int:
        """What to poll for reading."""
        return self._sock.fileno()

    def settle(self, *, beats: bool) -> None:
        """The peer is the right one: watch the connection, with keep-alives if *beats*."""
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, seconds in ((socket.TCP_KEEPIDLE, 1), (socket.TCP_KEEPINTVL, 1), (socket.TCP_KEEPCNT, 2)):
            self._sock.setsockopt(socket.IPPROTO_TCP, option, seconds)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, VANISHED_MS if beats else PATIENT_MS)
        self._beats = beats
        if beats:
            with self._lock:
                self._start_thread()

    # -- what arrives ---------------------------------------------------------------------------

    def read(self) -> list[memoryview] | None:
        """The next whole message; takes in a bounded number of bytes. None: none is there now, or ``ended``."""
        taken = 0
        try:
            limit = min(TURN_BYTES, self.inbox.max_message_bytes + KIB)
            while (message := self.inbox.take()) is None and not self.ended and taken < limit:
                data = self._receive()
                if not data:
                    return None
                taken += len(data)
                self._heard_ns = time.monotonic_ns()
                self.inbox.feed(data)
        except ProtocolError as error:
            self.ended = str(error)
            return None
        return message

    def _receive(self) -> bytes:
        """Some bytes; none where there are none now, or no more."""
        try:
            data = self._sock.recv(min(_CHUNK_BYTES, self.inbox.max_message_bytes + KIB))
        except BlockingIOError:
            silent_ns = time.monotonic_ns() - self._heard_ns
            if self._beats and self._heard_ns and silent_ns > SILENCE_LIMIT_NS:
                self.ended = f"nothing was heard for {silent_ns / NS_PER_S:.1f} s"
            return b""
        except OSError as error:
            self.ended = error.strerror or str(error)
            return b""
        if not data:
            self.ended = "it was closed"
        return data

    def drop_input(self) -> None:
        """Forget what has arrived, a bounded number of bytes; notes the end."""
        taken = 0
        while not self.ended and taken < TURN_BYTES and (data := self._receive()):
            taken += len(data)

    # -- what leaves ----------------------------------------------------------------------------

    def greet(self) -> None:
        """Say that here is parmig; the first thing that is sent."""
        self.write(GREETING)

    def write(self, data: bytes) -> None:
        """Send *data*, or keep it until there is room.

        Raises:
            PeerLostError: the connection is gone, or the peer reads nothing any more.
        """
        with self._lock:
            if self._broken is not None:
                raise PeerLostError(self._broken.strerror or str(self._broken))
            if self._queued_bytes > MAX_QUEUED_BYTES:
                raise PeerLostError(f"the peer reads nothing, and {self._queued_bytes} bytes wait for it")
            self._out.append(memoryview(data))
            self._queued_bytes += len(data)
            self._flush()
            if self._broken is not None:
                raise PeerLostError(self._broken.strerror or str(self._broken))
            if self._out:
                self._start_thread()
        self._wake.set()

    def _flush(self) -> None:
        """Send what the kernel takes now. With the lock."""
        try:
            while self._out:
                sent = self._sock.send(self._out[0])
                self._queued_bytes -= sent
                if sent < len(self._out[0]):
                    self._out[0] = self._out[0][sent:]
                else:
                    self._out.popleft()
                self._sent_s = time.monotonic()
        except BlockingIOError:
            pass
        except OSError as error:
            self._broken = error
            self._out.clear()
            self._queued_bytes = 0

    def _start_thread(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._push, name="parmig-connection", daemon=True)
            self._thread.start()

    def _push(self) -> None:
        """In the thread: send what waits, and keep-alives."""
        room = select.poll()
        room.register(self._sock, select.POLLOUT)
        while not self._closing and self._broken is None:
            if self._out:
                room.poll(BEAT_S * 1000)
            else:
                self._wake.wait(BEAT_S)
                self._wake.clear()
            with self._lock:
                if self._beats and not self._out and time.monotonic() - self._sent_s >= BEAT_S:
                    self._out.append(memoryview(KEEP_ALIVE))
                    self._queued_bytes += len(KEEP_ALIVE)
                self._flush()

    # -- the end --------------------------------------------------------------------------------

    def say_no_more(self) -> None:
        """Nothing more will be sent; what was sent still arrives."""
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
        """Whether something was not acknowledged by the peer's kernel yet."""
        if self._broken is not None or self.ended:
            return False
        return bool(self._out) or sockets.unacknowledged_bytes(self._sock) > 0
