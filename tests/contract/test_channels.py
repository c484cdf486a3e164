# SPDX-License-Identifier: Apache-2.0
"""A data channel over every transport: whatever happens to its connections, each batch is handled once and in order."""

from __future__ import annotations

import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil
import pytest

from parmig.errors import PeerLostError, ProtocolError
from parmig.ram import channel_messages as messages
from parmig.ram import first_connection
from parmig.ram.channel_opening import FIRST_MESSAGE_BYTES, Caller, Opening
from parmig.ram.credit import credit_bytes
from parmig.ram.first_connection import open_channel
from parmig.ram.flow import SendChannel
from parmig.ram.receive_channel import ReceiveChannel
from parmig.ram.reconnect import Reconnect
from parmig.ram.shared import NOBODY_YET
from parmig.transport import tcp_door
from parmig.transport.dial import Dialer, Route
from parmig.transport.registry import TRANSPORTS, open_transport
from parmig.transport.security.session_proof import SessionProof
from parmig.transport.transport import UNIX_SCHEME, Endpoint, Incoming, MigrationTransport
from parmig.units import MIB, NS_PER_MS, NS_PER_S
from tests.keys import security
from tests.support import PATIENCE_NS, PATIENCE_S, curve_keys, wait_until

CALLER = Caller(bytes(range(16)), 3, 7, proves=True)
OLDER = CALLER._replace(proves=False)
BATCH_BYTES = 256 * 1024
BATCH = 3

WITH_KEYS = " with keys"
CURVE = curve_keys()
SCHEMES = [scheme + keys for scheme in TRANSPORTS if scheme != UNIX_SCHEME for keys in ("", WITH_KEYS)]
every_transport = pytest.mark.parametrize("scheme", SCHEMES)


def keys_of(scheme: str, end: int | None) -> dict[str, Any]:
    """The options for the receiving (0) or sending (1) end of a channel with keys; of one without if that is None."""
    if end is None:
        return {}
    return {"curve": CURVE[end]} if scheme == "zmq+tcp" else {"security": security()}


class Destination:
    """The receiving end in a thread: handles batches as a receive worker does, but keeps only their numbers.

    Args:
        spoils: called with each batch before it is handled; may end the connection.
    """

    def __init__(
        self, scheme: str, spoils: Callable[[Destination], None] = lambda _: None, caller: Caller = CALLER
    ) -> None:
        self.handled: list[bytes] = []
        self.losses: list[str] = []
        self.resumptions = 0
        self.sequence = 0
        self.error: BaseException | None = None
        self.transport: MigrationTransport | None = None
        self._scheme, with_keys, _ = scheme.partition(WITH_KEYS)
        self.with_keys = bool(with_keys)
        self._caller = caller
        self._spoils = spoils
        self._wake = os.eventfd(0)
        self._stopped = False
        self.channel = ReceiveChannel(
            self._open,
            Endpoint(self._scheme, "127.0.0.1", 0),
            caller,
            credit_bytes=credit_bytes(BATCH_BYTES),
            outlives=True,
            connected=lambda: None,
            lost=self.losses.append,
            resumed=self._resumed,
            wake_fd=self._wake,
        )
        self.endpoint = self.channel.listen()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _open(self) -> MigrationTransport:
        self.transport = open_transport(
            Endpoint(self._scheme, "127.0.0.1", 0),
            "receiver",
            max_message_bytes=BATCH_BYTES + MIB,
            first_message_bytes=FIRST_MESSAGE_BYTES,
            max_ahead_bytes=credit_bytes(BATCH_BYTES) + MIB,
            token=CALLER.session,
            challenges=self._caller.proves,
            **keys_of(self._scheme, 0 if self.with_keys else None),
        )
        return self.transport

    def _resumed(self, lasted_ns: int) -> None:
        assert lasted_ns > 0
        self.resumptions += 1

    def _run(self) -> None:
        try:
            while not self._stopped:
                self.channel.poll()
                while not self._stopped and self.channel.take(self):
                    pass
        except BaseException as error:
            self.error = error

    def placed(self) -> int:
        return self.sequence

    def restart(self) -> None:
        self.sequence = 0

    def migrate_ram_receive(self, incoming: Incoming) -> bytes:
        if incoming.head[0] == messages.FENCE:
            return messages.answer_fence(incoming.head, self.sequence)
        self._spoils(self)
        payload = b"".join(incoming.frames())
        number = int.from_bytes(incoming.head[1:9], "big")
        assert number == self.sequence + 1, "a gap, or a batch for the second time"
        assert payload == bytes([number % 251]) * len(payload)
        self.handled.append(bytes(incoming.head))
        self.sequence = number
        return messages.ack(number)

    def stop(self) -> None:
        self._stopped = True
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        if self.transport is not None:
            self.transport.shutdown()
        os.close(self._wake)


