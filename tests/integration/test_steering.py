# SPDX-License-Identifier: Apache-2.0
"""A running migration is asked, steered and cancelled by commands."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.sides import LIMIT_S, LISTEN, Command, until

GUEST = "synthetic:memory=64MiB,rate=200MiB/s"


def ask(*arguments: str, code: int = 0) -> tuple[str, str]:
    """What a command printed on standard output and standard error."""
    command = [sys.executable, "-m", "parmig", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT_S)
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


def status(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(ask("status", name, "--json")[0])
    return found


@pytest.fixture
def moving() -> Iterator[tuple[Command, Command]]:
    """Both commands of a migration that would take minutes, in its first round: destination, source."""
    with Command("receive", "--listen", LISTEN, "--guest", "synthetic:memory=64MiB", "--json", "--name", "there") as to:
        slowly = ("--max-bandwidth", "256KiB/s", "--workers", "2", "--json", "--name", "here")
        with Command("send", to.uri(), "--guest", GUEST, *slowly) as source:
            source.wait_for("active, round 1")
            yield to, source


def test_a_migration_is_seen_steered_and_finished(moving: tuple[Command, Command]) -> None:
    there, here = moving
    expected = [["here", "active", "1"], ["there", "active", "1"]]
    until(lambda: [line.split()[:3] for line in ask("status")[0].splitlines()[1:]] == expected, "both in round 1")
    before = until(lambda: len((now := status("here"))["per_worker"]) == 2 and now, "figures of both workers")
    assert (before["command"], before["limits"]["max_bandwidth_bytes_per_s"]) == ("send", 256 << 10)
    assert before["ram"]["total_bytes"] == 64 << 20
    until(lambda: status("here")["guest_bytes_per_s"], "the guest's own speed")
    assert "bandwidth limit    256 KiB/s" in ask("status", "here")[0]
    assert "--switchover-timeout" in ask("set", "here", "--downtime-limit", "2m", code=2)[1]
    ask("set", "here", "--max-bandwidth", "0", "--switchover", "now")
    code, report = here.end()
    assert (code, report["status"]) == (0, "completed"), here.errors
    (change,) = report["changes"]
    assert change["change"] == {"max_bandwidth_bytes_per_s": 0, "switchover": "now"}
    assert change["at_ms"] > 0
    assert [one["paused"] for one in report["rounds"]] == [False, True, True]
    assert there.end()[0] == 0, there.errors


def test_a_migration_is_watched_and_cancelled(moving: tuple[Command, Command]) -> None:
    there, here = moving
    with Command("watch", "here", "--json") as watcher:
        watcher.wait_for("active, round 1")
        ask("cancel", "here")
        code, report = here.end()
        assert (code, report["status"]) == (130, "cancelled"), here.errors
        code, seen = watcher.end()
        assert (code, seen["name"], seen["round"]) == (0, "here", 1)
    assert until(lambda: "no command" in ask("status", "here", code=1)[1], "its socket to go")
    assert there.end()[0] != 0


def test_a_receiver_that_waits_is_cancelled() -> None:
    with Command("receive", "--listen", LISTEN, "--guest", "synthetic:memory=16MiB", "--json") as there:
        there.uri()
        name = f"receive-{there.process.pid}"
        assert status(name)["status"] == "setup"
        ask("cancel", name)
        assert there.end()[0] == 130


def test_events_and_metrics_tell_a_migration_from_begin_to_end(tmp_path: Path) -> None:
    events, metrics = tmp_path / "events", tmp_path / "metrics.prom"
    with Command("receive", "--listen", LISTEN, "--guest", "synthetic:memory=16MiB", "--json") as there:
        more = ("--json", "--events", str(events), "--metrics-file", str(metrics), "--switchover", "predicted")
        writing = ("--guest", "synthetic:memory=16MiB,rate=5MiB/s", "--max-bandwidth", "40MiB/s")
        with Command("send", there.uri(), *writing, *more) as here:
            code, report = here.end()
            assert code == 0, here.errors
        assert there.end()[0] == 0, there.errors
    notes = [json.loads(line) for line in events.read_text().splitlines()]
    statuses = [note["status"] for note in notes if note["event"] == "status"]
    assert statuses == ["active", "pre-switchover", "device", "hand-over", "completed"]
    assert [note["round"] for note in notes if note["event"] == "round"] == report["rounds"]
    outlooks = [note for note in notes if note["event"] == "outlook"]
    assert outlooks[0]["converges"]
    assert outlooks[0]["time_left_ms"] > 0
    assert (notes[0]["event"], notes[-1]["event"], notes[-1]["report"]) == ("begin", "end", report)
    assert sum(note.get("took_ms", 0) for note in notes) == pytest.approx(report["downtime_ms"])
    assert 'parmig_status{status="completed"} 1.0' in metrics.read_text()


def hook(tmp_path: Path, name: str, text: str) -> str:
    path = tmp_path / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_a_held_migration_runs_its_programs_and_pauses_on_the_users_word(tmp_path: Path) -> None:
    programs = [
        (f"--{when}", hook(tmp_path, when, f"cat > {tmp_path}/{when}.json"))
        for when in ("before-pause", "before-hand-over", "after-end")
    ]
    more = ("--json", "--name", "held", "--switchover", "manual", *(word for pair in programs for word in pair))
    with Command("receive", "--listen", LISTEN, "--guest", "synthetic:memory=16MiB", "--json") as there:
        with Command("send", there.uri(), "--guest", "synthetic:memory=16MiB,rate=1MiB/s", *more) as here:
            here.wait_for("active, round 1")
            until(lambda: status("held")["step"].startswith("waiting for parmig set"), "the migration to be held")
            ask("set", "held", "--switchover", "now")
            code, report = here.end()
            assert (code, report["status"]) == (0, "completed"), here.errors
        assert there.end()[0] == 0, there.errors
    facts = {when: json.loads((tmp_path / f"{when}.json").read_text()) for when in ("before-pause", "before-hand-over")}
    assert [one["name"] for one in facts.values()] == ["held", "held"]
    assert json.loads((tmp_path / "after-end.json").read_text()) == report
    assert report["downtime_phases_ms"]["hook"] > 0
    assert sum(report["downtime_phases_ms"].values()) == pytest.approx(report["downtime_ms"])


@pytest.mark.parametrize("when", ["before-pause", "before-hand-over"])
def test_a_program_that_fails_leaves_the_guest_on_the_source(tmp_path: Path, when: str) -> None:
    with Command("receive", "--listen", LISTEN, "--guest", "synthetic:memory=16MiB", "--json") as there:
        fails = (f"--{when}", hook(tmp_path, when, "echo the reason; exit 7"))
        with Command("send", there.uri(), "--guest", "synthetic:memory=16MiB", "--json", *fails) as here:
            code, report = here.end()
            assert (code, report["status"], report["source_guest"]) == (1, "failed", "running"), here.errors
            assert (report["error"]["type"], "ended with code 7" in report["error"]["message"]) == ("HookError", True)
            assert "the reason" in here.errors
        assert there.end()[0] == 1, there.errors
