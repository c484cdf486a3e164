# SPDX-License-Identifier: Apache-2.0
"""Channels that outlive their connections: every message arrives once and in order, in both directions."""

from __future__ import annotations

import os
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import psutil
import pytest

from parmig.errors import PeerLostError, ProtocolError
from parmig.transport import lasting, lasting_ends
from parmig.transport.lasting import LastingTransport
from parmig.transport.lasting_ends import RESUME_BYTES, LastingCaller, LastingListener
from parmig.transport.security.session_proof import NONCE_BYTES, PROOF_BYTES, SessionProof
from parmig.transport.tcp import TcpTransport
from parmig.transport.transport import Endpoint, MigrationTransport
from parmig.units import MIB, NS_PER_MS, NS_PER_S
from tests.support import PATIENCE_NS, PATIENCE_S, wait_until, while_pumping

SESSION = bytes(range(16))
PROOF = SessionProof(SESSION, "control")


class Impostor(SessionProof):
    """An end that takes claims, but cannot prove anything itself."""

    def confirm(self, challenge: bytes, nonce: bytes, said: bytes) -> bytes:
        return said + bytes(PROOF_BYTES)


class Ends:
    """Both ends of one channel, in one thread."""

    def __init__(self, stack: ExitStack, limit_ns: int = 20 * NS_PER_S, proof: SessionProof | None = PROOF) -> None:
        self.proof = proof
        self.losses: list[str] = []
        self.outages_ns: list[int] = []
        self._stack = stack
        listener = self.transport(RESUME_BYTES)
        self.endpoint = listener.bind(Endpoint("tcp", "127.0.0.1", 0))
        first = self.transport()
        while_pumping(lambda: first.connect(self.endpoint, timeout_ns=PATIENCE_NS), lambda: listener.read(5))
        first.write([b"first"])
        while listener.read(5) is None:
            pass
        listener.accept()
        self._how = {
            "limit_ns": limit_ns,
            "lost": self.losses.append,
            "resumed": self.outages_ns.append,
            "proof": proof,
        }
        self.caller = LastingCaller("caller", first, SESSION, dial=self.dial, **self._how)
        self.listener = self.listen_anew(listener)
        stack.callback(self.caller.shutdown)

    def listen_anew(self, first: TcpTransport | None) -> LastingListener:
        """An end that listens, with *first*, or in place of another one that has ended."""
        listen = lambda: self.transport(RESUME_BYTES)  # noqa: E731
        end = LastingListener("listener", first, SESSION, listen=listen, endpoint=self.endpoint, **self._how)
        self._stack.callback(end.shutdown)
        return end

    def transport(self, first_message_bytes: int = MIB) -> TcpTransport:
        transport = TcpTransport(
            "inner",
            heartbeat=True,
            max_message_bytes=MIB,
            first_message_bytes=first_message_bytes,
            challenges=self.proof is not None,
        )
        self._stack.callback(transport.shutdown)
        return transport

    def dial(self, timeout_ns: int) -> MigrationTransport:
        transport = self.transport()
        transport.connect(self.endpoint, timeout_ns=timeout_ns)
        return transport

    def cut(self) -> None:
        """End the connection behind the backs of both, if there is one."""
        for connection in psutil.Process().net_connections("tcp"):
            if connection.laddr.port == self.endpoint.port and connection.status == psutil.CONN_ESTABLISHED:
                with socket.socket(fileno=os.dup(connection.fd)) as sock, suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def both(self) -> tuple[LastingTransport, LastingTransport]:
        return self.caller, self.listener


@pytest.fixture
def ends() -> Iterator[Ends]:
    with ExitStack() as stack:
        yield Ends(stack)


@pytest.fixture
def older_ends() -> Iterator[Ends]:
    """Ends that know no proof."""
    with ExitStack() as stack:
        yield Ends(stack, proof=None)


def arrive(ends: Ends, expected: tuple[list[bytes], list[bytes]]) -> None:
    """Read both ends until they have what is expected, and then for a while more, in which nothing comes."""
    heard: tuple[list[bytes], list[bytes]] = ([], [])
    deadline = time.monotonic() + PATIENCE_S
    while heard != expected:
        assert time.monotonic() < deadline, (len(heard[0]), len(heard[1]), ends.losses)
        take(ends, heard)
    take(ends, heard)
    assert heard == expected


def take(ends: Ends, heard: tuple[list[bytes], list[bytes]]) -> None:
    for end, messages in zip(ends.both(), heard, strict=True):
        message = end.read(5)
        if message is not None:
            messages.append(b"".join(message))


