# SPDX-License-Identifier: Apache-2.0
"""The control channel: checked messages between sender and receiver."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from parmig.engine.messages import peer_messages
from parmig.engine.messages.peer_messages import ControlMessage
from parmig.errors import LimitExceededError, ProtocolError
from parmig.transport.lasting import LastingTransport
from parmig.transport.security.encryption import Encryption
from parmig.transport.security.security import Security
from parmig.transport.transport import MigrationTransport
from parmig.units import NS_PER_MS, NS_PER_S

_logger = logging.getLogger(__name__)


class ControlChannel:
    """Speaks control messages over *transport*, which it owns.

    Args:
        transport: connected or accepted; owned.
        version: protocol version of the messages that are written. A source begins with the oldest, and goes on with
            the version of the destination's answer.

        security: of *transport*.

    Attributes:
        version: see above.
        security: of further channels to the same peer.
    """

    def __init__(
        self,
        transport: MigrationTransport,
        version: int = peer_messages.VERSIONS[0],
        security: Security | None = None,
    ) -> None:
        self.transport = transport
        self.version = version
        self.security = security

    @property
    def encryption(self) -> Encryption | None:
        """Of the channel's last connection."""
        return self.transport.encryption

    def pin(self) -> None:
        """Trust only the peer that is connected now, also on the further channels."""
        self.security = self.security and self.security.pin(self.encryption)

    def end_with_connection(self) -> None:
        """From now on a lost connection is an error."""
        if isinstance(self.transport, LastingTransport):
            self.transport.outlives = False

    def pollables(self) -> list[int]:
        """What to poll."""
        return self.transport.pollables()

    def write(self, message: ControlMessage, fds: Sequence[int] = ()) -> None:
        """Queue *message*, with descriptors before it on a Unix socket.

        Raises:
            PeerLostError: the connection is gone.
        """
        if fds:
            self.transport.send_descriptors(fds)
        self.transport.write([peer_messages.encode_control(message, self.version)])
        _log("sent", message)

    def read(self, timeout_ms: int = 0) -> ControlMessage | None:
        """The next message, or None.

        Raises:
            PeerLostError: the connection is gone.
            ProtocolError: the message is malformed, or of another version.
        """
        frames = self.transport.read(timeout_ms)
        if frames is None:
            return None
        if len(frames) != 1:
            raise ProtocolError(f"a control message has {len(frames)} frames, expected one")
        message = peer_messages.decode_control(frames[0])
        self.version = peer_messages.peer_version(frames[0]) or self.version
        _log("the peer sent", message)
        return message

    def wait(self, what: str, limit_ns: int, interrupt: Callable[[], None] = lambda: None) -> ControlMessage:
        """The next message; *what* names it in the error.

        Args:
            interrupt: called several times a second; raises to end the wait.

        Raises:
            LimitExceededError: none within *limit_ns*.
        """
        deadline = time.monotonic_ns() + limit_ns
        while (left := deadline - time.monotonic_ns()) > 0:
            interrupt()
            message = self.read(max(1, min(left // NS_PER_MS, 200)))
            if message is not None:
                return message
        raise LimitExceededError(f"{what} did not arrive within {limit_ns / NS_PER_S:.0f} s")

    def close(self, linger_ms: int = 0) -> None:
        """Close; give queued messages *linger_ms* to leave."""
        self.transport.shutdown(linger_ms)


def _log(what: str, message: ControlMessage) -> None:
    """Log a message, but not all of it: a session's token is a secret, and lists of blocks are long."""
    match message:
        case peer_messages.Progressed(status=status, round=round_):
            _logger.debug("%s Progressed: %s, round %d", what, status, round_)
        case peer_messages.Failure(error=error):
            _logger.info("%s Failure: %s in phase %r: %s", what, error.type, error.phase, error.message)
        case peer_messages.Checked(mismatches=mismatches):
            _logger.info("%s Checked: %d mismatches", what, len(mismatches))
        case peer_messages.Refuse(reason=reason):
            _logger.info("%s Refuse: %s", what, reason)
        case peer_messages.Configure() | peer_messages.Accept():
            words = f"parmig {message.parmig}, {message.kind} {message.machine}, {len(message.blocks)} blocks"
            _logger.info("%s %s: %s", what, type(message).__name__, words)
        case _:
            _logger.info("%s %s", what, type(message).__name__)
