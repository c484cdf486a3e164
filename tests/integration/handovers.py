# SPDX-License-Identifier: Apache-2.0
"""Two hosts whose hand-over is broken at a step: the sides, the records, and what an operator does afterwards.

Tests kill each side at each step once; ``python -m tools.torture_handover`` does it as often as you like.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from parmig.engine.records.record_store import RecordStore
from tests.integration.sides import LIMIT_S, ROOT, Command, OtherSide, until

GUEST = "memory=16MiB,rate=20MiB/s"


def parmig(records: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Run a command with ``--json``; its exit code and what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "parmig", *arguments, "--state-dir", str(records), "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    return done.returncode, json.loads(done.stdout)


class Hosts:
    """The directories of two hosts."""

    def __init__(self, directory: Path) -> None:
        self.source, self.destination = directory / "source", directory / "destination"
        for path in (self.source, self.destination):
            path.mkdir(mode=0o700)

    def receive(self, **options: Any) -> OtherSide:
        """The destination's side, with options of :func:`tests.integration.sides.main`."""
        brief = {"brief": True} | options
        return OtherSide("receive", guest="memory=16MiB", records=str(self.destination), **brief)

    def send(self, there: OtherSide, **options: Any) -> OtherSide:
        """The source's side, which sends to *there*."""
        uri, send = there.wait_for("uri"), {"verify": False}
        return OtherSide("send", guest=GUEST, uri=uri, send=send, brief=True, records=str(self.source), **options)

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


def kill_receiver(hosts: Hosts, point: str) -> str:
    """Kill the receiver at *point*, and recover.

    Returns:
        the owner, which is the one of DESTINATION_POINTS.

    Raises:
        AssertionError: a report, a record or the guest's state is wrong.
    """
    with hosts.receive(kill_at=point) as there:
        with hosts.send(there) as here:
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
    return took


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


def kill_sender(hosts: Hosts, point: str) -> str:
    """As :func:`kill_receiver`, with the sender and SOURCE_POINTS."""
    with hosts.receive() as there:
        with hosts.send(there, kill_at=point) as here:
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
    return took
