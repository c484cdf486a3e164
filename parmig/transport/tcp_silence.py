# SPDX-License-Identifier: Apache-2.0
"""Notices that the host at the other end of a TCP connection has gone silent, long before TCP gives up."""

from __future__ import annotations

import socket

from parmig.linux import sockets
from parmig.units import NS_PER_MS

SILENCE_MS = 800
"""A peer's host that acknowledges nothing for this long is lost. A host with a full buffer still answers."""

LOOK_EVERY_NS = 100 * NS_PER_MS
"""How often to ask the kernel."""


def limit_silence(sock: socket.socket, limit_ms: int) -> None:
    """Have the kernel give up on what was not acknowledged for *limit_ms*, and look after a peer that sends nothing."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, seconds in ((socket.TCP_KEEPIDLE, 1), (socket.TCP_KEEPINTVL, 1), (socket.TCP_KEEPCNT, 2)):
        sock.setsockopt(socket.IPPROTO_TCP, option, seconds)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, limit_ms)


class SilenceWatch:
    """Looks at one connection.

    Args:
        sock: connected; not owned.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._looked_ns = self._waits_since_ns = 0

    def look(self, now_ns: int) -> str:
        """Why the connection is lost; empty: it is not. Ask again and again while an answer is awaited."""
        since_look_ns = now_ns - self._looked_ns
        if since_look_ns < LOOK_EVERY_NS:
            return ""
        self._looked_ns = now_ns
        silent_ms = sockets.silence_ms(self._sock)
        if not silent_ms or since_look_ns > 3 * LOOK_EVERY_NS:  # what is under way may have left just now
            self._waits_since_ns = now_ns
        silent_ms = min(silent_ms, (now_ns - self._waits_since_ns) // NS_PER_MS)
        return f"the peer's host has acknowledged nothing for {silent_ms} ms" if silent_ms >= SILENCE_MS else ""
