# SPDX-License-Identifier: Apache-2.0
"""Proofs of a session: the very bytes, and that nothing but the right ones proves anything."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from parmig.transport.security.session_proof import (
    CHALLENGE_BYTES,
    CLAIM_BYTES,
    NONCE_BYTES,
    SessionProof,
    door_token,
)

SECRET = bytes(range(16))
PROOF = SessionProof(SECRET, "pages")
CHALLENGE = bytes(range(32, 64))
NONCE = bytes(range(64, 80))


def test_the_messages_have_the_bytes_of_every_other_release() -> None:
    claim = b"said" + NONCE + bytes.fromhex("dd931dec26645ac2cd95e6628d4c1379be63cddefc195a93f8a3d8bd9e6200ea")
    confirmation = b"said" + bytes.fromhex("8dbea27c0e9aaaf2d7c94aef5cfbf49847f0b3ca2b2a1e7dc203c60abe613ae1")
    assert PROOF.claim(CHALLENGE, NONCE, b"said") == claim
    assert PROOF.confirm(CHALLENGE, NONCE, b"said") == confirmation
    assert door_token(SECRET) == bytes.fromhex("aa5c03385cc45ab6e65fee59436608d5")


@given(st.binary(max_size=40))
def test_both_ends_understand_each_other(said: bytes) -> None:
    assert PROOF.check_claim(CHALLENGE, PROOF.claim(CHALLENGE, NONCE, said)) == (said, NONCE)
    assert PROOF.check_confirmation(CHALLENGE, NONCE, PROOF.confirm(CHALLENGE, NONCE, said)) == said


@given(st.binary(max_size=200))
def test_other_bytes_prove_nothing(message: bytes) -> None:
    assert PROOF.check_claim(CHALLENGE, message) is None
    assert PROOF.check_confirmation(CHALLENGE, NONCE, message) is None


@given(st.integers(0, 3 + CLAIM_BYTES), st.integers(1, 255))
def test_each_byte_counts(at: int, other: int) -> None:
    claim = bytearray(PROOF.claim(CHALLENGE, NONCE, b"said"))
    claim[at] ^= other
    assert PROOF.check_claim(CHALLENGE, claim) is None
    answer = bytearray(PROOF.confirm(CHALLENGE, NONCE, b"said"))
    answer[at % len(answer)] ^= other
    assert PROOF.check_confirmation(CHALLENGE, NONCE, answer) is None


def test_a_message_proves_nothing_elsewhere() -> None:
    claim = PROOF.claim(CHALLENGE, NONCE, b"said")
    assert PROOF.check_claim(bytes(CHALLENGE_BYTES), claim) is None, "on another connection"
    assert PROOF._replace(role="state").check_claim(CHALLENGE, claim) is None, "on another channel"
    assert PROOF._replace(secret=bytes(16)).check_claim(CHALLENGE, claim) is None, "in another session"
    assert PROOF.check_confirmation(CHALLENGE, NONCE, claim) is None, "from the other side"
    assert PROOF.check_claim(CHALLENGE, b"said" + NONCE + PROOF.confirm(CHALLENGE, NONCE, b"said")[4:]) is None
    assert PROOF.check_confirmation(CHALLENGE, bytes(NONCE_BYTES), PROOF.confirm(CHALLENGE, NONCE, b"said")) is None


def test_without_a_challenge_nothing_is_proven() -> None:
    assert PROOF.check_claim(b"", PROOF.claim(b"", NONCE, b"said")) is None


@given(st.binary(max_size=8), st.binary(max_size=8), st.binary(max_size=8), st.binary(max_size=8))
def test_bytes_cannot_move_from_one_field_to_another(a: bytes, b: bytes, c: bytes, d: bytes) -> None:
    first, second = PROOF._proof(b"caller", a, b, b"x"), PROOF._proof(b"caller", c, d, b"x")
    assert (first == second) == ((a, b) == (c, d))