class Source:
    """The sending end, and what its outages were."""

    def __init__(
        self,
        routes: list[Route],
        limit_ns: int = PATIENCE_NS,
        caller: Caller = CALLER,
        **keys: Any,
    ) -> None:
        self.lost: list[str] = []
        self.resumed: list[tuple[int, int]] = []
        self._fd = os.eventfd(0)
        self.dialer = Dialer(
            routes, "sender", max_message_bytes=1 << 16, token=CALLER.session, challenges=caller.proves, **keys
        )
        self.reconnect = Reconnect(
            "sender",
            caller,
            self.dialer.dial,
            limit_ns,
            lost=self.lost.append,
            resumed=lambda *figures: self.resumed.append(figures),
        )
        self.channel = SendChannel(
            self.dialer.dial(PATIENCE_NS),
            "sender",
            batch_bytes=BATCH_BYTES,
            credit_bytes=credit_bytes(BATCH_BYTES),
            interrupt_fd=self._fd,
            interrupt=lambda: None,
            reconnect=self.reconnect,
        )

    def send(self, size_bytes: int) -> None:
        number = self.channel.next_sequence()
        head = bytes([BATCH]) + number.to_bytes(8, "big")
        payload = bytes([number % 251]) * size_bytes
        self.channel.send_batch([head, payload], len(head) + size_bytes, None)

    def close(self) -> None:
        self.channel._transport.shutdown()
        os.close(self._fd)


@contextmanager
def channel(
    scheme: str,
    spoils: Callable[[Destination], None] = lambda _: None,
    caller: Caller = CALLER,
    **how: int,
) -> Iterator[tuple[Source, Destination]]:
    """An open channel; at the end the receiving end must have failed in no way."""
    destination = Destination(scheme, spoils, caller)
    try:
        keys = keys_of(destination.endpoint.scheme, 1 if destination.with_keys else None)
        source = Source([Route(str(destination.endpoint))], caller=caller, **keys, **how)
        try:
            source.channel.open(caller, limit_ns=PATIENCE_NS)
            yield source, destination
        finally:
            source.close()
    finally:
        destination.stop()
    assert destination.error is None


def end(transport: MigrationTransport | None) -> None:
    """Lose the connection, in the thread that uses it: what it has not delivered is gone."""
    assert transport is not None
    transport.shutdown()


def cut(destination: Destination) -> None:
    """End the connection behind the backs of both."""
    ended = 0
    for connection in psutil.Process().net_connections("tcp"):
        if connection.laddr.port == destination.endpoint.port and connection.status == psutil.CONN_ESTABLISHED:
            with socket.socket(fileno=os.dup(connection.fd)) as sock:
                sock.shutdown(socket.SHUT_RDWR)
            ended += 1
    assert ended


@every_transport
@pytest.mark.parametrize(("seed", "caller"), [(0, OLDER), (1, CALLER), (2, CALLER), (3, CALLER)])
def test_a_flapping_connection_delivers_each_batch_once(scheme: str, seed: int, caller: Caller) -> None:
    here, there = random.Random(seed), random.Random(seed + 100)  # each end has a thread of its own

    def spoils(destination: Destination) -> None:
        if there.random() < 0.1:
            end(destination.transport)
            raise PeerLostError("the test ended it")

    with channel(scheme, spoils, caller) as (source, destination):
        for round_ in range(1, 6):
            for _ in range(here.randrange(20)):
                if here.random() < 0.1:
                    end(source.channel._transport)
                source.send(here.randrange(1, BATCH_BYTES))
            source.channel.fence(round_)
            assert destination.sequence == source.channel.next_sequence() - 1
        assert len(source.resumed) == len(source.lost) > 0
        assert len(destination.handled) == destination.sequence


