# SPDX-License-Identifier: Apache-2.0
"""Opens a ZeroMQ socket with the settings of a channel, and looks at it and at its monitor.

Settings and where they come from (libzmq 4.3.5, measured on loopback with 2 cores):

- no heartbeats: a ping would wait until megabytes before it have left, and heartbeats can make libzmq abort when
  strangers come and go. TCP itself gives up on unacknowledged data after ``TCP_MAXRT`` (1 s), a killed process is seen
  at once by its closed connection, and the control channel watches for hosts that vanish.
- ``MAXMSGSIZE`` bounds what a frame can make this side allocate.
- the high-water marks count messages: small ones that leave, large ones that arrive. Credit bounds the bytes, but a
  peer may ignore it, and a message of endless frames is never counted: ``zeromq.ZmqTransport`` looks for both.
"""

from __future__ import annotations

import struct

import zmq

from parmig.transport.transport import Buffer
from parmig.transport.zeromq_frames import send_in_place
from parmig.units import KIB

TCP_MAXRT_MS = 1000
HIGH_WATER_MESSAGES = 256
"""Messages that may wait to be sent. ``ram.flow`` keeps fewer in flight."""

ARRIVING_MESSAGES = 8
"""Messages, each of up to a batch, that may wait to be received. More wait in the peer's kernel."""
COPY_BELOW_BYTES = 64 * KIB
"""Smaller frames are copied by pyzmq when queued: cheaper than tracking them (its own default)."""

CURVE_ADDS_BYTES = 33
"""What CURVE adds to each frame: the name of its command, a nonce, a MAC, and the flags of the frame (RFC 26)."""

LAST = int(zmq.DONTWAIT)
MORE = LAST | int(zmq.SNDMORE)
_EVENTS, _READABLE = int(zmq.EVENTS), int(zmq.POLLIN)
"""Plain numbers: pyzmq's flags cost a microsecond each time two are combined."""

_EVENT = struct.Struct("=Hi")

Socket = zmq.Socket[bytes]


def open_socket(context: zmq.Context[Socket], kind: zmq.SocketType, max_frame_bytes: int) -> tuple[Socket, Socket]:
    """A socket with the settings of a channel, and its monitor; the caller closes both."""
    sock = context.socket(kind)
    options = {
        zmq.LINGER: 0,
        zmq.SNDHWM: HIGH_WATER_MESSAGES,
        zmq.RCVHWM: ARRIVING_MESSAGES,
        zmq.MAXMSGSIZE: max_frame_bytes,
        zmq.IPV6: 1,
        zmq.IMMEDIATE: 1,
        zmq.RECONNECT_IVL: -1,
        zmq.TCP_KEEPALIVE: 1,
        zmq.TCP_KEEPALIVE_IDLE: 1,
        zmq.TCP_KEEPALIVE_INTVL: 1,
        zmq.TCP_KEEPALIVE_CNT: 2,
        zmq.TCP_MAXRT: TCP_MAXRT_MS,
    }
    for option, value in options.items():
        sock.setsockopt(option, value)
    sock.copy_threshold = COPY_BELOW_BYTES
    events = zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED | zmq.EVENT_HANDSHAKE_SUCCEEDED
    events |= zmq.EVENT_LISTENING | zmq.EVENT_ACCEPTED if kind == zmq.ROUTER else zmq.EVENT_CONNECTED
    return sock, sock.get_monitor_socket(events)


def send_frame(sock: Socket, frame: Buffer, flags: int, *, kept: bool, copy: bool) -> None:
    """Queue one frame; *kept* as for ``MigrationTransport.write``. Raises zmq.ZMQError."""
    if kept and len(frame) >= COPY_BELOW_BYTES:
        send_in_place(sock, memoryview(frame), flags)
    else:
        sock.send(frame, flags, copy=copy)


def read_event(monitor: Socket) -> tuple[int, int]:
    """The next event of a socket's monitor and the descriptor of its connection (zmq_socket_monitor(3)).

    pyzmq's own function is in a module that imports asyncio, which costs each side 25 ms of processor time.
    """
    head, _endpoint = monitor.recv_multipart()
    event, fd = _EVENT.unpack(head)
    return event, fd


def wire_bytes(frame_bytes: int, added_bytes: int) -> int:
    """How many bytes a frame of *frame_bytes* has on the connection (ZMTP 3, RFC 23).

    Args:
        added_bytes: CURVE_ADDS_BYTES with CURVE; 0 without.
    """
    return frame_bytes + added_bytes + (9 if frame_bytes + added_bytes > 255 else 2)


def has_message(sock: Socket) -> bool:
    """Whether a receive would succeed now. It costs 2 µs; a failed receive or a poll costs 10."""
    return bool(sock.getsockopt(_EVENTS) & _READABLE)  # type: ignore[operator]
