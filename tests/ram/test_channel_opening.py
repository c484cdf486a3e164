# SPDX-License-Identifier: Apache-2.0
"""First messages of data channels, also from a peer that knows the secret and means harm."""

from __future__ import annotations

import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from parmig.errors import ProtocolError
from parmig.ram import channel_messages as messages
from parmig.ram.channel_opening import FIRST_MESSAGE_BYTES, Caller, Opening, read_opening
from parmig.transport.security.session_proof import SessionProof
from parmig.transport.transport import Incoming

CALLER = Caller(bytes(range(16)), 3, 7, proves=True)
PROOF = SessionProof(CALLER.session, "pages")
CHALLENGE, NONCE = bytes(range(32)), bytes(16)


def incoming(*frames: bytes) -> Incoming:
    return Incoming([memoryview(frame) for frame in frames])


@pytest.mark.parametrize("kind", [messages.HELLO, messages.RESUME, messages.RESTART])
def test_a_proven_opening_says_all_but_the_secret(kind: int) -> None:
    epoch = 0 if kind == messages.HELLO else 9
    opening = Opening(CALLER, kind, epoch, CHALLENGE)
    assert opening.message[:12] == struct.pack(">BxHII", kind, 3, 7, epoch)
    assert len(opening.message) == 60 == FIRST_MESSAGE_BYTES
    assert CALLER.session not in opening.message
    opened = read_opening(incoming(opening.message), CALLER, CHALLENGE)
    assert opened is not None
    assert (opened.kind, opened.epoch) == (kind, epoch)
    answer = opened.answer(messages.welcome(4096))
    assert answer.startswith(messages.welcome(4096))
    assert CALLER.session not in answer
    assert opening.decode_answer([memoryview(answer)]) == (messages.WELCOME, 4096, 0)
    with pytest.raises(ProtocolError, match="does not prove"):
        opening.decode_answer([memoryview(messages.welcome(4096))])


def test_a_nonce_is_used_once() -> None:
    first, second = (Opening(CALLER, messages.RESUME, 9, CHALLENGE).message for _ in range(2))
    assert first[:12] == second[:12]
    assert first[12:28] != second[12:28]


@given(st.binary(max_size=FIRST_MESSAGE_BYTES), st.booleans())
def test_whatever_comes_first_opens_nothing(message: bytes, proves: bool) -> None:
    caller = CALLER._replace(proves=proves, session=b"x" * 16)
    assert read_opening(incoming(message), caller, CHALLENGE) is None
    assert read_opening(incoming(message, b""), caller, CHALLENGE) is None


@given(st.binary(max_size=16))
@example(struct.pack(">BxHII", messages.HELLO, 3, 7, 1))
@example(struct.pack(">BxHII", messages.RESUME, 3, 7, 0))
@example(struct.pack(">BxHII", messages.RESTART, 3, 7, 0xFFFF_FFFF))
@example(struct.pack(">BxHII", messages.HELLO, 4, 7, 0))
@example(struct.pack(">BxHII", messages.HELLO, 3, 8, 0))
@example(struct.pack(">BxHII", messages.FENCE, 3, 7, 1))
def test_a_peer_that_knows_the_secret_can_say_only_what_makes_sense(said: bytes) -> None:
    opened = read_opening(incoming(PROOF.claim(CHALLENGE, NONCE, said)), CALLER, CHALLENGE)
    if opened is not None:
        assert said[:1] + said[2:8] == struct.pack(">BHI", opened.kind, 3, 7)
        assert opened.kind in (messages.HELLO, messages.RESUME, messages.RESTART)
        assert (opened.kind == messages.HELLO) == (opened.epoch == 0)
    assert opened is not None or said != struct.pack(">BxHII", messages.RESTART, 3, 7, 0xFFFF_FFFF)


@given(st.binary(max_size=24), st.booleans())
def test_a_destination_that_knows_the_secret_can_answer_only_what_makes_sense(said: bytes, more: bool) -> None:
    opening = Opening(CALLER, messages.HELLO, 0, CHALLENGE)
    nonce = opening.message[12:28]
    frames = [memoryview(PROOF.confirm(CHALLENGE, nonce, said)), *([memoryview(b"")] if more else [])]
    answer = opening.decode_answer(frames)
    assert answer == messages.decode_answer([memoryview(said), *frames[1:]])
