# SPDX-License-Identifier: Apache-2.0
"""``zmq+tcp://``: one ZeroMQ socket pair a channel, ROUTER listening and DEALER connecting.

ZeroMQ hides disconnections and reconnects by itself, losing what was in flight. Here a channel
is never reconnected silently: a monitor socket watches for the disconnection of the accepted peer,
and read and write then raise. Strangers end in the handshake: ``zeromq_door``. Settings are in ``zeromq_socket``.

With ``challenges`` the connecting side sends an empty message first, the *knock*, because a ROUTER can only answer.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import zmq

from parmig.errors import HostRefusedError, PeerLostError, PeerUnreachableError, ProtocolError, UsageError
from parmig.transport.polling import Poller
from parmig.transport.security.session_proof import CHALLENGE_BYTES
from parmig.transport.tcp_listen import common_port
from parmig.transport.transport import Buffer, Endpoint, Incoming, MigrationTransport
from parmig.transport.zeromq_door import LOOK_EVERY_MS, MAX_STRANGERS, Door, arrived_bytes, show_credentials
from parmig.transport.zeromq_probe import RETRY_NS, probe
from parmig.transport.zeromq_socket import (
    CURVE_ADDS_BYTES,
    LAST,
    MORE,
    has_message,
    open_socket,
    read_event,
    send_frame,
    wire_bytes,
)
from parmig.units import NS_PER_MS, NS_PER_S

SCHEME = "zmq+tcp"


class ZmqTransport(MigrationTransport):
    """One channel over ZeroMQ, with a context (and so an I/O thread) of its own. Nothing of it survives a fork.

    The connecting side sends its token in the handshake, or shows its key. ``heartbeat`` has no meaning here. With
    ``security`` the channel needs keys of CURVE, because ZeroMQ has no TLS.

    Raises:
        UsageError: it has no such keys.
    """

    def __init__(self, name: str, *, max_message_bytes: int, **options: Any) -> None:
        super().__init__(name, max_message_bytes=max_message_bytes, **options)
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._door: Door | None = None
        self._socket: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None
        self._peer: bytes | None = None
        self._peer_fd = -1
        self._last: tuple[bytes, int] = (b"", -1)
        self._challenged: dict[bytes, bytes] = {}  # by routing id; oldest first
        self._taken_bytes = 0
        self._look_ns = 0
        self._lost = False
        self._listening = False
        if self._security is not None and self._curve is None:
            raise UsageError(f"{name}: it has keys for TLS, which ZeroMQ has not; use --transport tcp")
        self._added_bytes = CURVE_ADDS_BYTES if self._curve is not None else 0

    # -- opening --------------------------------------------------------------------------------

    def _open(self, kind: zmq.SocketType) -> zmq.Socket[bytes]:
        self._context = zmq.Context()
        sock, self._monitor = open_socket(self._context, kind, self._max_message_bytes + self._added_bytes)
        self._socket, self._lost = sock, False
        return sock

    def bind(self, endpoint: Endpoint) -> Endpoint:
        hosts = ["*" if host in ("0.0.0.0", "*") else host for host in endpoint.hosts]
        wanted = common_port(endpoint) if len(hosts) > 1 else endpoint.port or "*"
        sock = self._open(zmq.ROUTER)
        sock.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._door = Door(sock, self._token, self._first_message_bytes, self._curve)
        try:
            for host in hosts:
                sock.bind(f"tcp://{host}:{wanted}")
        except zmq.ZMQError as error:
            self.shutdown()
            raise HostRefusedError(
                f"cannot listen on {endpoint}: {error.strerror}; choose another port or a local address"
            ) from error
        self._listening = True
        self.attend_ms = LOOK_EVERY_MS
        actual: bytes = sock.getsockopt(zmq.LAST_ENDPOINT)  # type: ignore[assignment]
        port = int(actual.decode().rpartition(":")[2])
        return Endpoint(endpoint.scheme, endpoint.host, port)

    def connect(self, endpoint: Endpoint, *, local: str = "", timeout_ns: int) -> None:
        deadline = time.monotonic_ns() + timeout_ns
        probe(self._name, endpoint, local, timeout_ns)
        while not self._try_to_connect(endpoint, local, deadline):
            self.shutdown()
            if time.monotonic_ns() + RETRY_NS > deadline:
                raise PeerUnreachableError(
                    f"{self._name}: {endpoint} answers, but does not speak ZeroMQ; check that it is a parmig receiver"
                )
            time.sleep(RETRY_NS / NS_PER_S)  # the listener may have shut us out among many strangers

    def _try_to_connect(self, endpoint: Endpoint, local: str, deadline: int) -> bool:
        """Connect and shake hands, so that what is written next does not wait in a queue without a reader."""
        sock = self._open(zmq.DEALER)
        show_credentials(sock, self._token, self._curve)
        source = f"{local}:0;" if local else ""
        sock.connect(f"tcp://{source}{endpoint.host}:{endpoint.port}")
        assert self._monitor is not None
        while self._monitor.poll(max(0, (deadline - time.monotonic_ns()) // NS_PER_MS)):
            event, fd = read_event(self._monitor)
            if event == zmq.EVENT_CONNECTED:
                self._peer_fd = fd
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                if self._challenges and not self._knock(sock, deadline):
                    return False
                self._watch_peer()
                return True
            if event in (zmq.EVENT_DISCONNECTED, zmq.EVENT_CLOSED):
                return False
        return False

    def _knock(self, sock: zmq.Socket[bytes], deadline: int) -> bool:
        """Ask for the challenge, and wait for it; returns whether it came."""
        sock.send(b"", LAST)
        poller = Poller(self)
        while not has_message(sock):
            left_ms = (deadline - time.monotonic_ns()) // NS_PER_MS
            self._drain_monitor()
            if self._lost or left_ms <= 0:
                return False
            poller.poll(left_ms)
        frames = sock.recv_multipart(LAST)
        self._challenged[b""] = frames[0]
        return [len(frame) for frame in frames] == [CHALLENGE_BYTES]

    @property
    def challenge(self) -> bytes:
        return self._challenged.get(self._last[0], b"")

    # -- messages -------------------------------------------------------------------------------

    @property
    def _open_socket(self) -> zmq.Socket[bytes]:
        if self._socket is None:
            raise PeerLostError(f"{self._name}: the channel is closed")
        return self._socket

    def write(self, frames: Sequence[Buffer], *, kept: bool = False) -> None:
        sock = self._open_socket
        self._check()
        try:
            if self._listening:
                if self._peer is None:
                    raise PeerLostError(f"{self._name}: nobody was accepted yet")
                sock.send(self._peer, MORE)
            last = len(frames) - 1
            for number, frame in enumerate(frames):
                send_frame(sock, frame, MORE if number < last else LAST, kept=kept and number > 0, copy=kept)
        except zmq.ZMQError as error:  # EHOSTUNREACH: the peer has gone; EAGAIN: no connection, or a full queue
            raise PeerLostError(f"{self._name}: cannot send: {error.strerror}") from error

    def receive(self, timeout_ms: int = 0) -> Incoming | None:
        sock = self._open_socket
        deadline = time.monotonic_ns() + timeout_ms * NS_PER_MS
        while True:
            if self._door is not None and self._peer is None:
                self._drain_monitor()  # learn who is there before anyone is answered or shut out
                self._door.answer()
                self._door.thin_out()
            lost = self._lost
            if has_message(sock):
                message = self._admit(sock.recv_multipart(LAST, copy=False))
                if message is not None:
                    return message
                if timeout_ms == 0:
                    return None  # whatever strangers send, the caller need not wait
                continue
            self._drain_monitor()
            if lost:
                self._check()
            if self._lost:
                continue  # look once more: the peer's last message may have come just before its end
            self._check_ahead()
            left_ms = (deadline - time.monotonic_ns()) // NS_PER_MS
            if left_ms <= 0:
                return None
            Poller(self).poll(left_ms)

    def _admit(self, frames: list[zmq.Frame]) -> Incoming | None:
        """The message without the routing id, or None when it comes from a stranger."""
        if not self._listening:
            return self._take(frames)
        origin = frames.pop(0).bytes
        if (self._peer is not None and origin != self._peer) or not frames:
            return None
        try:
            source_fd = int(frames[0].get(zmq.SRCFD))
        except zmq.ZMQError:
            return None  # bytes that libzmq takes for a peer from before ZMTP 2.0: those have no properties
        if self._challenges and self._peer is None and origin not in self._challenged:
            self._challenge_stranger(origin)
            return None
        self._last = origin, source_fd
        return self._take(frames)

    def _take(self, frames: list[zmq.Frame]) -> Incoming:
        self._taken_bytes += sum(wire_bytes(len(frame), self._added_bytes) for frame in frames)
        return Incoming([frame.buffer for frame in frames])

    def _challenge_stranger(self, origin: bytes) -> None:
        """Answer the first message of a connection by a challenge."""
        if len(self._challenged) >= 2 * MAX_STRANGERS:
            del self._challenged[next(iter(self._challenged))]
        self._challenged[origin] = os.urandom(CHALLENGE_BYTES)
        with suppress(zmq.ZMQError):  # it has ended meanwhile
            self._open_socket.send_multipart([origin, self._challenged[origin]], LAST)

    def accept(self) -> None:
        self._drain_monitor()  # what ended before now was another connection, perhaps with the same number
        self._peer, self._peer_fd = self._last
        if self._door is not None:
            self._door.shut(self._peer_fd)
        self._watch_peer()

    def _watch_peer(self) -> None:
        """From now on the peer may send only so much ahead. Everything that has arrived was received."""
        self._taken_bytes = arrived_bytes(self._peer_fd)
        self.attend_ms = LOOK_EVERY_MS if self._max_ahead_bytes else None

    def _check_ahead(self) -> None:
        """Refuse a peer that sends more than it may. libzmq takes in all frames of a message before it shows the first.

        Raises:
            ProtocolError: the peer has sent too much that was not received here.
        """
        now = time.monotonic_ns()
        if self._peer_fd < 0 or not self._max_ahead_bytes or now < self._look_ns:
            return
        self._look_ns = now + LOOK_EVERY_MS * NS_PER_MS
        ahead_bytes = arrived_bytes(self._peer_fd) - self._taken_bytes
        if ahead_bytes > self._max_ahead_bytes:
            raise ProtocolError(
                f"{self._name}: the peer has sent {ahead_bytes} bytes ahead, allowed are {self._max_ahead_bytes}"
            )

    def _drain_monitor(self) -> None:
        """Note which connections have ended. On a listening channel only the peer's matters."""
        while self._monitor is not None and has_message(self._monitor):
            event, fd = read_event(self._monitor)
            if event == zmq.EVENT_DISCONNECTED and (not self._listening or fd == self._peer_fd):
                self._lost = True
            if self._door is not None:
                self._door.note(event, fd)

    def _check(self) -> None:
        """Raise when our peer's connection has ended."""
        if not self._lost:
            self._drain_monitor()
        if self._lost:
            raise PeerLostError(f"{self._name}: the connection to the peer was lost")

    def _sockets(self) -> list[zmq.Socket[bytes]]:
        door = self._door.answers if self._door is not None else None
        return [sock for sock in (self._socket, self._monitor, door) if sock is not None]

    def pollables(self) -> list[int]:
        return [int(sock.getsockopt(zmq.FD)) for sock in self._sockets()]

    def ready(self) -> bool:
        """Whether a message waits. ZeroMQ's descriptors do not show what came before the socket was last looked at."""
        return any(has_message(sock) for sock in self._sockets())

    def shutdown(self, linger_ms: int = 0) -> None:
        sock, self._socket = self._socket, None
        monitor, self._monitor = self._monitor, None
        door, self._door = self._door, None
        if sock is not None and monitor is not None:
            sock.disable_monitor()
            monitor.close(linger=0)
            sock.close(linger=linger_ms)
        if door is not None:
            door.close()
        context, self._context = self._context, None
        if context is not None:
            context.term()
