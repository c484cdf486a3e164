# SPDX-License-Identifier: Apache-2.0
"""A source that says things out of turn, or nothing: the destination ends in order and never runs the guest."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import msgspec
import pytest

from parmig.engine.channels.control import ControlChannel
from parmig.engine.channels.state_channel import state_hello
from parmig.engine.messages import peer_messages as m
from parmig.engine.messages.digest_messages import Digested, DigestRequest
from parmig.errors import PeerLostError
from parmig.ram.channel_opening import Caller
from parmig.ram.credit import credit_bytes
from parmig.ram.flow import SendChannel
from parmig.transport.tcp import TcpTransport
from parmig.transport.transport import Endpoint, parse_uri
from parmig.transport.zeromq import ZmqTransport
from parmig.units import MIB, NS_PER_S
from tests.integration.sides import HeldGuest, Migration, never_ran, until
from tests.integration.test_refusals import _wish
from tests.support import PATIENCE_NS

NO_STATE = "99aa06d3014798d86001c324468d497f"
LIMIT_NS = PATIENCE_NS


@contextmanager
def source(destination: HeldGuest, *, verify: bool = True) -> Iterator[tuple[Migration, ControlChannel]]:
    """A source that is connected in every way, and says only what the test has it say."""
    with Migration(None, destination) as there, ExitStack() as stack:
        control = ControlChannel(TcpTransport("source", heartbeat=True, max_message_bytes=MIB))
        stack.callback(control.close)
        control.transport.connect(parse_uri(there.uri), timeout_ns=LIMIT_NS)
        control.write(msgspec.structs.replace(_wish(destination), verify=verify))
        accept = control.wait("Accept", 2 * LIMIT_NS)
        assert isinstance(accept, m.Accept), accept
        data = ZmqTransport("data", max_message_bytes=MIB, token=accept.session)
        stack.callback(data.shutdown)
        data.connect(Endpoint("zmq+tcp", "127.0.0.1", accept.data[0].port), timeout_ns=LIMIT_NS)
        fd = os.eventfd(0)
        stack.callback(os.close, fd)
        channel = SendChannel(
            data, "data", batch_bytes=MIB, credit_bytes=credit_bytes(MIB), interrupt_fd=fd, interrupt=lambda: None
        )
        channel.open(Caller(accept.session, 0, control.version), limit_ns=LIMIT_NS)
        state = TcpTransport("state", heartbeat=False, max_message_bytes=MIB)
        stack.callback(state.shutdown)
        state.connect(Endpoint("tcp", "127.0.0.1", accept.state.port), timeout_ns=LIMIT_NS)
        state.write([state_hello(accept.session)])
        receiver = there.receiver
        until(lambda: receiver and receiver._session and receiver._session.plan.established, "the session")
        yield there, control


def ends_with(there: Migration, control: ControlChannel, error: str, words: str) -> None:
    """Both sides hear of it."""
    while not isinstance(answer := control.wait("the failure", 2 * LIMIT_NS), m.Failure):
        pass
    assert (answer.error.type, words in answer.error.message) == (error, True), answer.error
    assert there.destination is not None
    there.destination.open_gates()
    report = there.received()
    assert report.error is not None
    assert (report.status, report.error.type) == ("failed", error)
    never_ran(there.destination)


RELEASE = m.Release(0, NO_STATE)


@pytest.mark.parametrize(
    ("said", "culprit"),
    [
        ([m.HandOver(True)], "HandOver"),
        ([RELEASE, m.HandOver(True)], "HandOver"),
        ([RELEASE, RELEASE], "Release"),
        ([RELEASE, DigestRequest()], "DigestRequest"),
        ([DigestRequest()] * 3000, "digest twice"),
        ([m.Loaded(1, 1)], "Loaded"),
        ([m.Resumed(1)], "Resumed"),
        ([Digested("ab")], "Digested"),
        ([m.Goodbye()], "Goodbye"),
    ],
    ids=lambda value: value if isinstance(value, str) else str(len(value)),
)
def test_what_comes_out_of_turn_ends_it(said: Sequence[m.ControlMessage], culprit: str) -> None:
    """Loading is held, so that a hand-over comes before it has ended; it would have run a guest that failed to load."""
    with HeldGuest("memory=8MiB", incoming=True, hold=["finish_load"]) as destination, source(destination) as at:  # type: ignore[attr-defined]
        with contextlib.suppress(PeerLostError):  # it may end before it was told all
            for message in said:
                at[1].write(message)
        ends_with(*at, "ProtocolError", culprit)


def test_a_digest_that_was_not_agreed_is_refused() -> None:
    with HeldGuest("memory=8MiB", incoming=True) as destination, source(destination, verify=False) as at:  # type: ignore[attr-defined]
        at[1].write(DigestRequest())
        ends_with(*at, "ProtocolError", "without having announced it")


@pytest.mark.parametrize("size_bytes", [1, 1 << 29], ids=["never arrives", "much of it never arrives"])
def test_state_that_never_arrives_is_not_waited_for_for_ever(size_bytes: int) -> None:
    with HeldGuest("memory=8MiB", incoming=True) as destination, source(destination) as at:  # type: ignore[attr-defined]
        at[1].write(m.Release(size_bytes, NO_STATE))
        ends_with(*at, "LimitExceededError", "device state")


def test_more_state_than_is_taken_is_refused_when_it_is_announced() -> None:
    with HeldGuest("memory=8MiB", incoming=True) as destination, source(destination) as at:  # type: ignore[attr-defined]
        at[1].write(m.Release(1 << 63, NO_STATE))
        ends_with(*at, "StateError", "--max-state")


def test_a_source_that_falls_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parmig.engine.destination_plan.destination_steps.SILENCE_LIMIT_NS", NS_PER_S)
    with HeldGuest("memory=8MiB", incoming=True) as destination, source(destination) as at:  # type: ignore[attr-defined]
        ends_with(*at, "LimitExceededError", "sent nothing for 1 s")
