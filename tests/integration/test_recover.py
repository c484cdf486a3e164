# SPDX-License-Identifier: Apache-2.0
"""Killed at each step of the hand-over, on either side: after ``parmig recover`` the records name one owner.

The guests are synthetic, so they end with their command. What matters here is that the living side does the right
thing, and that both records agree in the end. ``tests/qemu/test_recover_qemu.py`` has guests that live on.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.integration.handovers import (
    DESTINATION_POINTS,
    SOURCE_POINTS,
    Hosts,
    kill_receiver,
    kill_sender,
    parmig,
)


@pytest.fixture
def hosts(tmp_path: Path) -> Hosts:
    return Hosts(tmp_path)


@pytest.mark.parametrize("point", DESTINATION_POINTS)
def test_a_receiver_killed_at_each_step(hosts: Hosts, point: str) -> None:
    kill_receiver(hosts, point)


@pytest.mark.parametrize("point", SOURCE_POINTS)
def test_a_sender_killed_at_each_step(hosts: Hosts, point: str) -> None:
    kill_sender(hosts, point)


def test_a_source_that_loses_the_destination_after_the_hand_over_asks_and_completes(hosts: Hosts) -> None:
    """The receiver's answer to the hand-over is lost with its connection, and the guest runs there."""
    with hosts.receive(cut_at="Resumed", brief=False) as there:
        with hosts.send(there) as here:
            report = here.wait_for("report")
            assert (report["status"], report["error"]) == ("completed", None)
            assert report["downtime_ms"] > 0
            assert not here.wait_for("runs")
        assert there.wait_for("report")["status"] == "completed"
        assert there.wait_for("runs")
    assert hosts.settled() == "destination"


def test_the_guest_comes_back_if_the_hand_over_itself_is_lost(hosts: Hosts) -> None:
    with hosts.receive() as there:
        with hosts.send(there, cut_at="HandOver") as here:
            report = here.wait_for("report")
            assert (report["status"], report["error"]["type"]) == ("failed", "PeerFailedError"), report
            assert report["source_guest"] == "running"
            assert here.wait_for("runs")
        received = there.wait_for("report")
        assert received["status"] == "failed"
        assert not there.wait_for("runs")
    assert hosts.settled() == "source"


def test_a_wish_that_only_a_person_may_have_is_done_with_a_warning(hosts: Hosts) -> None:
    with hosts.receive(kill_at="after send Loaded") as there, hosts.send(there) as here:
        assert here.wait_for("report")["status"] in ("unknown", "failed")
    if hosts.state("source") == "handed-over":
        code, shown = parmig(hosts.source, "recover", "--wait", "1s")
        assert (code, shown["error"]["type"]) == (4, "OutcomeUnknownError")
        assert "--decide here" in shown["error"]["message"]
        code, shown = parmig(hosts.source, "recover", "--decide", "here")
        assert (code, shown["session"]["owner"]) == (0, "here")


def test_what_is_not_on_record_cannot_be_recovered(hosts: Hosts) -> None:
    for arguments in ([], ["0123abcd"]):
        code, shown = parmig(hosts.source, "recover", *arguments)
        assert (code, shown["error"]["type"]) == (2, "UsageError")
    assert os.listdir(hosts.source) == []


def test_a_state_directory_that_cannot_be_used_stops_either_command_before_it_begins(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    guest = ("--guest", "synthetic:memory=8MiB")
    for command in (["receive", "--listen", "tcp://127.0.0.1:0"], ["send", "tcp://127.0.0.1:1"]):
        code, report = parmig(tmp_path / "file", *command, *guest)
        assert (code, report["error"]["type"]) == (3, "HostRefusedError")
        assert "--state-dir" in report["error"]["message"]
