# SPDX-License-Identifier: Apache-2.0
"""Proves that a connection belongs to a session, without sending the session's secret. Pure.

Both sides know the secret of their session from the control channel. Every other connection, and every later one of
the control channel, is opened by three messages::

    listening side    challenge: 32 random bytes, new for each connection
    connecting side   claim: what it says, 16 random bytes (the nonce), and a proof over all of it
    listening side    confirmation: what it answers, and a proof over all of it

A proof is the HMAC-SHA256 of these fields under the secret, each field with its length in 4 bytes, big-endian, before
it: ``parmig session proof 1``, the side (``caller`` or ``listener``), the role of the channel, the challenge, the
nonce, what is said. A recorded message therefore proves nothing on another connection, on another channel, or from
the other side. What is said has the epoch of the connection and, for pages, the number of the worker.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from typing import NamedTuple

CHALLENGE_BYTES = 32
NONCE_BYTES = 16
PROOF_BYTES = 32

CLAIM_BYTES = NONCE_BYTES + PROOF_BYTES
"""How much longer a claim is than what it says."""

PAGES_ROLE = "pages"
"""The role of a data channel. The channels of control and state have the roles ``control`` and ``state``."""

_LABEL = b"parmig session proof 1"
_LENGTH = struct.Struct(">I")


class Claimed(NamedTuple):
    """A claim that was proven: what it says, and its nonce."""

    said: bytes
    nonce: bytes


class SessionProof(NamedTuple):
    """Makes and checks the proofs of one channel.

    Attributes:
        secret: of the session, at least 16 random bytes.
        role: of the channel.
    """

    secret: bytes
    role: str

    def claim(self, challenge: bytes, nonce: bytes, said: bytes) -> bytes:
        """(connecting) The first message.

        Args:
            challenge: what the listening side has sent on this connection.
            nonce: NONCE_BYTES random bytes, new for each connection.
            said: what the message says.
        """
        return said + nonce + self._proof(b"caller", challenge, nonce, said)

    def check_claim(self, challenge: bytes, message: bytes | memoryview) -> Claimed | None:
        """(listening) What the first *message* says; None: it proves nothing.

        Args:
            challenge: what was sent on this connection.
        """
        content = bytes(message)
        if len(challenge) != CHALLENGE_BYTES or len(content) < CLAIM_BYTES:
            return None
        said, nonce, proof = content[:-CLAIM_BYTES], content[-CLAIM_BYTES:-PROOF_BYTES], content[-PROOF_BYTES:]
        right = hmac.compare_digest(proof, self._proof(b"caller", challenge, nonce, said))
        return Claimed(said, nonce) if right else None

    def confirm(self, challenge: bytes, nonce: bytes, said: bytes) -> bytes:
        """(listening) The answer to a claim that was proven."""
        return said + self._proof(b"listener", challenge, nonce, said)

    def check_confirmation(self, challenge: bytes, nonce: bytes, message: bytes | memoryview) -> bytes | None:
        """(connecting) What the answer says; None: it proves nothing."""
        content = bytes(message)
        said, proof = content[:-PROOF_BYTES], content[-PROOF_BYTES:]
        right = hmac.compare_digest(proof, self._proof(b"listener", challenge, nonce, said))
        return said if right else None

    def _proof(self, side: bytes, challenge: bytes, nonce: bytes, said: bytes) -> bytes:
        fields = (_LABEL, side, self.role.encode(), challenge, nonce, said)
        text = b"".join(_LENGTH.pack(len(field)) + field for field in fields)
        return hmac.digest(self.secret, text, hashlib.sha256)


def door_token(secret: bytes) -> bytes:
    """16 bytes for a transport that asks for a password in its own handshake, such as ZeroMQ's PLAIN.

    It crosses the network in clear, so it only keeps strangers from what comes after the handshake, and it tells
    nothing about *secret*.
    """
    return hmac.digest(secret, b"parmig door token 1", hashlib.sha256)[:16]
