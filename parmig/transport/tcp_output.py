# SPDX-License-Identifier: Apache-2.0
"""The sending half of a connection: what the kernel does not take at once leaves later, and keep-alives."""

from __future__ import annotations

import select
import socket
import threading
import time

from parmig.errors import PeerLostError
from parmig.transport.tcp_framing import GREETING, KEEP_ALIVE
from parmig.transport.transport import Buffer
from parmig.transport.vectors import MAX_VECTORS, advance
from parmig.units import MIB

BEAT_S = 0.2
"""A keep-alive is sent when nothing else was sent for this long."""

MAX_QUEUED_BYTES = 40 * MIB
"""A peer that does not read is lost once more than this is queued for it. The credit of a data channel is less
(``ram.credit``)."""


class Output:
    """What leaves on a connection. A thread sends while the caller is busy; it starts when it is first needed.

    Args:
        sock: connected; not owned.

    Attributes:
        closed: whether the peer, or something between, has closed the connection.
        challenge: what was sent, or has come, with the greeting.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.closed = False
        self.challenge = b""
        self._lock = threading.Lock()
        self._out: list[memoryview] = []
        self._queued_bytes = 0
        self._broken: OSError | None = None
        self._wake = threading.Event()
        self._closing = False
        self._thread: threading.Thread | None = None
        self._beats = False
        self._sent_s = 0.0

    def greet(self, challenge: bytes = b"") -> None:
        """Send the greeting, which must come before anything else, and *challenge*.

        Raises:
            PeerLostError: the connection is gone.
        """
        self.challenge = challenge
        self.write(GREETING + challenge)

    def write(self, *pieces: Buffer) -> None:
        """Send *pieces*, none of them empty. What the kernel does not take now is kept by reference and sent later.

        Raises:
            PeerLostError: the connection is gone, or the peer no longer reads.
        """
        with self._lock:
            if self._broken is not None:
                raise PeerLostError(self._broken.strerror or str(self._broken))
            if self._queued_bytes > MAX_QUEUED_BYTES:
                raise PeerLostError(f"the peer reads nothing, and {self._queued_bytes} bytes are queued for it")
            self._queue(*pieces)
            self._flush()
            if self._broken is not None:
                raise PeerLostError(self._broken.strerror or str(self._broken))
            if self._out:
                self._start_thread()
        self._wake.set()

    def _queue(self, *pieces: Buffer) -> None:
        self._out += map(memoryview, pieces)
        self._queued_bytes += sum(map(len, pieces))

    def _flush(self) -> None:
        """Send what the kernel takes now. The caller holds the lock."""
        try:
            while self._out:
                sent = self._give(self._out[:MAX_VECTORS])
                self._queued_bytes -= sent
                advance(self._out, sent)
                self._sent_s = time.monotonic()
        except BlockingIOError:
            pass
        except OSError as error:
            self._broken = error
            self.closed = isinstance(error, ConnectionError)
            self._out.clear()
            self._queued_bytes = 0

    def _give(self, pieces: list[memoryview]) -> int:
        """Give the kernel the first bytes of *pieces*; returns how many need not be given again.

        Raises:
            BlockingIOError: it takes nothing now.
            OSError: the connection is gone.
        """
        return self._sock.sendmsg(pieces)

    def _start_thread(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._push, name="parmig-connection", daemon=True)
            self._thread.start()

    def _push(self) -> None:
        """Run in the thread: send what is queued, and keep-alives."""
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
                    self._queue(KEEP_ALIVE)
                self._flush()
