# SPDX-License-Identifier: Apache-2.0
"""Killed at each step of the hand-over, on either side: after ``parmig recover`` the records name one owner.

The guests are synthetic, so they end with their command. What matters here is that the living side does the right
thing, and that both records agree in the end. ``tests/qemu/test_recover_qemu.py`` has guests that live on.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from parmig.engine.handover.record_store import RecordStore
from tests.integration.sides import ROOT, Command, OtherSide, until

GUEST = "memory=16MiB,rate=20MiB/s"


def parmig(records: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Run a command with ``--json``; its exit code and what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "parmig", *arguments, "--state-dir", str(records), "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, json.loads(done.stdout)


class Hosts:
    """The directories of two hosts."""

    def __init__(self, directory: Path) -> None:
        self.source, self.destination = directory / "source", directory / "destination"
        for path in (self.source, self.destination):
            path.mkdir(mode=0o700)

    def state(self, side: str) -> str:
        """What the record of *side* says; empty: there is none."""
        with RecordStore(str(getattr(self, side))) as store:
            records = [entry.record for entry in store.entries()]
        assert len(records) <= 1
        return records[0].state.value if records and records[0] is not None else ""

    def name(self, side: str) -> str:
        """Of the only session."""
        return next(getattr(self, side).iterdir()).name.partition("-")[0]

    def owner(self, side: str) -> str:
        """By ``parmig status``; a source without a record was never handed over, and a destination was never ready."""
        code, shown = parmig(getattr(self, side), "status", "--host")
        assert code == 0
        sessions = shown["sessions"]
        return sessions[0]["owner"] if sessions else {"source": "here", "destination": "there"}[side]

    def recover(self) -> None:
        """What an operator does: at the source; and if nobody answers there, at the destination first."""
        if self.state("source") == "handed-over" and self.state("destination"):
            where = ("--state-dir", str(self.destination), "--listen", "tcp://127.0.0.1:0", "--wait", "30s", "--json")
            with Command("recover", self.name("destination"), *where) as there:
                there.wait_for("until the source asks")
                uri = there.errors.partition("listening on ")[2].partition(" ")[0]
                code, shown = parmig(self.source, "recover", "--peer", uri)
                assert code == 0, shown
                assert there.end()[0] == 0, there.errors
        else:
            for side in ("source", "destination"):
                if self.state(side) not in ("", "open"):
                    code, shown = parmig(getattr(self, side), "recover", self.name(side))
                    assert code == 0, shown

    def settled(self) -> str:
        """The owner, on which both records agree."""
        owners = self.owner("source"), self.owner("destination")
        assert owners in (("here", "there"), ("there", "here")), owners
        return "source" if owners[0] == "here" else "destination"


@pytest.fixture
def hosts(tmp_path: Path) -> Hosts:
    return Hosts(tmp_path)


DESTINATION_POINTS = {
    "before write prepared": "source",
    "after write prepared": "source",
    "before send Loaded": "source",
    "after send Loaded": "source",
    "before write taken": "source",
    "after write taken": "destination",
    "before resume": "destination",
    "after resume": "destination",
    "before send Resumed": "destination",
    "after send Resumed": "destination",
}
"""Where the receiver is killed, and who owns the guest then."""


@pytest.mark.parametrize("point", DESTINATION_POINTS)
def test_a_receiver_killed_at_each_step(hosts: Hosts, point: str) -> None:
    with OtherSide("receive", guest="memory=16MiB", records=str(hosts.destination), kill_at=point) as there:
        uri = there.wait_for("uri")
        with OtherSide("send", guest=GUEST, uri=uri, send={"verify": False}, records=str(hosts.source)) as here:
            report = here.wait_for("report")
            runs = here.wait_for("runs")
        there.process.wait()
    took = DESTINATION_POINTS[point]
    assert report["status"] in ("failed", "unknown", "completed")
    if report["status"] == "failed":
        assert runs
        assert took == "source"
    else:
        assert not runs
    if report["status"] == "unknown":
        assert hosts.owner("source") == "undecided"
    hosts.recover()
    if hosts.state("destination") in ("prepared", "open"):
        hosts.recover()
    assert hosts.settled() == took


SOURCE_POINTS = {
    "before write handed-over": "source",
    "after write handed-over": "source",
    "before send HandOver": "source",
    "after send HandOver": "destination",
    "before write completed": "destination",
    "after write completed": "destination",
    "before send Goodbye": "destination",
}
"""Where the sender is killed, and who owns the guest then."""


@pytest.mark.parametrize("point", SOURCE_POINTS)
def test_a_sender_killed_at_each_step(hosts: Hosts, point: str) -> None:
    with OtherSide("receive", guest="memory=16MiB", records=str(hosts.destination)) as there:
        uri = there.wait_for("uri")
        send = {"guest": GUEST, "uri": uri, "send": {"verify": False}, "records": str(hosts.source)}
        with OtherSide("send", **send, kill_at=point) as here:
            here.process.wait()
        took = SOURCE_POINTS[point]
        if took == "source":
            until(lambda: hosts.state("destination") == "prepared", "the destination to be ready")
            if hosts.state("source") == "handed-over":
                code, shown = parmig(hosts.source, "recover")
                assert (code, shown["session"]["owner"]) == (0, "here"), shown
                report = there.wait_for("report")
                assert "asked for it afterwards" in report["error"]["message"]
                assert not there.wait_for("runs")
            else:
                # It never knew that the destination was ready, and nobody can ask: its operator decides.
                there.process.kill()
        else:
            report = there.wait_for("report")
            assert (report["status"], report["error"]) == ("completed", None)
            assert there.wait_for("runs")
            if hosts.state("source") == "handed-over":
                assert hosts.owner("source") == "undecided"
    hosts.recover()
    assert hosts.settled() == took


def test_a_source_that_loses_the_destination_after_the_hand_over_asks_and_completes(hosts: Hosts) -> None:
    """The receiver's answer to the hand-over is lost with its connection, and the guest runs there."""
    with OtherSide("receive", guest="memory=16MiB", records=str(hosts.destination), cut_at="Resumed") as there:
        uri = there.wait_for("uri")
        with OtherSide("send", guest=GUEST, uri=uri, send={"verify": False}, records=str(hosts.source)) as here:
            report = here.wait_for("report")
            assert (report["status"], report["error"]) == ("completed", None)
            assert report["downtime_ms"] > 0
            assert not here.wait_for("runs")
        assert there.wait_for("report")["status"] == "completed"
        assert there.wait_for("runs")
    assert hosts.settled() == "destination"


def test_the_guest_comes_back_if_the_hand_over_itself_is_lost(hosts: Hosts) -> None:
    with OtherSide("receive", guest="memory=16MiB", records=str(hosts.destination)) as there:
        uri = there.wait_for("uri")
        cut = {"send": {"verify": False}, "records": str(hosts.source), "cut_at": "HandOver"}
        with OtherSide("send", guest=GUEST, uri=uri, **cut) as here:
            report = here.wait_for("report")
            assert (report["status"], report["error"]["type"]) == ("failed", "PeerFailedError"), report
            assert report["source_guest"] == "running"
            assert here.wait_for("runs")
        received = there.wait_for("report")
        assert received["status"] == "failed"
        assert not there.wait_for("runs")
    assert hosts.settled() == "source"


def test_a_wish_that_only_a_person_may_have_is_done_with_a_warning(hosts: Hosts) -> None:
    with OtherSide(
        "receive", guest="memory=16MiB", records=str(hosts.destination), kill_at="after send Loaded"
    ) as there:
        uri = there.wait_for("uri")
        with OtherSide("send", guest=GUEST, uri=uri, send={"verify": False}, records=str(hosts.source)) as here:
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
