# SPDX-License-Identifier: Apache-2.0
"""Whole migrations with keys: what is on the wire, what the reports say, and what goes on after a loss."""

from __future__ import annotations

import os
from contextlib import closing

import pytest

from parmig.config import ReceiveConfig, SendConfig
from parmig.engine.handover.questions import AnswerPort, ask_for_guest
from parmig.errors import PeerNotTrustedError
from parmig.transport.transport import Endpoint
from parmig.units import MIB
from parmig.values import Path
from tests.integration.sides import HeldGuest, Migration, guests
from tests.integration.test_outages import control_port, cut, cut_port, state_port
from tests.keys import keys, security
from tests.ports import free_ports
from tests.recording_relay import RecordingRelay
from tests.support import PATIENCE_NS, while_pumping

RELAY = "127.0.0.2"
TOKEN = bytes(range(16))


def marks(guest: HeldGuest) -> list[bytes]:
    """Some bytes of each of many pages of the guest, whose memory is random."""
    (block,) = guest.memory()
    return [os.pread(block.fd, 64, at) for at in range(MIB, 15 * MIB, MIB)]


@pytest.mark.parametrize("secured", [True, False])
def test_no_byte_of_the_guest_is_in_clear_on_the_wire(secured: bool) -> None:
    """All channels but device state go by the relay. Without keys they show the guest, so it would be noticed."""
    with_keys = {"keys": str(keys())} if secured else {}
    first, last = free_ports(4)
    receive = ReceiveConfig(listen=f"tcp://127.0.0.1:{first}", data_ports=(first + 1, last), **with_keys)  # type: ignore[arg-type]
    send = SendConfig(workers=2, verify=True, paths=(Path(RELAY),), **with_keys)  # type: ignore[arg-type]
    with (
        closing(RecordingRelay(RELAY, "127.0.0.1", range(first, last + 1))) as relay,
        guests("memory=16MiB,rate=0") as (source, destination),
        Migration(None, destination, receive=receive) as there,
        Migration(source, None, send, uri=f"tcp://{RELAY}:{first}") as here,
    ):
        looked_for = marks(source)
        sent, received = here.sent(), there.received()
    assert (sent.status, sent.verified, received.status) == ("completed", True, "completed")
    assert len(relay.seen) > 16 * MIB
    assert [mark in relay.seen for mark in looked_for] == [not secured] * len(looked_for)
    assert (b"synthetic" in relay.seen) is not secured
    for report in (sent, received):
        assert report.insecure is False
        assert (report.encryption is not None) is secured
        if report.encryption is not None:
            assert (report.encryption.kind, report.encryption.version) == ("tls", "TLSv1.3")
            assert report.encryption.peer[0] == "here.test"


def test_channels_with_keys_go_on_after_they_were_cut() -> None:
    secured = {"keys": str(keys())}
    config = SendConfig(workers=2, verify=True, max_bandwidth_bytes_per_s=40 * MIB, switchover="manual", **secured)  # type: ignore[arg-type]
    receive = ReceiveConfig(listen="tcp://127.0.0.1:0", **secured)  # type: ignore[arg-type]
    with (
        guests("memory=32MiB,rate=20MiB/s") as (source, destination),
        Migration(source, destination, config, receive=receive) as at,
    ):
        at.at_round(1)
        for pid in at.send_workers():
            assert cut(pid)
        cut_port(control_port(at))
        cut_port(state_port(at))
        at.switch_over("worker 0", "worker 1", "control", "state")
        sent, received = at.sent(), at.received()
    assert (sent.status, sent.verified, received.status) == ("completed", True, "completed")
    assert {"worker 0", "worker 1", "control", "state"} <= {outage.channel for outage in sent.outages}


def test_a_source_asks_for_its_guest_with_keys_only() -> None:
    """The question after a crash crosses the network too."""
    here = Endpoint("tcp", "127.0.0.1", 0)
    with closing(AnswerPort(here, TOKEN, security())) as port:

        def answer() -> None:
            if port.heard():
                port.answer("there", 5)

        def ask() -> None:
            assert ask_for_guest(port.endpoint, TOKEN, PATIENCE_NS, security()).owner == "there"
            with pytest.raises(PeerNotTrustedError):
                ask_for_guest(port.endpoint, TOKEN, PATIENCE_NS)

        while_pumping(ask, answer)


def test_beyond_loopback_without_keys_every_line_and_the_report_say_so() -> None:
    receive = ReceiveConfig(listen="tcp://0.0.0.0:0", insecure=True)
    with (
        guests("memory=16MiB,rate=0") as (source, destination),
        Migration(source, destination, receive=receive) as at,
    ):
        sent, received = at.sent(), at.received()
    assert (sent.status, received.status) == ("completed", "completed")
    assert (received.insecure, received.encryption) == (True, None)
    assert all(progress.insecure for progress in at.received_progress)
    assert (sent.insecure, any(progress.insecure for progress in at.seen)) == (True, True)
