# SPDX-License-Identifier: Apache-2.0
"""Connections that nobody asked for, to be run beside a receiver: ``python -m tools.strangers KIND COUNT PORT...``.

Holds COUNT connections to each port on loopback, and makes new ones where they are closed, until it is killed. KIND is
what they send: ``idle`` nothing; ``garbage`` random bytes; ``frames`` the beginning of a message, and never its end;
``endless`` keep-alives without end; ``names`` well-formed messages of parmig that make no sense; ``zmtp`` ZeroMQ's
greeting and empty messages, then they close; ``command`` ZeroMQ's greeting and the beginning of a long command.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import time

from parmig.engine.messages.peer_messages import MAX_CONFIGURE_BYTES, Goodbye, encode_control
from parmig.transport.tcp_framing import GREETING, encode

_ZMTP = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(16) + b"\0" + bytes(31)
_PLAIN = _ZMTP.replace(b"NULL\0", b"PLAIN")
_READY = b"\x04\x19\x05READY\x0bSocket-Type\0\0\0\x06DEALER"

WORDS = {
    "idle": b"",
    "garbage": os.urandom(100_000),
    "frames": GREETING + struct.pack(">II", 1, MAX_CONFIGURE_BYTES) + bytes(MAX_CONFIGURE_BYTES - 1),
    "endless": GREETING + bytes(1 << 20),
    "names": GREETING + encode([encode_control(Goodbye())]),
    "command": _PLAIN + b"\x06" + struct.pack(">Q", 4 << 20) + bytes((4 << 20) - 1),
    "zmtp": _ZMTP + _READY + b"\0\0\0\0" * 1000,
}


class Stranger:
    """One connection, which is made again each time it is closed.

    Args:
        port: on loopback.
        words: what it sends.
        ends: whether it closes as soon as it has sent that.
    """

    def __init__(self, port: int, words: bytes, *, ends: bool) -> None:
        self._port = port
        self._words = words
        self._ends = ends
        self._socket: socket.socket | None = None
        self._left = b""

    def step(self) -> None:
        """Go on a little, without waiting."""
        if self._socket is None:
            self._socket = socket.socket()
            self._socket.setblocking(False)
            self._socket.connect_ex(("127.0.0.1", self._port))
            self._left = self._words
            return
        try:
            if self._left:
                self._left = self._left[self._socket.send(self._left) :]
                return
            if self._ends or not self._socket.recv(1 << 16):
                self._close()
        except BlockingIOError:
            pass
        except OSError:
            self._close()

    def _close(self) -> None:
        assert self._socket is not None
        self._socket.close()
        self._socket = None


def main(kind: str, count: str, *ports: str) -> None:
    """Run all strangers in turns."""
    strangers = [Stranger(int(port), WORDS[kind], ends=kind == "zmtp") for port in ports for _ in range(int(count))]
    for stranger in strangers:
        stranger.step()
    sys.stdout.write("there\n")
    sys.stdout.flush()
    while True:
        for stranger in strangers:
            stranger.step()
        time.sleep(0.005)


if __name__ == "__main__":
    main(*sys.argv[1:])
