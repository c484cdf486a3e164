# SPDX-License-Identifier: Apache-2.0
"""The question of a source who has its guest, over a connection of its own: asked here, heard and answered there."""

from __future__ import annotations

import logging
from typing import Literal

from parmig.engine.channels.control import ControlChannel
from parmig.engine.messages import peer_messages
from parmig.engine.messages.handover_messages import AskForGuest, GuestAnswer
from parmig.errors import PeerFailedError, ProtocolError
from parmig.transport.registry import open_control
from parmig.transport.security.security import Security
from parmig.transport.tcp import TcpTransport
from parmig.transport.transport import Endpoint
from parmig.units import NS_PER_S

_logger = logging.getLogger(__name__)

ASK_LIMIT_NS = NS_PER_S // 2
"""How long one attempt may take to connect, and then to get an answer. The user waits as long for a cancel."""


def ask_for_guest(
    endpoint: Endpoint, session: bytes, limit_ns: int = ASK_LIMIT_NS, security: Security | None = None
) -> GuestAnswer:
    """Ask the destination at *endpoint* who has the guest of *session*. One that is ready refuses it from now on.

    Raises:
        TransportError: it cannot be reached, or was lost.
        LimitExceededError: it did not answer.
        PeerFailedError: it does not know the session.
        ProtocolError: it answered something else.
    """
    transport = open_control(
        endpoint,
        "question for the guest",
        heartbeat=False,
        max_message_bytes=peer_messages.MAX_CONTROL_BYTES,
        security=security,
    )
    control = ControlChannel(transport, peer_messages.PROTOCOL_VERSION)
    try:
        transport.connect(endpoint, timeout_ns=limit_ns)
        control.write(AskForGuest(session))
        answer = control.wait("the answer who has the guest", limit_ns)
    finally:
        control.close()
    match answer:
        case GuestAnswer():
            _logger.info("the destination answered that the guest is %s", answer.owner)
            return answer
        case peer_messages.Refuse(reason=reason):
            raise PeerFailedError(f"{endpoint} waits for another migration: {reason}")
    raise ProtocolError(f"{endpoint} answered {type(answer).__name__} to the question who has the guest")


class AnswerPort:
    """Where a source asks who has the guest of *session*.

    Args:
        endpoint: where to listen.
        session: what identifies it in the records of both hosts.
        security: of the port.

    Attributes:
        endpoint: where it listens, with the actual port.

    Raises:
        HostRefusedError: the address cannot be listened on.
    """

    def __init__(self, endpoint: Endpoint, session: bytes, security: Security | None = None) -> None:
        self._session = session
        self._waiting = False
        self._version = peer_messages.PROTOCOL_VERSION
        self._transport: TcpTransport = open_control(
            endpoint,
            "question for the guest",
            heartbeat=False,
            max_message_bytes=peer_messages.MAX_CONTROL_BYTES,
            first_message_bytes=peer_messages.MAX_CONFIGURE_BYTES,
            security=security,
        )
        self.endpoint = self._transport.bind(endpoint)
        _logger.info("listens at %s for a source that asks who has the guest", self.endpoint)

    def pollables(self) -> list[int]:
        """What to poll."""
        return self._transport.pollables()

    def heard(self) -> bool:
        """Whether a source has asked. Call :meth:`answer` then, which need not be at once."""
        while not self._waiting:
            frames = self._transport.read()
            if frames is None:
                return False
            version = peer_messages.peer_version(frames[0]) if len(frames) == 1 else None
            if version is None or version not in peer_messages.VERSIONS:
                return False  # a stranger, whom the next read drops
            self._version = version
            try:
                message = peer_messages.decode_control(frames[0])
            except ProtocolError:
                return False
            if isinstance(message, AskForGuest) and message.session == self._session:
                self._waiting = True
            else:
                reason = "this receiver waits only for the question of a source that it has lost"
                self._turn_away(peer_messages.Refuse(reason))
        return True

    def answer(self, owner: Literal["here", "there", "undecided"], since_ns: int = 0) -> None:
        """Answer the source that has asked."""
        if self._waiting:
            self._waiting = False
            self._turn_away(GuestAnswer(owner, since_ns))

    def _turn_away(self, message: peer_messages.ControlMessage) -> None:
        self._transport.turn_away([peer_messages.encode_control(message, self._version)])

    def close(self) -> None:
        """Stop listening. An answer that was given last still leaves."""
        self._transport.shutdown()
