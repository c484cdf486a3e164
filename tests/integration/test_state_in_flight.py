# SPDX-License-Identifier: Apache-2.0
"""Device state that is damaged on the way is never loaded, and state that comes after its release is waited for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from parmig.config import SendConfig
from parmig.engine.channels.state_channel import StateSender
from parmig.engine.destination_plan.destination_steps import Step
from parmig.engine.messages import peer_messages
from parmig.engine.source.send_run import SendRun
from tests.integration.sides import HeldGuest, Migration, guests, never_ran, runs_on, until
from tests.integration.test_faults import failed
from tests.integration.test_migration import arrived

Message = Sequence[bytes]


class Wire:
    """The transport of the state channel, with *through* between: what it returns goes on at once."""

    def __init__(self, transport: Any, through: Callable[[Message], list[Message]]) -> None:
        self._transport = transport
        self._through = through

    def write(self, message: Message, **options: Any) -> None:
        for one in self._through(message):
            self._transport.write(one, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def put_between(monkeypatch: pytest.MonkeyPatch, through: Callable[[Message], list[Message]]) -> list[Any]:
    """Every StateSender from now on sends through *through*; returns the real transports as they come."""
    begin = StateSender.__init__
    transports: list[Any] = []

    def between(self: StateSender, transport: Any, *arguments: Any, **options: Any) -> None:
        transports.append(transport)
        begin(self, Wire(transport, through), *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(StateSender, "__init__", between)
    return transports


@pytest.mark.parametrize("at", [0, -1])
def test_one_changed_byte_of_device_state_is_noticed_and_the_guest_goes_on_at_the_source(
    monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    damaged: list[bytes] = []

    def damage(message: Message) -> list[Message]:
        if bytes(message[0]) != b"D" or damaged:
            return [message]
        chunk = bytearray(message[1])
        chunk[at] ^= 0x10
        damaged.append(bytes(chunk))
        return [[message[0], bytes(chunk)]]

    put_between(monkeypatch, damage)
    with guests() as (source, destination):
        with Migration(source, destination) as migration:
            failed(migration.received(), "StateError", "device state arrived damaged")
            failed(migration.sent(), "PeerFailedError", "device state arrived damaged")
        assert damaged
        never_ran(destination)
        runs_on(source)


def test_a_release_that_overtakes_the_last_state_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[Message] = []

    def hold_the_last(message: Message) -> list[Message]:
        if bytes(message[0]) != b"D":
            return [message]
        held.append(message)
        return [held.pop(0)] if len(held) > 1 else []

    transports = put_between(monkeypatch, hold_the_last)
    with guests() as (source, destination):
        migration = Migration(source, destination, SendConfig(workers=2, verify=True))
        say, seen = SendRun._say, []

        def release_first(self: SendRun, message: peer_messages.ControlMessage) -> None:
            say(self, message)
            if isinstance(message, peer_messages.Release):
                receiver = migration.receiver
                assert receiver is not None
                session = receiver._session
                assert session is not None
                until(lambda: session.plan.status.value == "device", "the release to arrive")
                assert session.plan.step is Step.HOLDING
                assert isinstance(destination, HeldGuest)
                seen.append(len(held))
                transports[0].write(held.pop())

        monkeypatch.setattr(SendRun, "_say", release_first)
        with migration:
            report = migration.sent()
            assert migration.received().error is None
        assert seen == [1], "one message of device state came after the release"
        arrived(source, destination, report)