@pytest.mark.parametrize(("seed", "which"), [*((seed, "ends") for seed in range(4)), (4, "older_ends")])
def test_messages_of_both_ends_arrive_once_and_in_order_over_a_flapping_connection(
    seed: int, which: str, request: pytest.FixtureRequest
) -> None:
    ends: Ends = request.getfixturevalue(which)
    chance = random.Random(seed)
    heard: tuple[list[bytes], list[bytes]] = ([], [])
    sent: tuple[list[bytes], list[bytes]] = ([], [])
    for number in range(200):
        side = chance.randrange(2)
        message = b"%d " % number + bytes(chance.randrange(2000))
        ends.both()[side].write([message[:3], message[3:]])
        sent[1 - side].append(message)
        if chance.random() < 0.05:
            ends.cut()
        if chance.random() < 0.5:
            take(ends, heard)
    deadline = time.monotonic() + PATIENCE_S
    while heard != sent:
        assert time.monotonic() < deadline
        take(ends, heard)
    assert len(ends.outages_ns) <= len(ends.losses)
    assert ends.losses


@pytest.mark.parametrize("taken", [False, True])
def test_a_channel_goes_on_at_any_address_where_its_port_is_free(taken: bool) -> None:
    with ExitStack() as stack:
        ends = Ends(stack)
        port = ends.endpoint.port
        ends.listener._endpoint = Endpoint("tcp", "127.0.0.1,127.0.0.2", port)
        if taken:
            stack.enter_context(socket.create_server(("127.0.0.2", port)))
        else:
            ends.endpoint = Endpoint("tcp", "127.0.0.2", port)
        ends.cut()
        ends.caller.write([b"again"])
        arrive(ends, ([], [b"again"]))


def test_what_arrived_is_not_kept(ends: Ends) -> None:
    for number in range(100):
        ends.caller.write([b"%d" % number])
    arrive(ends, ([], [b"%d" % number for number in range(100)]))
    ends.caller.read()
    assert len(ends.caller._unacked) < lasting.ACK_EVERY


def test_a_loss_is_an_error_once_the_channel_ends_with_its_connection(ends: Ends) -> None:
    ends.caller.outlives = ends.listener.outlives = False
    ends.listener.write([b"last words"])
    assert ends.caller.read(1000) == [b"last words"]
    ends.cut()
    for end in ends.both():
        with pytest.raises(PeerLostError):
            end.read(1000)
        with pytest.raises(PeerLostError):
            end.read()
        with pytest.raises(PeerLostError):
            end.write([b"more"])
    assert not ends.losses


def test_a_peer_that_has_ended_is_given_up_long_before_the_limit(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lasting, "GONE_NS", 300 * NS_PER_MS)
    monkeypatch.setattr(lasting_ends, "CLOSED_NS", 300 * NS_PER_MS)
    ends.listener.shutdown()
    with pytest.raises(PeerLostError, match="no new connection within"):
        ends.caller.read(10_000)
    assert len(ends.losses) == 1


def test_a_source_that_has_ended_is_given_up_long_before_the_limit(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lasting, "GONE_NS", 300 * NS_PER_MS)
    ends.caller.shutdown()
    with pytest.raises(PeerLostError, match="it was closed; there was no new connection within"):
        ends.listener.read(10_000)


def resume(session: bytes = SESSION, epoch: int = 1, count: int = 0) -> bytes:
    return struct.pack(">c16sIQ", b"R", session, epoch, count)


def resumed(epoch: int, kind: bytes = b"R") -> bytes:
    return struct.pack(">cIQ", kind, epoch, 0)


def connect(ends: Ends) -> TcpTransport:
    transport = ends.transport()
    while_pumping(lambda: transport.connect(ends.endpoint, timeout_ns=PATIENCE_NS), lambda: ends.listener.read(5))
    return transport


def lose(ends: Ends) -> None:
    """The connection is lost, and the caller makes no other one."""
    ends.caller._dial = lambda timeout_ns: (_ for _ in ()).throw(PeerLostError("the test keeps it away"))  # type: ignore[assignment]
    ends.cut()
    for _ in range(3):
        ends.listener.read(50)


def is_dropped(ends: Ends, make_first: Callable[[bytes], bytes]) -> None:
    """A stranger whose first message is made from its challenge does not take up the channel."""
    stranger = connect(ends)
    stranger.write([make_first(stranger.challenge)])
    for _ in range(5):
        assert ends.listener.read(20) is None
    with suppress(PeerLostError):
        assert stranger.read(50) is None
    assert ends.outages_ns == []


def test_strangers_and_old_connections_do_not_take_up_a_channel_without_proof(older_ends: Ends) -> None:
    ends = older_ends
    lose(ends)
    for first in (b"x", resume(bytes(16)), resume(epoch=0), b"S" + resume()[1:], resume() + b"x"):
        is_dropped(ends, lambda _, first=first: first)  # type: ignore[misc]
    right = connect(ends)
    right.write([resume(epoch=7)])
    ends.listener.read(1000)
    assert right.read(1000) == [resumed(7)]
    assert len(ends.outages_ns) == 1


