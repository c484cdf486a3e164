# SPDX-License-Identifier: Apache-2.0
"""Admission at a listening ZeroMQ channel: one peer, by a token, and no connection after it.

ZeroMQ would queue messages of any connection. Here strangers end in the handshake: the channel asks for a password
(ZMTP's PLAIN), which this checks (ZAP, RFC 27). Until the peer is admitted, at most :data:`MAX_STRANGERS` connections
may shake hands, each for :data:`HANDSHAKE_MS`; the oldest makes room for the newest. Afterwards the
kernel drops new connections: libzmq owns accepted connections through their listener, so ``unbind`` would end them; a
filter is set instead.
"""

from __future__ import annotations

import hmac
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import zmq

from parmig.linux import sockets
from parmig.units import KIB, NS_PER_MS

HANDSHAKE_MS = 2000
MAX_STRANGERS = 32
HANDSHAKE_BYTES = 1 * KIB
"""What a stranger may say, besides its first message. ZMTP's handshake has some 200 bytes, but libzmq would take a
command of the size of a message for it. The kernel drops larger segments: between two looks of a busy process libzmq
would take in tens of MiB."""

LOOK_EVERY_MS = 10
"""How often strangers are looked at: libzmq takes in what they say meanwhile, with one thread."""

HELLO_NS = 500 * NS_PER_MS
"""For the peer to say hello after its token was found right."""

_USER = b"parmig"
_ANSWERS_A_TURN = 64
_VERSION, _REQUEST, _MECHANISM, _NAME, _PASSWORD = 0, 1, 5, 6, 7  # frames of a ZAP request


def show_token(sock: zmq.Socket[bytes], token: bytes) -> None:
    """(connecting) Say *token* in the handshake."""
    sock.setsockopt(zmq.PLAIN_USERNAME, _USER)
    sock.setsockopt(zmq.PLAIN_PASSWORD, token.hex().encode())


class Door:
    """The door of one listening socket, before it is bound.

    Args:
        sock: not bound yet; used, not owned.
        first_message_bytes: what the peer may say before it is let in.
        token: what the peer must say; empty: anybody may knock.

    Attributes:
        answers: to be polled too; None where nothing is asked.
    """

    def __init__(self, sock: zmq.Socket[bytes], token: bytes, first_message_bytes: int) -> None:
        self._max_bytes = HANDSHAKE_BYTES + first_message_bytes
        self._password = token.hex().encode()
        self._strangers: dict[int, Any] = {}  # descriptor: address of the other end; oldest first
        self._listener = -1
        self._shut = False
        self._kept: frozenset[int] = frozenset()
        self._kept_until_ns = 0
        self.answers: zmq.Socket[bytes] | None = None
        sock.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        if token:
            self.answers = sock.context.socket(zmq.REP)
            self.answers.setsockopt(zmq.LINGER, 0)
            self.answers.bind("inproc://zeromq.zap.01")
            sock.setsockopt(zmq.PLAIN_SERVER, 1)
            sock.setsockopt(zmq.ZAP_DOMAIN, b"parmig")

    def answer(self) -> None:
        """Answer the handshakes that wait for it."""
        if self.answers is None:
            return
        for _ in range(_ANSWERS_A_TURN):
            try:
                request = self.answers.recv_multipart(zmq.DONTWAIT)
            except zmq.ZMQError:
                return
            known = (
                not self._shut
                and len(request) == _PASSWORD + 1
                and request[_MECHANISM] == b"PLAIN"
                and request[_NAME] == _USER
                and hmac.compare_digest(request[_PASSWORD], self._password)
            )
            if known:  # the peer is among those who are there: none of them goes before it has said hello
                self._kept, self._kept_until_ns = frozenset(self._strangers), time.monotonic_ns() + HELLO_NS
            code, words = (b"200", b"") if known else (b"400", b"not known here")
            self.answers.send_multipart([request[_VERSION], request[_REQUEST], code, words, b"", b""])

    def note(self, event: int, fd: int) -> None:
        """Take note of an *event* of the socket's monitor."""
        if event == zmq.EVENT_LISTENING:
            self._listener = fd
            with _connection(fd) as listener:
                sockets.drop_large_packets(listener, self._max_bytes)
        elif event == zmq.EVENT_ACCEPTED:
            self._strangers[fd] = _other_end(fd)
            if self._shut:  # it was let in while the door was being shut
                self.thin_out()
        elif event == zmq.EVENT_DISCONNECTED:
            self._strangers.pop(fd, None)

    def close(self) -> None:
        """Stop answering."""
        if self.answers is not None:
            self.answers.close(linger=0)

    def thin_out(self) -> None:
        """Shut out who has said too much, or is too many; all events so far were noted."""
        for fd in list(self._strangers):
            if arrived_bytes(fd) > self._max_bytes:
                _shut_out(fd, self._strangers.pop(fd))
        if self._shut or time.monotonic_ns() > self._kept_until_ns:
            self._kept = frozenset()
        while len(self._strangers) > (0 if self._shut else MAX_STRANGERS):
            fd = next((one for one in self._strangers if one not in self._kept), next(iter(self._strangers)))
            _shut_out(fd, self._strangers.pop(fd))

    def shut(self, peer_fd: int) -> None:
        """The peer is admitted: close every other connection, and admit no more."""
        self._shut = True
        with _connection(self._listener) as listener:
            sockets.drop_all_packets(listener)
        with suppress(OSError), _connection(peer_fd) as peer:  # it has ended meanwhile, or came before the filter
            sockets.drop_no_packets(peer)
        self._strangers.pop(peer_fd, None)
        self.thin_out()


@contextmanager
def _connection(fd: int) -> Iterator[socket.socket]:
    """The socket *fd*, which libzmq owns, by a descriptor of our own.

    Raises:
        OSError: it has ended meanwhile; the number may be that of something else.
    """
    own = os.dup(fd)
    try:
        sock = socket.socket(fileno=own)
    except OSError:
        os.close(own)
        raise
    with sock:
        yield sock


def _other_end(fd: int) -> Any:
    """The address of the peer of the connection *fd*; None where it has ended meanwhile."""
    try:
        with _connection(fd) as sock:
            return sock.getpeername()
    except OSError:
        return None


def arrived_bytes(fd: int) -> int:
    """What has arrived on the connection *fd* since it was made; 0 where it has ended meanwhile."""
    try:
        with _connection(fd) as sock:
            return sockets.received_bytes(sock)
    except OSError:
        return 0


def _shut_out(fd: int, address: Any) -> None:
    """End the connection *fd*, if it still is the one to *address*: its number may be another's by now."""
    try:
        with _connection(fd) as sock:
            if address is not None and sock.getpeername() == address:
                sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
