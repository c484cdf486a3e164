# SPDX-License-Identifier: Apache-2.0
"""The two ends of a channel that outlives its connections: one connects again, the other listens again.

A later connection begins with these messages, integers big-endian::

    source -> destination   "R", 16 bytes session, u32 epoch, u64 count of messages received
    destination -> source   "R", u32 epoch, u64 count of messages received
    destination -> source   "N", u32 epoch, u64 0: this process has begun anew, and knows of no message

With a proof both messages have the second form, the first as a claim and the second as its confirmation
(``security.session_proof``). An epoch is used once, and each is higher than the one before.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import select
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

from parmig.errors import HostRefusedError, PeerLostError, ProtocolError, TransportError
from parmig.transport.lasting import CLOSED_NS, GONE_NS, LastingTransport
from parmig.transport.security.session_proof import CLAIM_BYTES, NONCE_BYTES
from parmig.transport.transport import Endpoint, MigrationTransport
from parmig.units import NS_PER_MS, NS_PER_S

ATTEMPT_NS = NS_PER_S
"""How long one attempt may take to connect, and again to be answered."""

FIRST_WAIT_NS, LONGEST_WAIT_NS = 50 * NS_PER_MS, NS_PER_S
"""Between two attempts; each wait is twice as long as the one before."""

_RESUME = struct.Struct(">c16sIQ")
_RESUMED = struct.Struct(">cIQ")
RESUME_BYTES = max(_RESUME.size, _RESUMED.size + CLAIM_BYTES)
"""How much the listening end reads from a stranger."""


class LastingCaller(LastingTransport):
    """The end that connects again. A thread does it, so that the caller of this channel never waits.

    Args:
        dial: makes a connection within so many nanoseconds. It is called in that thread.
        others: as for :class:`LastingTransport`.
    """

    def __init__(self, *others: Any, dial: Callable[[int], MigrationTransport], **more: Any) -> None:
        self._dial = dial
        self._lock = threading.Lock()
        self._found: tuple[MigrationTransport, int | None] | None = None
        self._refused_since_ns = 0
        self._stop = threading.Event()
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        super().__init__(*others, **more)
        self._epoll.register(self._wake_fd, select.EPOLLIN)

    def _begin_again(self) -> None:
        self._gone_ns = 0  # whether the peer is there shows when it is called
        self._refused_since_ns = 0
        self._stop = threading.Event()
        threading.Thread(target=self._seek, args=(self._stop,), name="parmig-reconnect", daemon=True).start()

    def _look_again(self) -> tuple[MigrationTransport, int | None] | None:
        with self._lock:
            found, self._found = self._found, None
        if found is not None:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._wake_fd)
        elif self._refused_since_ns:
            refused_ns = time.monotonic_ns() - self._refused_since_ns
            self._gone_ns = 1 if refused_ns > (CLOSED_NS if self._closed else GONE_NS) else 0
        return found

    def _seek(self, stop: threading.Event) -> None:
        """(thread) Attempt to connect until that succeeds, or until *stop* is set."""
        wait_ns, refused_since_ns = FIRST_WAIT_NS, self._lost_ns
        while not stop.wait(wait_ns / NS_PER_S):
            wait_ns = min(2 * wait_ns, LONGEST_WAIT_NS)
            try:
                found = self._attempt(stop)
            except (TransportError, ProtocolError, OSError) as error:
                refused = isinstance(error.__cause__, ConnectionRefusedError)
                refused_since_ns = (refused_since_ns or time.monotonic_ns()) if refused else 0
                self._refused_since_ns = refused_since_ns
                continue
            with self._lock:
                if stop.is_set():
                    found[0].shutdown()
                else:
                    self._found = found
                    os.eventfd_write(self._wake_fd, 1)
            return

    def _attempt(self, stop: threading.Event) -> tuple[MigrationTransport, int | None]:
        transport = self._dial(ATTEMPT_NS)
        try:
            self._epoch += 1
            nonce = os.urandom(NONCE_BYTES)
            transport.write([self._resume(transport.challenge, nonce)])
            deadline_ns = time.monotonic_ns() + ATTEMPT_NS
            while time.monotonic_ns() < deadline_ns and not stop.is_set():
                message = transport.read(100)
                if message is None:
                    continue
                answer: bytes | memoryview | None = message[0]
                if self._proof is not None:
                    answer = self._proof.check_confirmation(transport.challenge, nonce, message[0])
                if answer is not None and len(message) == 1 and len(answer) == _RESUMED.size:
                    kind, epoch, count = _RESUMED.unpack(answer)
                    if kind in (b"R", b"N") and epoch == self._epoch:
                        return transport, count if kind == b"R" else None
                raise ProtocolError(f"{self._name}: the peer did not take up the channel")
            raise PeerLostError(f"{self._name}: the peer did not answer on the new connection")
        except BaseException:
            transport.shutdown()
            raise

    def _resume(self, challenge: bytes, nonce: bytes) -> bytes:
        if self._proof is None:
            return _RESUME.pack(b"R", self._session, self._epoch, self._received)
        return self._proof.claim(challenge, nonce, _RESUMED.pack(b"R", self._epoch, self._received))

    def shutdown(self, linger_ms: int = 0) -> None:
        with self._lock:
            self._stop.set()
            found, self._found = self._found, None
        if found is not None:
            found[0].shutdown()
        if self._wake_fd >= 0:
            super().shutdown(linger_ms)
            os.close(self._wake_fd)
            self._wake_fd = -1


class LastingListener(LastingTransport):
    """The end that listens again, at the same port, and only while there is no connection.

    Args:
        listen: makes a transport for :data:`RESUME_BYTES` of a stranger, not bound yet.
        endpoint: where to listen; its first host is that of the first connection.
        others: as for :class:`LastingTransport`.

    Attributes:
        listens: whether it listens when there is no connection. An end that begins without one listens only once this
            is set.
    """

    def __init__(self, *others: Any, listen: Callable[[], MigrationTransport], endpoint: Endpoint, **more: Any) -> None:
        self._listen = listen
        self._endpoint = endpoint
        self._listener: MigrationTransport | None = None
        super().__init__(*others, **more)
        self.listens = self._inner is not None
        self._had_first = self._inner is not None

    def _begin_again(self) -> None:
        self._look_again()

    def _look_again(self) -> tuple[MigrationTransport, int] | None:
        if not self.listens or (self._listener is None and not self._open()):
            return None
        assert self._listener is not None
        message = self._listener.read()
        resume = None if message is None else self._read_resume(message, self._listener.challenge)
        if resume is None:
            return None  # nobody, or a stranger, whom the next read drops
        count, answer = resume
        inner, self._listener = self._listener, None
        for fd in inner.pollables():
            self._epoll.unregister(fd)
        inner.accept()
        with contextlib.suppress(PeerLostError):  # the next read shows it, too
            inner.write([answer])
        return inner, count

    def _open(self) -> bool:
        """Listen; returns whether that was possible. Somebody may have the port at an address, or all of them."""
        for hosts in dict.fromkeys((self._endpoint.host, *self._endpoint.hosts)):
            listener = self._listen()
            try:
                listener.bind(Endpoint(self._endpoint.scheme, hosts, self._endpoint.port))
            except HostRefusedError:
                listener.shutdown()
                continue
            self._listener = listener
            for fd in listener.pollables():
                self._epoll.register(fd, select.EPOLLIN)
            return True
        return False

    def _read_resume(self, message: list[memoryview], challenge: bytes) -> tuple[int, bytes] | None:
        """How many messages the peer has received, as the first *message* of its connection says, and the answer.

        None: the peer is a stranger.
        """
        if len(message) != 1:
            return None
        said, nonce = self._known(message[0], challenge)
        if len(said) != _RESUMED.size:
            return None
        kind, epoch, count = _RESUMED.unpack(said)
        if kind != b"R" or epoch <= self._epoch:
            return None
        self._epoch = epoch
        # Once a message came, the peer knows that this process has begun anew.
        anew = not self._had_first and not self._received
        answer = _RESUMED.pack(b"N" if anew else b"R", epoch, self._received)
        return 0 if anew else count, answer if self._proof is None else self._proof.confirm(challenge, nonce, answer)

    def _known(self, frame: memoryview, challenge: bytes) -> tuple[bytes, bytes]:
        """What a first message says without its secret, and its nonce, if there is a proof; empty: from a stranger."""
        if self._proof is not None:
            return self._proof.check_claim(challenge, frame) or (b"", b"")
        if len(frame) != _RESUME.size:
            return b"", b""
        kind, session, epoch, count = _RESUME.unpack(frame)
        return _RESUMED.pack(kind, epoch, count) if hmac.compare_digest(session, self._session) else b"", b""

    def shutdown(self, linger_ms: int = 0) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.shutdown()
        super().shutdown(linger_ms)