def test_strangers_replays_and_old_connections_do_not_take_up_a_channel_with_proof(ends: Ends) -> None:
    lose(ends)
    nonce = bytes(NONCE_BYTES)
    recorded: list[bytes] = []

    def record(challenge: bytes) -> bytes:
        recorded.append(PROOF.claim(challenge, nonce, resumed(5)))
        return b"something else"

    is_dropped(ends, record)
    is_dropped(ends, lambda _: recorded[0])
    is_dropped(ends, lambda _: resume(epoch=9))
    for proof, said in (
        (PROOF._replace(secret=bytes(16)), resumed(9)),
        (PROOF._replace(role="state"), resumed(9)),
        (PROOF, resumed(0)),
        (PROOF, resumed(9, b"S")),
        (PROOF, resumed(9) + b"x"),
    ):
        is_dropped(ends, lambda challenge, proof=proof, said=said: proof.claim(challenge, nonce, said))  # type: ignore[misc]
    right = connect(ends)
    right.write([PROOF.claim(right.challenge, nonce, resumed(7))])
    ends.listener.read(1000)
    (answer,) = right.read(1000) or ()
    assert PROOF.check_confirmation(right.challenge, nonce, answer) == resumed(7)
    assert len(ends.outages_ns) == 1


def test_whoever_answers_must_prove_the_session(ends: Ends) -> None:
    ends.listener._proof = Impostor(*PROOF)
    ends.cut()
    over = threading.Event()

    def read() -> None:
        while not over.is_set():
            ends.listener.read(5)

    def refused() -> bool:
        ends.caller.read(5)
        return len(ends.losses) > 2  # the listener lost whoever it had let in

    reading = threading.Thread(target=read)
    reading.start()
    wait_until(refused, "the caller to refuse the listener")
    ends.caller._limit_ns = 0
    with pytest.raises(PeerLostError, match="no new connection within"):
        ends.caller.read(1000)
    over.set()
    reading.join()


@pytest.mark.parametrize(
    "frames", [[b"M" + bytes(8)], [b"A" + bytes(8), b"x"], [b"X" + bytes(8), b"x"], [b"M" + bytes(7), b"x"]]
)
def test_what_is_no_message_is_refused(ends: Ends, frames: list[bytes]) -> None:
    assert ends.caller._inner is not None
    ends.caller._inner.write(frames)
    with pytest.raises(ProtocolError, match="are no message"):
        ends.listener.read(1000)


@pytest.mark.parametrize("count", [4, 2**63])
def test_a_peer_that_has_received_more_than_was_sent_is_refused(ends: Ends, count: int) -> None:
    for _ in range(3):
        ends.listener.write([b"x"])
    assert ends.caller._inner is not None
    ends.caller._inner.write([struct.pack(">cQ", b"A", count)])
    with pytest.raises(ProtocolError, match=f"has received {count} messages, expected 0 to 3"):
        ends.listener.read(1000)


def test_a_listener_in_place_of_one_that_was_killed_begins_anew(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    patience = lasting.GONE_NS
    monkeypatch.setattr(lasting, "GONE_NS", 100 * NS_PER_MS)
    monkeypatch.setattr(lasting_ends, "CLOSED_NS", 100 * NS_PER_MS)
    restarts: list[int] = []
    ends.caller._waits, ends.caller._note_restarted = True, lambda: restarts.append(1)
    ends.caller.write([b"before"])
    arrive(ends, ([], [b"before"]))
    ends.listener.shutdown()
    ends.caller.write([b"lost"])
    assert ends.caller.read(500) is None  # a caller that does not wait would have given up
    monkeypatch.setattr(lasting, "GONE_NS", patience)
    ends.listener = ends.listen_anew(None)
    assert ends.listener.read(100) is None
    ends.listener.listens = True
    while not restarts:
        take(ends, ([], []))
    for words in (b"from it", b"to it"), (b"then", b"there"):
        for end, word in zip(reversed(ends.both()), words, strict=True):
            end.write([word])
        arrive(ends, ([words[0]], [words[1]]))
        ends.cut()
    assert len(restarts) == 1


def test_a_channel_that_needs_what_was_sent_ends_if_its_listener_begins_anew(ends: Ends) -> None:
    ends.caller._waits = True
    ends.caller.write([b"before"])
    arrive(ends, ([], [b"before"]))
    ends.listener.shutdown()
    ends.listener = ends.listen_anew(None)
    ends.listener.listens = True
    with pytest.raises(PeerLostError, match="has lost what was sent before"):
        while_pumping(lambda: ends.caller.read(5000), lambda: ends.listener.read(5))
