# SPDX-License-Identifier: Apache-2.0
"""Listens at one TCP port of one or several addresses of this host."""

from __future__ import annotations

import contextlib
import encodings.idna  # noqa: F401 - getaddrinfo() needs it, where files may not be readable any more
import errno
import os
import select
import socket

from parmig.errors import HostRefusedError
from parmig.transport.transport import Endpoint

BACKLOG = 4096
"""Connections that may wait in the kernel, which may allow fewer (``net.core.somaxconn``). If more come, the kernel
drops a sender's attempts, however often it retries: with 256, one sender of three got no place among 400 in 10 s."""

COMMON_PORT_ATTEMPTS = 64
"""A port that is free at one address may be taken at another; then the next one is tried."""


class Listener:
    """Listening sockets that look like one. It does not block.

    Args:
        sockets: listening; owned from here on.
    """

    def __init__(self, sockets: list[socket.socket]) -> None:
        self._sockets = sockets
        self._epoll = select.epoll()
        for sock in sockets:
            sock.setblocking(False)
            self._epoll.register(sock, select.EPOLLIN)

    def fileno(self) -> int:
        """What to poll."""
        return self._epoll.fileno()

    def accept(self) -> tuple[socket.socket, object]:
        """As ``socket.accept``."""
        for sock in self._sockets[1:]:
            with contextlib.suppress(BlockingIOError):
                return sock.accept()
        return self._sockets[0].accept()

    def close(self) -> None:
        """Close all of them."""
        for sock in self._sockets:
            sock.close()
        self._epoll.close()


def listen_at(endpoint: Endpoint) -> tuple[Listener, Endpoint]:
    """A listener, and where it listens, with the actual port.

    Args:
        endpoint: port 0 takes a port that is free at all of its hosts.

    Raises:
        HostRefusedError: this host cannot listen there.
    """
    sockets, port = _listen(endpoint)
    return Listener(sockets), Endpoint(endpoint.scheme, endpoint.host, port)


def common_port(endpoint: Endpoint) -> int:
    """The port of *endpoint*; where it is 0, one that is free at all of its hosts. Raises as :func:`listen_at`."""
    sockets, port = _listen(endpoint)
    for sock in sockets:
        sock.close()
    return port


def _listen(endpoint: Endpoint) -> tuple[list[socket.socket], int]:
    for attempt in range(COMMON_PORT_ATTEMPTS):
        sockets: list[socket.socket] = []
        port = endpoint.port
        try:
            for host in endpoint.hosts:
                sockets.append(_listen_at_host(host, port))
                port = sockets[0].getsockname()[1]
        except (OSError, UnicodeError) as error:
            for sock in sockets:
                sock.close()
            number = getattr(error, "errno", None)
            if number == errno.EADDRINUSE and sockets and not endpoint.port and attempt + 1 < COMMON_PORT_ATTEMPTS:
                continue
            why = os.strerror(number) if isinstance(number, int) and number > 0 else str(error)
            raise HostRefusedError(
                f"cannot listen on {endpoint}: {why}; choose another port or a local address"
            ) from error
        return sockets, port
    raise AssertionError("the last attempt returns or raises")


def _listen_at_host(host: str, port: int) -> socket.socket:
    bare = "" if host == "*" else host.strip("[]")
    family, _, _, _, address = socket.getaddrinfo(
        bare or "0.0.0.0", port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    return socket.create_server(address[:2], family=family, backlog=BACKLOG, dualstack_ipv6=bare == "::")
