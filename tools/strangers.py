# SPDX-License-Identifier: Apache-2.0
"""Connections that nobody asked for, to be run beside a receiver.

usage: python -m tools.strangers [--per-second N] KIND COUNT PORT...

Holds COUNT connections to each port on loopback, and makes new ones where they are closed, until SIGTERM ends it.
Then it prints how many it has made, and how many seconds of a processor that took it. ``--per-second`` bounds how many
it makes.

KIND is what they send: ``idle`` nothing; ``closed`` nothing, and they close at once; ``garbage`` random bytes;
``slow`` a greeting, byte by byte; ``tls`` the first message of a TLS client that has no certificate; ``frames`` the
beginning of a message, and never its end; ``endless`` keep-alives without end; ``names`` well-formed messages of parmig
that make no sense; ``zmtp`` ZeroMQ's greeting and empty messages, then they close; ``command`` ZeroMQ's greeting and
the beginning of a long command; ``mixed`` the first five in turns.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import ssl
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
    "slow": GREETING,
    "garbage": os.urandom(100_000),
    "frames": GREETING + struct.pack(">II", 1, MAX_CONFIGURE_BYTES) + bytes(MAX_CONFIGURE_BYTES - 1),
    "endless": GREETING + bytes(1 << 20),
    "names": GREETING + encode([encode_control(Goodbye())]),
    "command": _PLAIN + b"\x06" + struct.pack(">Q", 4 << 20) + bytes((4 << 20) - 1),
    "zmtp": _ZMTP + _READY + b"\0\0\0\0" * 1000,
}


MIXED = ("closed", "idle", "garbage", "tls", "slow")


def _client_hello() -> bytes:
    """What a TLS client says first."""
    out = ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), out, server_hostname="localhost").do_handshake()
    return out.read()


class Pace:
    """How many connections have been made, and how many may be made by now.

    Args:
        per_second: 0: any number.
    """

    def __init__(self, per_second: int) -> None:
        self._per_second = per_second
        self._began = time.monotonic()
        self.made = 0

    def allows(self) -> bool:
        """Whether another one may be made; it is counted then."""
        if self._per_second and self.made >= (time.monotonic() - self._began) * self._per_second:
            return False
        self.made += 1
        return True


class Stranger:
    """One connection, which is made again each time it is closed.

    Args:
        port: on loopback.
        kind: what it sends.
        pace: asked before each connection.
    """

    def __init__(self, port: int, kind: str, pace: Pace) -> None:
        self._port = port
        self._words = WORDS.get(kind, b"")
        self._ends = kind in ("zmtp", "closed")
        self._piece = 1 if kind == "slow" else 1 << 20
        self._pace = pace
        self._socket: socket.socket | None = None
        self._left = b""

    def step(self) -> None:
        """Go on a little, without waiting."""
        if self._socket is None:
            if self._pace.allows():
                self._socket = socket.socket()
                self._socket.setblocking(False)
                self._socket.connect_ex(("127.0.0.1", self._port))
                self._left = self._words
            return
        try:
            if self._left:
                self._left = self._left[self._socket.send(self._left[: self._piece]) :]
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


def main() -> None:
    """Run all strangers in turns."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--per-second", type=int, default=0)
    parser.add_argument("kind", choices=[*WORDS, "closed", "tls", "slow", "mixed"])
    parser.add_argument("count", type=int)
    parser.add_argument("ports", type=int, nargs="+")
    options = parser.parse_args()
    WORDS["tls"] = _client_hello()
    pace = Pace(options.per_second)
    kinds = MIXED if options.kind == "mixed" else (options.kind,)
    strangers = [
        Stranger(port, kinds[number % len(kinds)], pace) for number in range(options.count) for port in options.ports
    ]

    def end(*_: object) -> None:
        sys.stdout.write(f"{pace.made} {time.process_time()}\n")
        sys.stdout.flush()
        os._exit(0)

    signal.signal(signal.SIGTERM, end)
    for stranger in strangers:
        stranger.step()
    sys.stdout.write("there\n")
    sys.stdout.flush()
    while True:
        for stranger in strangers:
            stranger.step()
        time.sleep(0.005)


if __name__ == "__main__":
    main()
