# SPDX-License-Identifier: Apache-2.0
"""Admission at a listening ZeroMQ channel: one peer, by a token or its key, and no connection after it.

ZeroMQ would queue messages of any connection. Here a stranger gets no further than the handshake: the channel asks for
a password (ZMTP's PLAIN) or for a key (CURVE), and this module checks it (ZAP, RFC 27). Until the peer is admitted, at
most :data:`MAX_STRANGERS` connections may shake hands, :data:`SHARE` of one address, each for :data:`HANDSHAKE_MS`;
``security.strangers`` decides who makes room for the next. Afterwards a socket filter makes the kernel drop new
connections. ``unbind`` would not do: libzmq owns accepted connections through their listener, so it would end them too.

From Linux 6.18 on, filters on TCP sockets need CAP_NET_ADMIN. Without it there are none. New connections are then
closed when the worker looks, and a stranger may make libzmq read more before that.
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
from parmig.transport.security.curve_keys import CurveKeys
from parmig.transport.security.strangers import Strangers, address_of
from parmig.units import KIB, NS_PER_MS

HANDSHAKE_MS = 2000
MAX_STRANGERS, SHARE = 32, 24
HANDSHAKE_BYTES = 1 * KIB
"""How much a stranger may send besides its first message. ZMTP's handshake has some 200 bytes with PLAIN and 567 with
CURVE, which also adds 70 bytes to two messages, but libzmq would accept a handshake command as large as a message. The
kernel drops larger segments, because libzmq would read tens of MiB between two looks of a busy process."""

LOOK_EVERY_MS = 10
"""How often strangers are checked. Until the next check, one thread of libzmq reads what they send."""

HELLO_NS = 500 * NS_PER_MS
"""How long the peer may take for its hello after its token or key was accepted."""

_USER = b"parmig"
_ANSWERS_A_TURN = 64
_VERSION, _REQUEST, _MECHANISM = 0, 1, 5  # frames of a ZAP request; after them comes what the connecting side shows


def show_credentials(sock: zmq.Socket[bytes], token: bytes, curve: CurveKeys | None) -> None:
    """(connecting) Show the key of *curve* in the handshake, or without keys the *token*, if there is one."""
    if curve is not None:
        _set_pair(sock, curve)
        sock.setsockopt(zmq.CURVE_SERVERKEY, curve.peer)
    elif token:
        sock.setsockopt(zmq.PLAIN_USERNAME, _USER)
        sock.setsockopt(zmq.PLAIN_PASSWORD, token.hex().encode())


def _set_pair(sock: zmq.Socket[bytes], curve: CurveKeys) -> None:
    sock.setsockopt(zmq.CURVE_PUBLICKEY, curve.public)
    sock.setsockopt(zmq.CURVE_SECRETKEY, curve.secret)


class Door:
    """Decides which connections one listening socket keeps.

    Args:
        sock: not bound yet; the caller owns it.
        first_message_bytes: how much the peer may send before it is let in.
        token: what the peer must send; empty: anybody may connect.
        curve: encrypts the channel, and has the only key that is let in; then no token is needed.

    Attributes:
        answers: the socket on which libzmq asks about handshakes; poll it too. None: anybody may connect.
    """

    def __init__(
        self, sock: zmq.Socket[bytes], token: bytes, first_message_bytes: int, curve: CurveKeys | None = None
    ) -> None:
        self._max_bytes = HANDSHAKE_BYTES + first_message_bytes
        self._credentials = [b"CURVE", curve.peer] if curve is not None else [b"PLAIN", _USER, token.hex().encode()]
        self._strangers: Strangers[int] = Strangers(MAX_STRANGERS, SHARE, 0)  # by descriptor
        self._other_ends: dict[int, Any] = {}
        self._listeners: list[int] = []
        self._shut = False
        self._kept: frozenset[int] = frozenset()
        self._kept_until_ns = 0
        self.answers: zmq.Socket[bytes] | None = None
        sock.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        if token or curve is not None:
            self.answers = sock.context.socket(zmq.REP)
            self.answers.setsockopt(zmq.LINGER, 0)
            self.answers.bind("inproc://zeromq.zap.01")
            sock.setsockopt(zmq.ZAP_DOMAIN, b"parmig")
            if curve is not None:
                sock.setsockopt(zmq.CURVE_SERVER, 1)
                _set_pair(sock, curve)
            else:
                sock.setsockopt(zmq.PLAIN_SERVER, 1)

    def answer(self) -> None:
        """Answer the handshakes that wait for an answer."""
        if self.answers is None:
            return
        for _ in range(_ANSWERS_A_TURN):
            try:
                request = self.answers.recv_multipart(zmq.DONTWAIT)
            except zmq.ZMQError:
                return
            shown = request[_MECHANISM:]
            known = (
                not self._shut
                and len(shown) == len(self._credentials)
                and all(map(hmac.compare_digest, shown, self._credentials))
            )
            if known:  # one of these strangers is the peer: keep them all until it has said hello
                self._kept, self._kept_until_ns = frozenset(self._strangers), time.monotonic_ns() + HELLO_NS
            code, words = (b"200", b"") if known else (b"400", b"not known here")
            self.answers.send_multipart([request[_VERSION], request[_REQUEST], code, words, b"", b""])

    def note(self, event: int, fd: int) -> None:
        """Take note of an *event* of the socket's monitor."""
        if event == zmq.EVENT_LISTENING:
            self._listeners.append(fd)
            with _connection(fd) as listener, suppress(PermissionError):
                sockets.drop_large_packets(listener, self._max_bytes)
        elif event == zmq.EVENT_ACCEPTED:
            self._other_ends[fd] = _other_end(fd)
            self._strangers.add(fd, address_of(self._other_ends[fd]), time.monotonic_ns())
            if self._shut:  # it was let in while the door was being shut
                self.thin_out()
        elif event == zmq.EVENT_DISCONNECTED:
            self._forget(fd)

    def close(self) -> None:
        """Stop answering."""
        if self.answers is not None:
            self.answers.close(linger=0)

    def thin_out(self) -> None:
        """Shut out strangers that sent too much, and the oldest ones above the limit. Note all events before."""
        now = time.monotonic_ns()
        for fd in self._strangers:
            if self._shut or arrived_bytes(fd) > self._max_bytes:
                self._shut_out(fd)
        if now > self._kept_until_ns:
            self._kept = frozenset()
        while (surplus := self._strangers.surplus(now, self._kept)) is not None:
            self._shut_out(surplus)

    def _shut_out(self, fd: int) -> None:
        """End the connection *fd* if it still is the one that was accepted. Its number may have been reused."""
        other_end = self._forget(fd)
        with suppress(OSError), _connection(fd) as sock:
            if other_end is not None and sock.getpeername() == other_end:
                sock.shutdown(socket.SHUT_RDWR)

    def _forget(self, fd: int) -> Any:
        self._strangers.discard(fd)
        return self._other_ends.pop(fd, None)

    def shut(self, peer_fd: int) -> None:
        """The peer is admitted: close every other connection, and admit no more."""
        self._shut = True
        for fd in self._listeners:
            with _connection(fd) as listener, suppress(PermissionError):
                sockets.drop_all_packets(listener)
        with suppress(OSError), _connection(peer_fd) as peer:  # it has ended meanwhile, or came before the filter
            sockets.drop_no_packets(peer)
        self._forget(peer_fd)
        self.thin_out()


@contextmanager
def _connection(fd: int) -> Iterator[socket.socket]:
    """The socket *fd*, which libzmq owns, through a duplicate of its descriptor.

    Raises:
        OSError: *fd* is no socket any more: the connection has ended, and its number may have been reused.
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
    """The address of the peer of the connection *fd*; None: it has ended meanwhile."""
    try:
        with _connection(fd) as sock:
            return sock.getpeername()
    except OSError:
        return None


def arrived_bytes(fd: int) -> int:
    """How many bytes arrived on the connection *fd* since it was made; 0: it has ended meanwhile."""
    try:
        with _connection(fd) as sock:
            return sockets.received_bytes(sock)
    except OSError:
        return 0
