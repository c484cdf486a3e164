# SPDX-License-Identifier: Apache-2.0
"""Connections of a running migration end, and it goes on: nothing is lost, and nothing is sent twice."""

from __future__ import annotations

import contextlib
import os
import socket

import psutil
import pytest

from parmig.config import SendConfig
from parmig.engine.reporting.report import Report
from parmig.linux import ptrace
from parmig.transport.transport import parse_uri
from parmig.units import MIB
from tests.integration.sides import Migration, guests

SLOW = {"max_bandwidth_bytes_per_s": 40 * MIB, "switchover": "manual"}
"""Runs until the test lets it pause; so what it does happens while the guest runs."""
QUICK = "memory=32MiB,rate=20MiB/s"

both_transports = pytest.mark.parametrize("transport", ["tcp", "zmq"])


def connections(pid: int) -> list[psutil._common.sconn]:
    """The TCP connections of a process."""
    return [one for one in psutil.Process(pid).net_connections("tcp") if one.status == psutil.CONN_ESTABLISHED]


def cut(pid: int) -> int:
    """End all TCP connections of a process, behind its back; returns how many there were."""
    pidfd = os.pidfd_open(pid)
    ended = 0
    try:
        for connection in connections(pid):
            with contextlib.suppress(OSError):
                with socket.socket(fileno=ptrace.pidfd_getfd(pidfd, connection.fd)) as sock:
                    sock.shutdown(socket.SHUT_RDWR)
                ended += 1
    finally:
        os.close(pidfd)
    return ended


def cut_port(port: int) -> None:
    """End the connection to this port of a receiver in this process, at both ends."""
    for connection in connections(os.getpid()):
        if connection.laddr.port == port:
            with socket.socket(fileno=os.dup(connection.fd)) as sock:
                sock.shutdown(socket.SHUT_RDWR)


def control_port(at: Migration) -> int:
    return parse_uri(at.uri).port


def state_port(at: Migration) -> int:
    assert at.receiver is not None
    session = at.receiver._session
    assert session is not None
    return session._listeners._state_endpoint.port


def outages(report: Report, *channels: str) -> None:
    """The report has outages of these channels, and all have ended."""
    assert {outage.channel for outage in report.outages} == set(channels), report.outages
    assert all(outage.ended and outage.reason for outage in report.outages), report.outages


def all_arrived(sent: Report, received: Report) -> None:
    """Both memories are the same, and each page was placed as often as it was sent."""
    assert (sent.status, sent.error) == ("completed", None)
    assert (received.status, received.error) == ("completed", None)
    assert sent.verified
    assert (received.ram.sent_pages, received.ram.zero_pages) == (sent.ram.sent_pages, sent.ram.zero_pages)


@both_transports
@pytest.mark.parametrize("side", ["send", "receive"])
def test_a_data_channel_goes_on_after_its_connection_was_cut(transport: str, side: str) -> None:
    config = SendConfig(workers=2, verify=True, transport=transport, **SLOW)
    with guests(QUICK) as (source, destination), Migration(source, destination, config) as at:
        at.at_round(1)
        victim = (at.send_workers() if side == "send" else at.receive_workers())[1]
        assert cut(victim) == 1
        at.switch_over("worker 1")
        sent, received = at.sent(), at.received()
        all_arrived(sent, received)
        outages(sent, "worker 1")
        outages(received, "worker 1")
        assert any("worker 1" in progress.interrupted or "worker 1" in progress.message for progress in at.seen)


@pytest.mark.parametrize("channel", ["control", "state"])
def test_control_and_state_go_on_after_their_connection_was_cut(channel: str) -> None:
    config = SendConfig(workers=2, verify=True, **SLOW)
    with guests(QUICK) as (source, destination), Migration(source, destination, config) as at:
        at.at_round(1)
        cut_port(control_port(at) if channel == "control" else state_port(at))
        at.switch_over(channel)
        sent, received = at.sent(), at.received()
        all_arrived(sent, received)
        outages(sent, channel)
        outages(received, channel)
