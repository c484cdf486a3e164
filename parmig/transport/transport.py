# SPDX-License-Identifier: Apache-2.0
"""The proposal's ``MigrationTransport``: a channel of messages to one peer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import msgspec

from parmig.errors import PeerUnreachableError, UsageError
from parmig.transport.security.curve_keys import CurveKeys
from parmig.transport.security.encryption import Encryption
from parmig.transport.security.security import Security
from parmig.units import MIB

Buffer = bytes | bytearray | memoryview


UNIX_SCHEME = "unix"
"""The scheme of sockets in the file system of this host."""


class Endpoint(msgspec.Struct, frozen=True):
    """A parsed URI: ``scheme://host:port``; IPv6 hosts keep their brackets.

    For ``unix:///PATH``, ``host`` is the path, and ``port`` numbers the sockets of one receiver: 0 is PATH itself, and
    number 3 is ``PATH.3``.

    To listen, ``host`` may name several hosts, with commas between them. All have the same port.
    """

    scheme: str
    host: str
    port: int

    @property
    def hosts(self) -> list[str]:
        """Each host to listen at."""
        return self.host.split(",")

    @property
    def path(self) -> str:
        """(unix) The file of the socket."""
        return f"{self.host}.{self.port}" if self.port else self.host

    def __str__(self) -> str:
        return f"{self.scheme}://{self.path if self.scheme == UNIX_SCHEME else f'{self.host}:{self.port}'}"


def parse_uri(text: str) -> Endpoint:
    """The endpoint that *text* names.

    Raises:
        UsageError: not of the form ``scheme://host:port`` or ``unix:///PATH``, or a port outside 0 to 65535.
    """
    scheme, separator, rest = text.partition("://")
    if scheme == UNIX_SCHEME and separator:
        if not rest.startswith("/") or rest.endswith("/") or "\0" in rest:
            raise UsageError(f"{text!r} names no socket; write the whole path of a file, like unix:///run/parmig.sock")
        return Endpoint(scheme, rest, 0)
    if scheme == "file":
        raise UsageError(f"{text!r} is a file, and a migration needs a peer that answers; use parmig save")
    host, colon, port = rest.rpartition(":")
    if not (separator and colon and scheme and host and port.isascii() and port.isdigit() and int(port) < 65536):
        raise UsageError(f"{text!r} is not an address; write it like zmq+tcp://192.0.2.1:4600")
    if any(":" in one and not (one.startswith("[") and one.endswith("]")) for one in host.split(",")):
        raise UsageError(f"{text!r}: write an IPv6 address in brackets, like zmq+tcp://[::1]:4600")
    return Endpoint(scheme, host, int(port))


def unreachable(name: str, endpoint: Endpoint, local: str, error: BaseException | None) -> PeerUnreachableError:
    """The error to raise if no peer answers the channel *name* at *endpoint*."""
    via = f" from {local}" if local else ""
    why = getattr(error, "strerror", None) or error
    if endpoint.scheme == UNIX_SCHEME:
        return PeerUnreachableError(
            f"{name}: no peer answers at {endpoint}{via}: {why}; start `parmig receive` there first, and check the path"
        )
    return PeerUnreachableError(
        f"{name}: no peer answers at {endpoint}{via}: {why}; "
        "start `parmig receive` there first, and check address, port and firewall"
    )


class Incoming:
    """One message whose head has arrived. Its lengths are within the limits of the channel.

    The receiver reads the head, and then takes the payload: by :meth:`frames`, or piece by piece by :meth:`into`. The
    next call of :meth:`MigrationTransport.receive` drops what it did not take.

    In this class the payload is in memory. A transport whose payload is still with the kernel overrides both methods.

    Args:
        frames: all frames of the message, at least one.

    Attributes:
        head: the first frame.
        frame_count: number of frames, with the head.
        payload_bytes: size of all other frames together.
        places: whether :meth:`into` takes bytes from the connection straight to where they belong. Otherwise they are
            in memory already, and :meth:`frames` costs nothing.
    """

    places = False

    def __init__(self, frames: Sequence[memoryview]) -> None:
        self.head = frames[0]
        self.frame_count = len(frames)
        self._payload = list(frames[1:])
        self._taken_bytes = 0
        self.payload_bytes = sum(map(len, self._payload))

    def into(self, targets: Sequence[memoryview]) -> None:
        """Put the next bytes of the payload into *targets*, one after the other, until all of them are full.

        The targets of all calls together have at most ``payload_bytes``.

        Raises:
            PeerLostError: the connection ended before these bytes arrived.
        """
        source = memoryview(b"".join(self._payload))
        for target in targets:
            target[:] = source[self._taken_bytes : self._taken_bytes + len(target)]
            self._taken_bytes += len(target)

    def frames(self) -> list[memoryview]:
        """The frames of the payload. They are valid until the next message is received.

        Raises:
            PeerLostError: as :meth:`into`.
        """
        return self._payload


class MigrationTransport(ABC):
    """A channel of messages to one peer. Each message is a list of frames and arrives whole or not at all.

    Messages of one channel arrive in the order they were written. When ``write`` returns, the message is queued; only
    an answer of the peer shows that it was delivered. Not safe for use by several threads.

    Args:
        name: what errors call this channel.
        max_message_bytes: larger frames from the peer end the connection.
        first_message_bytes: (listening) how much a stranger may send before it is accepted.
        max_ahead_bytes: how much the peer may have sent that was not received here yet; 0: no limit.
        heartbeat: (tcp) watch the peer by keep-alives, not only its connection.
        token: what the connecting side must send to be let in; empty: anybody may connect. A transport that reads
            anybody's first message leaves the check to the caller, who gets that message.
        curve: (zmq) encrypts the channel; None: nothing does.
        security: what encrypts the channel, and whom to trust; None: nothing does, and anybody may connect.
        challenges: the listening side sends random bytes on each connection, and the connecting side waits for them.

    Attributes:
        frames_free_at: when the frames of :meth:`write` may change: when it returns, or when the peer has answered.
        attend_ms: call :meth:`receive` at least this often, even if the descriptors show nothing; None: only when
            they do.
    """

    frames_free_at: Literal["return", "ack"] = "ack"
    attend_ms: int | None = None

    def __init__(
        self,
        name: str,
        *,
        max_message_bytes: int,
        first_message_bytes: int = MIB,
        max_ahead_bytes: int = 0,
        heartbeat: bool = False,
        token: bytes = b"",
        security: Security | None = None,
        challenges: bool = False,
        curve: CurveKeys | None = None,
    ) -> None:
        self._name = name
        self._max_message_bytes = max_message_bytes
        self._first_message_bytes = first_message_bytes
        self._max_ahead_bytes = max_ahead_bytes
        self._heartbeat = heartbeat
        self._token = token
        self._security = security
        self._challenges = challenges
        self._curve = curve

    @abstractmethod
    def bind(self, endpoint: Endpoint) -> Endpoint:
        """Listen at *endpoint* and return it with the actual port (port 0 takes a free one).

        Raises:
            HostRefusedError: this host cannot listen on that address.
        """

    @abstractmethod
    def connect(self, endpoint: Endpoint, *, local: str = "", timeout_ns: int) -> None:
        """Connect, from address *local* if given.

        Raises:
            PeerUnreachableError: no peer answered within *timeout_ns*; the message names address and cause.
        """

    @abstractmethod
    def write(self, frames: Sequence[Buffer], *, kept: bool = False) -> None:
        """Queue one message, of at least one frame, without waiting for the peer. See ``frames_free_at``.

        Args:
            kept: all frames but the first lie in memory that stays mapped as long as this process lives. Then even a
                peer that acknowledges too early cannot make this side read freed memory. Without *kept* the transport
                keeps references or copies, which takes longer.

        Raises:
            PeerLostError: the connection is gone. The peer has not received this message and never will.
        """

    @abstractmethod
    def receive(self, timeout_ms: int = 0) -> Incoming | None:
        """The next message, or None after *timeout_ms*.

        Raises:
            PeerLostError: the connection is gone and nothing is left to read.
            ProtocolError: the peer has sent more ahead than it may.
        """

    def read(self, timeout_ms: int = 0) -> list[memoryview] | None:
        """The frames of the next message, or None after *timeout_ms*. They stay valid while referenced.

        Raises:
            PeerLostError: as :meth:`receive`.
        """
        incoming = self.receive(timeout_ms)
        return None if incoming is None else [incoming.head, *incoming.frames()]

    @abstractmethod
    def accept(self) -> None:
        """(listening side) Make the sender of the message read last the only peer. All other connections are closed,
        and no new one is let in.
        """

    @property
    def challenge(self) -> bytes:
        """The random bytes that the listening side has sent on this connection. On the listening side: on the
        connection whose message was read last. Empty without ``challenges``.
        """
        return b""

    @property
    def closed_by_peer(self) -> bool:
        """Whether a lost connection was closed by the peer, or something between: then its host is there."""
        return False

    @property
    def encryption(self) -> Encryption | None:
        """What encrypts the connection to the peer, or to the sender of the message read last; None: nothing does."""
        return None

    @abstractmethod
    def pollables(self) -> list[int]:
        """Descriptors to poll; one becomes readable when :meth:`read` may make progress or fail. See ``polling``."""

    def send_descriptors(self, fds: Sequence[int]) -> None:
        """(Unix sockets) Send duplicates of *fds* to the peer. They arrive before the message that is written next.

        Raises:
            PeerLostError: the connection is gone.
        """
        raise NotImplementedError(f"{type(self).__name__} carries no descriptors")

    def take_descriptors(self) -> list[int]:
        """What came with the message that was read last, in the order in which it was sent. The caller closes it."""
        return []

    def peer_pid(self) -> int:
        """(Unix sockets) The process of the accepted peer; 0: not known."""
        return 0

    def ready(self) -> bool:
        """Whether :meth:`read` may make progress although no descriptor shows it; asked before each wait."""
        return False

    @abstractmethod
    def shutdown(self, linger_ms: int = 0) -> None:
        """Close; give queued messages *linger_ms* to leave. Never raises; calling it twice is fine."""
