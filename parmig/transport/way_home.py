# SPDX-License-Identifier: Apache-2.0
"""Brings a channel back to its own path, after a loss has sent it over another one."""

from __future__ import annotations

import errno
import select
import socket
import time

from parmig.transport.dial import Dialer
from parmig.transport.transport import parse_uri
from parmig.units import NS_PER_S

LOOK_EVERY_NS = 5 * NS_PER_S
"""How often the own path is tried. Coming back costs a new connection, so a flapping path costs little."""

ANSWER_NS = NS_PER_S
"""How long an answer may take."""


class WayHome:
    """Watches the own path of one channel.

    Args:
        dialer: makes the connections of the channel.
        port: of the other host. It should refuse connections, which shows that the path is back.
    """

    def __init__(self, dialer: Dialer, port: int) -> None:
        self._dialer = dialer
        self._port = port
        self._probe: socket.socket | None = None
        self._next_ns = 0

    def look(self) -> None:
        """Look whether the own path is back; then let the channel connect over it. Call it often. It never waits."""
        now = time.monotonic_ns()
        if self._dialer.at_home:
            self._next_ns = now + LOOK_EVERY_NS
        elif self._probe is not None:
            self._hear(self._probe, now)
        elif now >= self._next_ns:
            self._next_ns = now + ANSWER_NS
            self._probe = self._ask()

    def _ask(self) -> socket.socket | None:
        """Connect to the other host from the own address; None: that cannot even begin."""
        route = self._dialer.home
        host = parse_uri(route.uri).host
        sock = socket.socket(socket.AF_INET6 if host.startswith("[") else socket.AF_INET)
        sock.setblocking(False)
        try:
            if route.local:
                sock.bind((route.local.strip("[]"), 0))
            begun = sock.connect_ex((host.strip("[]"), self._port)) in (0, errno.EINPROGRESS)
        except OSError:
            begun = False
        if begun:
            return sock
        sock.close()
        return None

    def _hear(self, probe: socket.socket, now_ns: int) -> None:
        answered = select.poll()
        answered.register(probe, select.POLLOUT)
        ready = bool(answered.poll(0))
        if not ready and now_ns < self._next_ns:
            return
        back = ready and probe.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) in (0, errno.ECONNREFUSED)
        probe.close()
        self._probe = None
        self._next_ns = now_ns + LOOK_EVERY_NS
        if back:
            self._dialer.go_home()
