# SPDX-License-Identifier: Apache-2.0
"""The first message of a data channel's connection, and the answer: who opens it, and whether both prove that.

All integers are big-endian. Without the feature ``session-proof`` the message carries the session's token::

    kind 1 HELLO                source -> destination   u8 kind, u8 0, u16 worker, u32 protocol, 16 bytes session
    kind 7 RESUME, 9 RESTART    source -> destination   as HELLO, then u32 epoch

With the feature, it and its answer prove that both sides know the session (``transport.security.session_proof``)::

    kind 1, 7 or 9              source -> destination   u8 kind, u8 0, u16 worker, u32 protocol, u32 epoch; claim
    kind 2 WELCOME, 8 RESUMED   destination -> source   as in ``channel_messages``; confirmation

The epoch of a HELLO is 0.
"""

from __future__ import annotations

import hmac
import os
import struct
from typing import NamedTuple

from parmig.errors import ProtocolError
from parmig.ram.channel_messages import HELLO, RESTART, RESUME, Answer, decode_answer
from parmig.transport.security.session_proof import CLAIM_BYTES, NONCE_BYTES, PAGES_ROLE, SessionProof
from parmig.transport.transport import Incoming

_HELLO = struct.Struct(">BxHI16s")
_RESUME = struct.Struct(">BxHI16sI")
_PROVEN = struct.Struct(">BxHII")

FIRST_MESSAGE_BYTES = max(_RESUME.size, _PROVEN.size + CLAIM_BYTES)
"""The most bytes that the receiving end reads from a stranger."""


class Caller(NamedTuple):
    """Who the sending end of a channel is.

    Attributes:
        session: the secret of the migration.
        worker: its number.
        protocol: the agreed version.
        proves: whether both sides have the feature ``session-proof``. Else the secret is sent as a token.
    """

    session: bytes
    worker: int
    protocol: int
    proves: bool = False


class Opening:
    """The sending end's first message on one connection, and the check of its answer.

    Args:
        caller: who sends it.
        kind: HELLO, RESUME or RESTART.
        epoch: of the connection; 0 for HELLO only.
        challenge: what the receiving end has sent on this connection; empty if nothing is proven.

    Attributes:
        message: the first message.
    """

    def __init__(self, caller: Caller, kind: int, epoch: int = 0, challenge: bytes = b"") -> None:
        self._proof = SessionProof(caller.session, PAGES_ROLE) if caller.proves else None
        self._challenge = challenge
        self._nonce = os.urandom(NONCE_BYTES)
        if self._proof is not None:
            said = _PROVEN.pack(kind, caller.worker, caller.protocol, epoch)
            self.message = self._proof.claim(challenge, self._nonce, said)
        elif kind == HELLO:
            self.message = _HELLO.pack(kind, caller.worker, caller.protocol, caller.session)
        else:
            self.message = _RESUME.pack(kind, caller.worker, caller.protocol, caller.session, epoch)

    def decode_answer(self, message: list[memoryview]) -> Answer | None:
        """What the destination answers in *message*; None: it is no answer.

        Raises:
            ProtocolError: whoever sent it does not prove that it knows the session.
        """
        if self._proof is None:
            return decode_answer(message)
        said = self._proof.check_confirmation(self._challenge, self._nonce, message[0])
        if said is None:
            raise ProtocolError(
                "whoever answers on the data channel does not prove that it is this migration's destination; "
                "check the addresses of the destination, and who else listens there"
            )
        return decode_answer([memoryview(said), *message[1:]])


class Opened(NamedTuple):
    """A first message of the expected caller.

    Attributes:
        kind: HELLO, RESUME or RESTART.
        epoch: of the connection; 0 for a HELLO.
        proof: what the answer is proven with; None: it proves nothing.
        challenge, nonce: of the connection.
    """

    kind: int
    epoch: int
    proof: SessionProof | None = None
    challenge: bytes = b""
    nonce: bytes = b""

    def answer(self, said: bytes) -> bytes:
        """The message that answers *said*, which is a WELCOME or a RESUMED."""
        return said if self.proof is None else self.proof.confirm(self.challenge, self.nonce, said)


def read_opening(message: Incoming, expected: Caller, challenge: bytes) -> Opened | None:
    """What *message*, the first of a connection, opens. None: it is not from the *expected* caller.

    Args:
        challenge: what this end has sent on the connection.
    """
    if message.frame_count != 1:
        return None
    opened = _read_proven(message.head, expected, challenge) if expected.proves else _read_plain(message.head, expected)
    return opened if opened is not None and (opened.kind == HELLO) == (opened.epoch == 0) else None


def _read_proven(head: memoryview, expected: Caller, challenge: bytes) -> Opened | None:
    proof = SessionProof(expected.session, PAGES_ROLE)
    claimed = proof.check_claim(challenge, head)
    if claimed is None or len(claimed.said) != _PROVEN.size:
        return None
    kind, worker, protocol, epoch = _PROVEN.unpack(claimed.said)
    if kind not in (HELLO, RESUME, RESTART) or (worker, protocol) != (expected.worker, expected.protocol):
        return None
    return Opened(kind, epoch, proof, challenge, claimed.nonce)


def _read_plain(head: memoryview, expected: Caller) -> Opened | None:
    kind = head[0] if len(head) else 0
    if kind == HELLO and len(head) == _HELLO.size:
        epoch = 0
    elif kind in (RESUME, RESTART) and len(head) == _RESUME.size:
        epoch = _RESUME.unpack(head)[-1]
    else:
        return None
    _, worker, protocol, session = _HELLO.unpack_from(head)
    known = hmac.compare_digest(session, expected.session)
    return Opened(kind, epoch) if known and (worker, protocol) == (expected.worker, expected.protocol) else None