@every_transport
def test_a_loss_while_nothing_happens_is_mended_before_the_next_batch(scheme: str) -> None:
    with channel(scheme) as (source, destination):
        source.send(1000)
        source.channel.fence(1)
        cut(destination)
        source.channel.idle()  # wakes by the loss
        wait_until(lambda: destination.resumptions == 1, "the channel to resume")
        assert source.resumed[0][1] == 0, "all was placed"
        source.send(1000)
        source.channel.fence(2)
        assert destination.sequence == 2


@every_transport
def test_only_what_was_not_placed_is_sent_again(scheme: str) -> None:
    held = threading.Event()

    def spoils(destination: Destination) -> None:
        if destination.sequence == 3 and not destination.losses:
            assert held.wait(PATIENCE_S)
            end(destination.transport)
            raise PeerLostError("the test ended it")

    with channel(scheme, spoils) as (source, destination):
        for _ in range(5):
            source.send(1000)
        held.set()
        source.channel.fence(1)
        assert destination.sequence == 5
        ((_, again_bytes),) = source.resumed
        assert again_bytes == 2 * 1009, "the fourth and the fifth"


def is_ignored(source: Source, make_first: Callable[[bytes], bytes]) -> None:
    """A connection whose first message is made from its challenge gets no answer; it may be closed."""
    transport = source.dialer.dial(PATIENCE_NS)
    transport.write([make_first(transport.challenge)])
    with suppress(PeerLostError):
        assert transport.read(100) is None
    transport.shutdown()


def opens(kind: int, epoch: int, caller: Caller = CALLER) -> Callable[[bytes], bytes]:
    return lambda challenge: Opening(caller, kind, epoch, challenge).message


@every_transport
@pytest.mark.parametrize("caller", [CALLER, OLDER], ids=["proof", "token"])
def test_nobody_but_the_send_worker_takes_up_the_channel(scheme: str, caller: Caller) -> None:
    with channel(scheme, caller=caller) as (source, destination):
        source.send(1000)
        source.channel.fence(1)
        source.reconnect.epoch = 5
        end(source.channel._transport)
        wait_until(lambda: bool(destination.losses), "the loss")
        strangers = [
            opens(messages.HELLO, 0, caller),
            opens(messages.HELLO, 9, caller),
            opens(messages.RESUME, 9, caller._replace(session=bytes(16))),
            opens(messages.RESUME, 9, caller._replace(worker=4)),
            opens(messages.RESUME, 9, caller._replace(protocol=8)),
            opens(messages.RESUME, 9, caller._replace(proves=not caller.proves)),
            opens(messages.RESUME, 0, caller),
        ]
        for stranger in strangers:
            is_ignored(source, stranger)
        source.send(1000)
        source.channel.fence(2)
        assert destination.sequence == 2
        assert source.reconnect.epoch == 6
        cut(destination)
        wait_until(lambda: len(destination.losses) == 2, "the next loss")
        is_ignored(source, opens(messages.RESUME, 6, caller))  # an old connection


@every_transport
def test_after_the_receiver_was_started_again_only_a_send_worker_that_begins_anew_is_let_in(scheme: str) -> None:
    with channel(scheme) as (source, destination):
        source.send(1000)
        source.channel.fence(1)
        end(source.channel._transport)
        wait_until(lambda: bool(destination.losses), "the loss")
        destination.sequence = NOBODY_YET
        is_ignored(source, opens(messages.RESUME, 9, CALLER))
        successor = source.dialer.dial(PATIENCE_NS)
        successor.write([opens(messages.RESTART, 9, CALLER)(successor.challenge)])
        wait_until(lambda: destination.sequence == 0, "the successor")
        successor.shutdown()


@every_transport
def test_a_recorded_claim_proves_nothing_on_another_connection(scheme: str) -> None:
    with channel(scheme) as (source, destination):
        source.send(1000)
        source.channel.fence(1)
        end(source.channel._transport)
        wait_until(lambda: bool(destination.losses), "the loss")
        recorded: list[bytes] = []

        def record(challenge: bytes) -> bytes:
            recorded.append(opens(messages.RESUME, 9)(challenge))
            return b"something else"

        is_ignored(source, record)
        is_ignored(source, lambda _: recorded[0])
        source.send(1000)
        source.channel.fence(2)
        assert destination.sequence == 2


