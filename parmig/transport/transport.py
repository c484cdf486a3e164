# SPDX-License-Identifier: Apache-2.0
"""The proposal's ``MigrationTransport``: a channel of messages to one peer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import msgspec

from parmig.errors import PeerUnreachableError, UsageError

Buffer = bytes | bytearray | memoryview


class Endpoint(msgspec.Struct, frozen=True):
    """A parsed URI: ``scheme://host:port``; IPv6 hosts keep their brackets. ``file:///PATH`` has its path as host."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        if self.scheme == "file":
            return f"file://{self.host}"
        return f"{self.scheme}://{self.host}:{self.port}"


def parse_uri(text: str) -> Endpoint:
    """The endpoint that *text* names.

    Raises:
        UsageError: not of the form ``scheme://host:port`` or ``file:///PATH``, or a port outside 0 to 65535.
    """
    scheme, separator, rest = text.partition("://")
    if scheme == "file":
        if not rest.startswith("/") or "\0" in rest:
            raise UsageError(f"{text!r} is not the address of a file; write it like file:///var/tmp/guest.parmig")
        return Endpoint(scheme, rest, 0)
    host, colon, port = rest.rpartition(":")
    if not (separator and colon and scheme and host and port.isascii() and port.isdigit() and int(port) < 65536):
        raise UsageError(f"{text!r} is not an address; write it like zmq+tcp://192.0.2.1:4600")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise UsageError(f"{text!r}: write an IPv6 address in brackets, like zmq+tcp://[::1]:4600")
    return Endpoint(scheme, host, int(port))


def unreachable(name: str, endpoint: Endpoint, local: str, error: BaseException | None) -> PeerUnreachableError:
    """What to raise when nobody answers the channel *name* at *endpoint*."""
    via = f" from {local}" if local else ""
    why = getattr(error, "strerror", None) or error
    return PeerUnreachableError(
        f"{name}: nobody answers at {endpoint}{via}: {why}; "
        "start `parmig receive` there first, and check address, port and firewall"
    )


class MigrationTransport(ABC):
    """A channel of messages to one peer. Each message is a list of frames and arrives whole or not at all.

    Messages of one channel arrive in the order they were written. ``write`` returning means queued;
    only an answer of the peer means delivered. Not safe for use by several threads.
    """

    @abstractmethod
    def bind(self, endpoint: Endpoint) -> Endpoint:
        """Listen there and return the actual endpoint (port 0 takes a free one).

        Raises:
            HostRefusedError: the address cannot be listened on.
        """

    @abstractmethod
    def connect(self, endpoint: Endpoint, *, local: str = "", timeout_ns: int) -> None:
        """Connect, from address *local* if given.

        Raises:
            PeerUnreachableError: nobody answered within *timeout_ns*; names address and cause.
        """

    @abstractmethod
    def write(self, frames: Sequence[Buffer], *, kept: bool = False) -> None:
        """Queue one message, of at least one frame. Large frames may be read from where they lie until the peer has
        answered for them, and must not change before.

        Args:
            kept: all frames but the first lie in memory that stays mapped for as long as this process lives, so that
                not even a peer that answers too early makes us read what is gone; otherwise they are kept here,
                which takes longer.

        Raises:
            PeerLostError: the connection is gone.
        """

    @abstractmethod
    def read(self, timeout_ms: int = 0) -> list[memoryview] | None:
        """The next message, or None after *timeout_ms*. The frames stay valid while referenced.

        Raises:
            PeerLostError: the connection is gone and nothing is left to read.
        """

    def skip(self, count_bytes: int) -> int:
        """(files) Go on so many bytes further, and return that; 0 where every byte must be read or written."""
        return 0

    @abstractmethod
    def accept(self) -> None:
        """(listening side) From now on the sender of the message read last is the peer, alone: nobody else is let in,
        and who was let in already is shut out.
        """

    @abstractmethod
    def pollables(self) -> list[int]:
        """Descriptors to poll; one becomes readable when :meth:`read` may make progress or fail. See ``polling``."""

    def ready(self) -> bool:
        """Whether :meth:`read` may make progress although no descriptor shows it; asked before each wait."""
        return False

    @abstractmethod
    def shutdown(self, linger_ms: int = 0) -> None:
        """Close; give queued messages *linger_ms* to leave. Never raises; calling it twice is fine."""
