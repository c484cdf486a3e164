# SPDX-License-Identifier: Apache-2.0
"""The source's end of the state channel, until both ends know each other."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Sequence

from parmig.engine.channels.lasting_channels import LastingChannels
from parmig.engine.channels.state_channel import StateSender, state_hello
from parmig.engine.messages.peer_messages import DataEndpoint
from parmig.engine.reporting.outages import STATE
from parmig.errors import LimitExceededError, ProtocolError
from parmig.transport.registry import control_scheme, open_control
from parmig.transport.security.session_proof import NONCE_BYTES, SessionProof
from parmig.transport.transport import UNIX_SCHEME, Endpoint, MigrationTransport
from parmig.units import NS_PER_S
from parmig.values import Path

_logger = logging.getLogger(__name__)

STATE_CONNECT_LIMIT_NS = 3 * NS_PER_S

HELLO_LIMIT_NS = 5 * NS_PER_S
"""How long the destination may take to confirm a hello."""


def connect_state(
    place: DataEndpoint,
    control: Endpoint,
    lasting: LastingChannels,
    paths: Sequence[Path],
    opened: contextlib.ExitStack,
) -> StateSender:
    """Connect to the destination's state channel, and open it.

    Args:
        place: where the destination listens, as it says.
        control: where its control port is.
        lasting: makes the channel outlive its connections.
        paths: ways that later connections may take.
        opened: closes the channel.

    Raises:
        PeerUnreachableError: nobody answers there.
        PeerLostError, LimitExceededError, ProtocolError: as :func:`say_hello`.
    """
    host = control.host if control.scheme == UNIX_SCHEME else place.host or control.host
    endpoint = Endpoint(control_scheme(control), host, place.port)
    proof = lasting.proof(STATE)
    transport = open_control(
        endpoint,
        "state channel",
        heartbeat=lasting.outlive,
        max_message_bytes=1 << 16,
        challenges=proof is not None,
        security=lasting.security,
    )
    opened.callback(transport.shutdown)
    transport.connect(endpoint, timeout_ns=STATE_CONNECT_LIMIT_NS)
    _logger.info("state channel connected to %s", endpoint)
    say_hello(transport, lasting.session, proof)
    channel = lasting.calling(STATE, transport, endpoint, paths)
    opened.callback(channel.shutdown)
    return StateSender(channel)


def say_hello(transport: MigrationTransport, session: bytes, proof: SessionProof | None) -> None:
    """(source) Open the state channel on *transport*, which was connected just now.

    Args:
        session: the secret of the session, which is sent if there is no *proof*.

    Raises:
        PeerLostError: the connection is gone.
        LimitExceededError: the destination does not answer.
        ProtocolError: whoever answers does not prove that it knows the session.
    """
    if proof is None:
        transport.write([state_hello(session)])
        return
    nonce = os.urandom(NONCE_BYTES)
    transport.write([proof.claim(transport.challenge, nonce, b"H")])
    deadline_ns = time.monotonic_ns() + HELLO_LIMIT_NS
    while (message := transport.read(100)) is None:
        if time.monotonic_ns() > deadline_ns:
            raise LimitExceededError("the destination did not confirm the hello of the state channel; is it stopped?")
    if len(message) != 1 or proof.check_confirmation(transport.challenge, nonce, message[0]) != b"H":
        raise ProtocolError(
            "whoever answers on the state channel does not prove that it is this migration's destination; "
            "check the addresses of the destination, and who else listens there"
        )
