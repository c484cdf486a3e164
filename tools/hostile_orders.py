# SPDX-License-Identifier: Apache-2.0
"""What both processes of ``tools/hostile_sessions.py`` know: the ends, what an honest peer says there, and channels."""

from __future__ import annotations

from typing import NamedTuple

import msgspec
import xxhash

from parmig.engine.agreement.agreement import offer
from parmig.engine.channels.state_channel import HELLO_BYTES
from parmig.engine.messages import peer_messages as control
from parmig.engine.messages.digest_messages import Digested, DigestRequest
from parmig.engine.reporting import error_reports
from parmig.errors import GuestError
from parmig.ram.channel_opening import FIRST_MESSAGE_BYTES
from parmig.ram.credit import credit_bytes
from parmig.ram.regions import Region
from parmig.transport.registry import open_control, open_transport
from parmig.transport.security.curve_keys import caller_keys, listener_keys
from parmig.transport.security.security import Security
from parmig.transport.security.session_proof import door_token
from parmig.transport.tcp import TcpTransport
from parmig.transport.transport import Endpoint, MigrationTransport
from parmig.units import MIB
from tests.engine.peer_examples import CONFIGURE
from tools.fuzz_messages import BATCH_BYTES

STATE_ROLE = "state"
WORKER, PROTOCOL = 0, 3
REGIONS = [Region(0, number * 64, 64) for number in range(4)]
MAX_STATE_BYTES = 4 * MIB
STATE = b"device state" * 4
RELEASE = control.Release(len(STATE), xxhash.xxh3_128_hexdigest(STATE))
OFFER = offer("")
WISH = msgspec.structs.replace(
    CONFIGURE, check=False, transport="tcp", workers=1, verify=True, capabilities=OFFER, traits={}
)
_PLACE = control.DataEndpoint("", 1)
ACCEPT = control.Accept("0", WISH.kind, WISH.machine, WISH.blocks, "none", bytes(16), _PLACE, (_PLACE,), OFFER)
STORY: tuple[control.ControlMessage, ...] = (
    control.Progressed("active", 1),
    DigestRequest(),
    control.Progressed("device", 2),
    RELEASE,
    control.HandOver(run=True),
    control.Goodbye("abc"),
)
ANSWERS: tuple[control.ControlMessage, ...] = (
    control.Progressed("active", 1),
    Digested("abc"),
    control.Loaded(1, 2),
    control.Resumed(3),
    control.Failure(error_reports.describe_error(GuestError("gone"), "loading")),
)

KINDS = ("admission", "control", "state", "pages", "accept", "answers", "state answers")
LISTENING = ("accept", "answers", "state answers")
"""Where the hostile side listens: it plays the destination."""


class Order(NamedTuple):
    """One session.

    Attributes:
        kind: one of KINDS.
        endpoint: where to listen, or to connect to.
        secret: of the session.
    """

    kind: str
    endpoint: Endpoint
    secret: bytes


class Outcome(NamedTuple):
    """What became of one session.

    Attributes:
        messages: how many messages of the hostile side were read.
        error: the class of the error that ended it; empty: none did.
        why: its message.
        crash: a traceback, if that error is not a documented one.
    """

    messages: int
    error: str
    why: str
    crash: str


def open_pages(order: Order, security: Security, *, listens: bool) -> MigrationTransport:
    """An end of a data channel, as send workers and receive workers open it."""
    keys = listener_keys if listens else caller_keys
    return open_transport(
        order.endpoint,
        "pages",
        max_message_bytes=BATCH_BYTES + MIB,
        first_message_bytes=FIRST_MESSAGE_BYTES,
        max_ahead_bytes=credit_bytes(BATCH_BYTES) + MIB if listens else 0,
        token=door_token(order.secret),
        security=security,
        challenges=True,
        curve=keys(order.secret, WORKER) if order.endpoint.scheme != "tcp" else None,
    )


def open_state(order: Order, security: Security) -> TcpTransport:
    """An end of a state channel, as both sides open it."""
    return open_control(
        order.endpoint,
        "state channel",
        max_message_bytes=control.MAX_STATE_CHUNK_BYTES + 64,
        first_message_bytes=HELLO_BYTES,
        challenges=True,
        security=security,
    )
