# SPDX-License-Identifier: Apache-2.0
"""One connection on a Unix socket: messages as on TCP, and descriptors beside them (SCM_RIGHTS of unix(7)).

Descriptors travel with a keep-alive, which has no content, before the message that they belong to. A message says how
many it has. At most :data:`MAX_DESCRIPTORS` are held: a peer that sends more is lost.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections.abc import Sequence

from parmig.errors import PeerLostError
from parmig.linux import sockets
from parmig.transport.tcp_connection import Connection
from parmig.transport.tcp_framing import KEEP_ALIVE, Inbox

MAX_DESCRIPTORS = 64
"""Of one message. The largest guest has a handful of memory backends; the kernel passes at most 253 at once."""

_PATIENCE_S = 10.0


class UnixConnection(Connection):
    """One connection. It owns the descriptors that arrived, until they are taken."""

    def __init__(self, sock: socket.socket, inbox: Inbox) -> None:
        super().__init__(sock, inbox)
        self._arrived: list[int] = []

    def _take_bytes(self, most_bytes: int) -> bytes:
        data, fds = sockets.receive_with_descriptors(self._sock, most_bytes, MAX_DESCRIPTORS)
        self._arrived += fds
        if len(self._arrived) > MAX_DESCRIPTORS:
            self._drop_descriptors()
            raise OSError(f"the peer sent over {MAX_DESCRIPTORS} descriptors")
        return data

    def peer_pid(self) -> int:
        """The process that connected."""
        return sockets.peer_of(self._sock)[0]

    def take_descriptors(self) -> list[int]:
        """All that arrived, in order. The caller closes them."""
        fds, self._arrived = self._arrived, []
        return fds

    def send_descriptors(self, fds: Sequence[int]) -> None:
        """Send duplicates of *fds*, at most MAX_DESCRIPTORS, before whatever is written next.

        Raises:
            PeerLostError: the connection is gone, or the peer does not read.
        """
        room = select.poll()
        room.register(self._sock, select.POLLOUT)
        deadline = time.monotonic() + _PATIENCE_S
        while fds:
            with self._lock:
                self._flush()
                if self._broken is not None:
                    raise PeerLostError(self._broken.strerror or str(self._broken))
                try:
                    if not self._out:
                        sockets.send_with_descriptors(self._sock, KEEP_ALIVE, fds)
                        return
                except BlockingIOError:
                    pass
                except OSError as error:
                    raise PeerLostError(error.strerror or str(error)) from error
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not room.poll(left_s * 1000):
                raise PeerLostError(f"the peer read nothing for {_PATIENCE_S:g} s")

    def close(self, linger_ms: int = 0) -> None:
        """Close, as every connection, and drop the descriptors that nobody took."""
        super().close(linger_ms)
        self._drop_descriptors()

    def _drop_descriptors(self) -> None:
        for fd in self.take_descriptors():
            with contextlib.suppress(OSError):
                os.close(fd)