@every_transport
def test_a_destination_that_does_not_know_the_session_is_refused(scheme: str) -> None:
    with channel(scheme) as (source, _):
        source.send(1000)
        source.channel.fence(1)
        real, calls = SessionProof.confirm, []

        def confirm(proof: SessionProof, challenge: bytes, nonce: bytes, said: bytes) -> bytes:
            calls.append(said)
            return real(proof._replace(secret=bytes(16)), challenge, nonce, said)

        SessionProof.confirm = confirm  # type: ignore[method-assign]
        try:
            end(source.channel._transport)
            with pytest.raises(ProtocolError, match="does not prove that it is this migration's destination"):
                source.send(1000)
        finally:
            SessionProof.confirm = real  # type: ignore[method-assign]
        assert len(calls) == 1


@every_transport
def test_a_destination_that_is_gone_is_given_up(scheme: str) -> None:
    with channel(scheme, limit_ns=300 * NS_PER_MS) as (source, destination):
        source.send(1000)
        source.channel.fence(1)
        destination.stop = lambda: None  # type: ignore[method-assign]
        Destination.stop(destination)
        began = time.monotonic()
        with pytest.raises(PeerLostError, match=r"no new connection within .*--reconnect-timeout"):
            source.channel.idle()
        assert time.monotonic() - began < 15, "it is given up at its own limit"


@every_transport
def test_another_route_is_taken_when_one_leads_nowhere(scheme: str) -> None:
    with channel(scheme) as (source, destination):
        good = Route(str(destination.endpoint))
        source.dialer._routes = (Route(f"{destination.endpoint.scheme}://127.0.0.1:1"), good)
        source.dialer.route = source.dialer._routes[0]
        source.send(1000)
        end(source.channel._transport)
        source.send(1000)
        source.channel.fence(1)
        assert destination.sequence == 2
        assert source.dialer.route == good


@pytest.mark.parametrize(
    ("answer", "words"),
    [(messages.resumed(1, 0), "placed batch 0, and acknowledged more"), (messages.resumed(2, 1), "did not take up")],
)
def test_a_destination_that_forgot_what_it_placed_is_refused(answer: bytes, words: str) -> None:
    with channel("tcp") as (source, destination):
        source.send(1000)
        source.channel.fence(1)
        end(source.channel._transport)
        wait_until(lambda: bool(destination.losses), "the loss")
        real = messages.resumed
        messages.resumed = lambda *_: answer  # type: ignore[assignment]
        try:
            with pytest.raises(ProtocolError, match=words):
                source.send(1000)
        finally:
            messages.resumed = real


@pytest.mark.parametrize("scheme", ["tcp", "tcp" + WITH_KEYS])
def test_a_sender_that_was_too_slow_to_speak_connects_again(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp_door, "FIRST_MESSAGE_NS", NS_PER_S // 4)
    monkeypatch.setattr(first_connection, "SLOW_NS", NS_PER_S // 8)
    destination = Destination(scheme)
    sources: list[Source] = []

    keys = keys_of("tcp", 1 if destination.with_keys else None)

    def is_dropped() -> bool:
        ours = (c for c in psutil.Process().net_connections("tcp") if c.laddr.port == destination.endpoint.port)
        return all(connection.status != psutil.CONN_ESTABLISHED for connection in ours)

    def connect(_: int) -> SendChannel:
        sources.append(Source([Route(str(destination.endpoint))], **keys))
        if len(sources) == 1:
            wait_until(is_dropped, "the end of the connection that says nothing")
            monkeypatch.setattr(tcp_door, "FIRST_MESSAGE_NS", PATIENCE_NS)  # the next one is quick enough
        return sources[-1].channel

    try:
        open_channel(connect, CALLER, limit_ns=PATIENCE_NS)
        sources[-1].send(100)
        sources[-1].channel.fence(1)
        assert len(sources) == 2
        assert len(destination.handled) == 1
    finally:
        for source in sources:
            source.close()
        destination.stop()
    assert destination.error is None


def test_a_sender_that_was_quick_fails_with_its_first_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_connection, "SLOW_NS", 100 * NS_PER_S)
    destination = Destination("tcp")
    sources: list[Source] = []

    def connect(_: int) -> SendChannel:
        sources.append(Source([Route(str(destination.endpoint))]))
        destination.stop()
        return sources[-1].channel

    with pytest.raises(PeerLostError):
        open_channel(connect, CALLER, limit_ns=PATIENCE_NS)
    (source,) = sources
    source.close()
