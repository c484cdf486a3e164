# SPDX-License-Identifier: Apache-2.0
"""Makes connections to one listener, which may be reached by several routes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from parmig.errors import TransportError
from parmig.transport.registry import open_transport
from parmig.transport.transport import MigrationTransport, parse_uri


class Route(msgspec.Struct, frozen=True):
    """One way to a listener.

    Attributes:
        uri: where it listens.
        local: the address to connect from; empty: the kernel chooses it.
    """

    uri: str
    local: str = ""

    def __str__(self) -> str:
        return self.uri + (f" from {self.local}" if self.local else "")


class Dialer:
    """Connects to a listener by one of *routes*. After a failed attempt the next route has its turn.

    Args:
        routes: at least one; the first is tried first.
        name: what errors call the channel.
        options: of the transport, as for ``open_transport``.

    Attributes:
        route: the one of the next attempt, and of the last successful one.
    """

    def __init__(self, routes: Sequence[Route], name: str, **options: Any) -> None:
        self._routes = tuple(routes)
        self._name = name
        self._options = options
        self.route = self._routes[0]
        self._made: MigrationTransport | None = None
        self._tries_again = False

    @property
    def home(self) -> Route:
        """The channel's own path: the first route."""
        return self._routes[0]

    @property
    def at_home(self) -> bool:
        """Whether the channel uses its own path, or will try it next."""
        return self.route == self.home

    def go_home(self) -> None:
        """End the connection that was made last, as if it were lost. The next one is tried on the own path first.

        It is tried twice: the listener may need a moment, and ZeroMQ's drops what comes before it has noticed the end.
        """
        self.route, self._tries_again = self.home, True
        if self._made is not None:
            self._made.shutdown()

    def dial(self, timeout_ns: int) -> MigrationTransport:
        """A new connection; the caller owns it.

        Raises:
            PeerUnreachableError: no peer answered on this route within *timeout_ns*.
        """
        endpoint = parse_uri(self.route.uri)
        transport = open_transport(endpoint, self._name, **self._options)
        try:
            transport.connect(endpoint, local=self.route.local, timeout_ns=timeout_ns)
        except BaseException as error:
            transport.shutdown()
            if isinstance(error, TransportError) and not self._tries_again:
                self.route = self._routes[(self._routes.index(self.route) + 1) % len(self._routes)]
            self._tries_again = False
            raise
        self._tries_again = False
        self._made = transport
        return transport
