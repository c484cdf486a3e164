# SPDX-License-Identifier: Apache-2.0
"""Device state arrives whole, in order, bounded, and only from the source."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pytest

from parmig.engine.channels import state_channel
from parmig.engine.channels.state_channel import WINDOW_BYTES, StateReceiver, StateSender, check_size
from parmig.engine.messages.peer_messages import MAX_STATE_CHUNK_BYTES
from parmig.engine.source.state_opening import say_hello
from parmig.errors import LimitExceededError, PeerLostError, PeerUnreachableError, ProtocolError, StateError
from parmig.transport.security.session_proof import NONCE_BYTES, PROOF_BYTES, SessionProof
from parmig.transport.tcp import TcpTransport
from parmig.transport.transport import Endpoint
from parmig.units import MIB, NS_PER_MS, NS_PER_S
from tests.support import PATIENCE_S, wait_until, while_pumping

SESSION = b"0123456789abcdef"
PROOF = SessionProof(SESSION, "state")
NONCE = bytes(NONCE_BYTES)


class Impostor(SessionProof):
    """An end that takes claims, but cannot prove anything itself."""

    def confirm(self, challenge: bytes, nonce: bytes, said: bytes) -> bytes:
        return said + bytes(PROOF_BYTES)


class Ends:
    """A destination that listens, and as many connections to it as are asked for."""

    def __init__(self, stack: ExitStack, proof: SessionProof | None = None) -> None:
        self._stack = stack
        self.proof = proof
        self.listener = self._transport("state channel")
        self.endpoint = self.listener.bind(Endpoint("tcp", "127.0.0.1", 0))
        self.early: list[bytes] = []
        self.receiver = StateReceiver(self.listener, SESSION, self.early.append, max_bytes=64 * MIB, proof=proof)
        stack.callback(self.receiver.close)

    def _transport(self, name: str) -> TcpTransport:
        transport = TcpTransport(
            name,
            heartbeat=False,
            max_message_bytes=4 * MIB,
            first_message_bytes=state_channel.HELLO_BYTES,
            challenges=self.proof is not None,
        )
        self._stack.callback(transport.shutdown)
        return transport

    def connect(self, timeout_ns: int = 10 * NS_PER_S) -> TcpTransport:
        transport = self._transport("source")
        while_pumping(
            lambda: transport.connect(self.endpoint, timeout_ns=timeout_ns),
            lambda: [self.receiver.receive(), time.sleep(0.001)],
        )
        return transport

    def sender(self) -> StateSender:
        transport = self.connect()
        while_pumping(lambda: say_hello(transport, SESSION, self.proof), lambda: self.receiver.receive())
        return StateSender(transport)

    def receive(self, size_bytes: int) -> None:
        def received() -> bool:
            self.receiver.receive()
            return self.receiver.size_bytes >= size_bytes

        wait_until(received, f"{size_bytes} bytes of state")


@pytest.fixture
def ends() -> Iterator[Ends]:
    with ExitStack() as stack:
        yield Ends(stack)


@pytest.fixture
def proving() -> Iterator[Ends]:
    """Ends that prove the session to each other."""
    with ExitStack() as stack:
        yield Ends(stack, PROOF)


def test_state_arrives_whole_and_in_order(ends: Ends) -> None:
    sender = ends.sender()
    big = np.random.default_rng(1).bytes(3 * MAX_STATE_CHUNK_BYTES + 5)
    sender.write(b"screen")
    sender.early = False
    pieces = [b"a", b"", bytearray(b"bc"), memoryview(big)]
    for piece in pieces:
        sender.write(piece)
    ends.receive(sender.size_bytes)
    assert ends.early == [b"screen"]
    assert b"".join(ends.receiver.held()) == b"abc" + big
    assert b"".join(ends.receiver.held()) == b"abc" + big  # can be read again
    assert ends.receiver.size_bytes == sender.size_bytes == len(b"screenabc" + big)
    assert ends.receiver.digest == sender.digest
    assert sender.digest != StateSenderOfNothing.digest


class StateSenderOfNothing:
    """The digest of no state at all."""

    digest = "99aa06d3014798d86001c324468d497f"


def test_no_state_has_the_known_digest(ends: Ends) -> None:
    assert ends.sender().digest == ends.receiver.digest == StateSenderOfNothing.digest


def test_views_of_other_items_are_taken_as_bytes(ends: Ends) -> None:
    sender = ends.sender()
    numbers = np.arange(100, dtype=np.uint32)
    sender.early = False
    sender.write(memoryview(numbers))
    ends.receive(400)
    assert b"".join(ends.receiver.held()) == numbers.tobytes()


def test_what_is_written_is_copied(ends: Ends) -> None:
    sender = ends.sender()
    sender.early = False
    data = bytearray(b"x" * MIB)
    sender.write(data)
    data[:] = bytes(MIB)
    ends.receive(MIB)
    assert b"".join(ends.receiver.held()) == b"x" * MIB


def test_a_destination_that_takes_nothing_is_given_up(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_channel, "STALL_LIMIT_NS", 50 * NS_PER_MS)
    sender = ends.sender()
    with pytest.raises(LimitExceededError, match="device state"):
        sender.write(bytes(WINDOW_BYTES + 2 * MAX_STATE_CHUNK_BYTES))
    assert WINDOW_BYTES < sender.size_bytes <= WINDOW_BYTES + MAX_STATE_CHUNK_BYTES


def test_aborting_ends_a_write_that_waits(ends: Ends) -> None:
    sender = ends.sender()
    errors: list[BaseException] = []

    def write() -> None:
        try:
            sender.write(bytes(WINDOW_BYTES + 2 * MAX_STATE_CHUNK_BYTES))
        except PeerLostError as error:
            errors.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    wait_until(lambda: sender.size_bytes > WINDOW_BYTES, "a full window")
    sender.abort()
    thread.join(PATIENCE_S)
    assert [str(error) for error in errors] == ["the state channel was closed"]


def test_strangers_are_ignored(ends: Ends) -> None:
    for hello in (b"", b"H", b"H" + SESSION[::-1], b"D" + SESSION, b"H" + SESSION + b"H", b"H" * 100):
        ends.connect().write([hello])
    ends.connect().write([b"H" + SESSION, b""])
    sender = ends.sender()
    sender.write(b"early")
    ends.receive(5)
    with pytest.raises(PeerUnreachableError):
        ends.connect(timeout_ns=200 * NS_PER_MS)
    sender.write(b"more")
    ends.receive(9)
    assert ends.early == [b"early", b"more"]


def test_nobody_opens_the_channel_without_the_proof(proving: Ends) -> None:
    recorded = proving.connect()
    claim = PROOF.claim(recorded.challenge, NONCE, b"H")
    for hello in (b"H" + SESSION, claim):
        proving.connect().write([hello])
    for proof, said in ((PROOF._replace(secret=bytes(16)), b"H"), (PROOF._replace(role="pages"), b"H"), (PROOF, b"D")):
        stranger = proving.connect()
        stranger.write([proof.claim(stranger.challenge, NONCE, said)])
    proving.sender().write(b"early")
    proving.receive(5)
    assert proving.early == [b"early"]


def test_nobody_but_the_destination_gets_device_state(proving: Ends) -> None:
    proving.receiver._proof = Impostor(*PROOF)
    with pytest.raises(ProtocolError, match="does not prove that it is this migration's destination"):
        proving.sender()


@pytest.mark.parametrize(
    "frames",
    [
        [b"X", b"data"],
        [b"D"],
        [b"D", b"a", b"b"],
        [b"", b"data"],
        [b"E", bytes(MAX_STATE_CHUNK_BYTES + 1)],
        [b"H" + SESSION],
    ],
    ids=["kind", "no data", "too many frames", "no kind", "too long", "second hello"],
)
def test_what_may_not_come_is_refused(ends: Ends, frames: list[bytes]) -> None:
    source = ends.connect()
    source.write([b"H" + SESSION])
    source.write(frames)

    def refused() -> bool:
        try:
            ends.receiver.receive()
        except ProtocolError:
            return True
        return False

    wait_until(refused, "the refusal")
    assert ends.receiver.size_bytes == 0


def refuses(ends: Ends) -> StateError:
    """What the receiver raises in the end."""
    errors: list[StateError] = []

    def refused() -> bool:
        try:
            ends.receiver.receive()
        except StateError as error:
            errors.append(error)
        return bool(errors)

    wait_until(refused, "the refusal")
    return errors[0]


@pytest.mark.parametrize("early", [True, False])
def test_more_state_than_is_taken_ends_as_it_arrives(ends: Ends, early: bool) -> None:
    ends.receiver = StateReceiver(ends.listener, SESSION, ends.early.append, max_bytes=3 * MIB)
    sender = ends.sender()
    sender.early = early
    sender.write(bytes(5 * MIB))
    assert "--max-state" in str(refuses(ends))
    assert ends.receiver.size_bytes == 3 * MIB
    check_size(3 * MIB, 3 * MIB)
    with pytest.raises(StateError, match=r"8 EiB.*at most 3 MiB"):
        check_size(1 << 63, 3 * MIB)
    ends.receiver.close()


def test_state_that_cannot_be_kept_is_told_with_the_place(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "wb", buffering=0) as full:
        monkeypatch.setattr(ends.receiver, "_held", full)
        sender = ends.sender()
        sender.early = False
        sender.write(b"x")
        assert "No space left" in str(error := refuses(ends))
        assert "TMPDIR" in str(error)


@pytest.mark.parametrize(
    "answer",
    [[b"A"], [b"A" + bytes(8), b"more"], [struct.pack(">cQ", b"Z", 1)], [struct.pack(">cQ", b"A", 1 << 40)]],
    ids=["cut", "frames", "kind", "more than was sent"],
)
def test_a_wrong_answer_is_refused(ends: Ends, answer: list[bytes]) -> None:
    sender = ends.sender()
    sender.write(b"first")
    ends.receive(5)
    ends.listener.write(answer)

    def refused() -> bool:
        try:
            sender.write(b"x")
        except ProtocolError:
            return True
        return False

    wait_until(refused, "the refusal")


def test_a_destination_that_goes_away_is_noticed(ends: Ends) -> None:
    sender = ends.sender()
    sender.write(b"first")
    ends.receive(5)
    ends.listener.shutdown()

    def noticed() -> bool:
        try:
            sender.write(b"x")
        except PeerLostError:
            return True
        return False

    wait_until(noticed, "the loss")
