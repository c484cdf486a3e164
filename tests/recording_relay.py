# SPDX-License-Identifier: Apache-2.0
"""A relay between two addresses of this host that keeps all bytes that cross it."""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress


class RecordingRelay:
    """Listens at *ports* of one address, and passes on what comes to the same ports of another.

    Attributes:
        seen: all bytes of both directions, as they came.
    """

    def __init__(self, here: str, there: str, ports: Sequence[int]) -> None:
        self.seen = bytearray()
        self._there = there
        self._selector = selectors.DefaultSelector()
        self._ends, self._stop = socket.socketpair()
        self._sockets = [self._ends]
        self._selector.register(self._ends, selectors.EVENT_READ)
        for port in ports:
            self._watch(socket.create_server((here, port)), port)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _watch(self, sock: socket.socket, data: object) -> None:
        self._sockets.append(sock)
        self._selector.register(sock, selectors.EVENT_READ, data)

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                if sock is self._ends:
                    return
                if isinstance(key.data, int):
                    self._join(sock.accept()[0], key.data)
                else:
                    self._pass_on(sock, key.data)

    def _join(self, near: socket.socket, port: int) -> None:
        try:
            far = socket.create_connection((self._there, port))
        except OSError:
            near.close()
            return
        self._watch(near, far)
        self._watch(far, near)

    def _pass_on(self, sock: socket.socket, other: socket.socket) -> None:
        data = b""
        with suppress(OSError):
            data = sock.recv(1 << 18)
            self.seen += data
            other.sendall(data)
        if not data:
            self._selector.unregister(sock)
            with suppress(OSError):
                other.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close all connections."""
        self._stop.close()
        self._thread.join()
        for sock in self._sockets:
            sock.close()
        self._selector.close()
