# SPDX-License-Identifier: Apache-2.0
"""A reader of both logs finds why a migration failed, in which session, and which worker it was."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

from tests.integration.sides import Command, until

LINE = re.compile(
    r"(?P<time>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z) (?P<level>[A-Z]+) (?P<side>source|destination|-) "
    r"worker=(?P<worker>\d+|-) session=(?P<session>[0-9a-f]{8}|-) (?P<logger>[\w.]+): (?P<text>.+)"
)
SLOW = ("--max-bandwidth", "8MiB/s", "--workers", "2")


class Log:
    """The lines of a log file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def lines(self) -> list[dict[str, str]]:
        """All whole lines so far, in parts; each has all parts."""
        text = self.path.read_text() if self.path.exists() else ""
        found = [LINE.fullmatch(line) for line in text[: text.rfind("\n") + 1].splitlines()]
        assert None not in found
        return [one.groupdict() for one in found if one is not None]

    def find(self, pattern: str, **parts: str) -> list[dict[str, str]]:
        """The lines whose text matches *pattern*, and whose other parts are these."""
        return [
            line
            for line in self.lines()
            if re.search(pattern, line["text"]) and all(line[part] == value for part, value in parts.items())
        ]


DIES = ("--reconnect-timeout", "0s")
"""Nobody replaces a worker that dies."""


def test_both_logs_show_why_a_migration_failed(tmp_path: Path) -> None:
    here, there = Log(tmp_path / "source.log"), Log(tmp_path / "destination.log")
    options = "synthetic:memory=32MiB"
    receive = ("receive", "--guest", options, "--listen", "zmq+tcp://127.0.0.1:0", "--json")
    with Command(*receive, "--log-file", str(there.path)) as receiver:
        send = ("send", receiver.uri(), "--guest", f"{options},rate=200MiB/s", "--json", *SLOW, *DIES)
        with Command(*send, "--log-file", str(here.path)) as sender:
            until(lambda: bool(here.find("^next: sending")), "round 1 in the log of the source")
            started = here.find(r"^send worker 1 started as process \d+$")[0]
            os.kill(int(started["text"].split()[-1]), signal.SIGKILL)
            code, report = sender.end()
            receiver.end()
    assert code == 1
    session = started["session"]
    assert session != "-"

    cause = here.find(
        "^send worker 1 failed: WorkerError: .*killed by signal 9", level="ERROR", worker="1", session=session
    )
    assert len(cause) == 1
    assert here.find("status active -> failed", session=session, side="source")
    assert here.find("^ended: failed, WorkerError", level="ERROR", session=session)
    assert here.find("^guest: resume_source took", session=session)
    assert here.find("^connected to tcp", worker="0", session=session)  # a line of a worker itself
    assert here.find("^tear-down", session=session)

    assert there.find("^the peer sent Failure: WorkerError .*send worker 1 .*killed by signal 9", session=session)
    assert there.find("^ended: failed, PeerFailedError", level="ERROR", session=session, side="destination")
    assert there.find("^its send worker connected", worker="1", session=session)
    assert there.find("^tear-down: the copy here never runs", session=session)

    assert "worker=" not in sender.errors  # nobody asked for the log on standard error
    assert sender.errors.count(report["error"]["message"]) == 1


def test_the_log_is_on_standard_error_when_asked_for(tmp_path: Path) -> None:
    with Command("demo", "--memory", "16MiB", "--workers", "1", "--json", "--verbose", "-v") as demo:
        code, report = demo.end()
    assert code == 0
    assert json.dumps(report)  # nothing but the report is on standard output
    lines = [line for line in map(LINE.fullmatch, demo.errors.splitlines()) if line is not None]
    levels = {line["level"] for line in lines}
    assert {"INFO", "DEBUG"} <= levels
    sides = {line["side"] for line in lines if line["session"] != "-"}
    assert sides == {"source", "destination"}
    assert len({line["session"] for line in lines} - {"-"}) == 1
    assert any(
        re.match(r"round 1 ended: 16 MiB sent in .* dirty now; a pause would take", line["text"]) for line in lines
    )
    assert any(line["text"].startswith("decided PAUSE") for line in lines)


def test_a_log_file_that_cannot_be_written_is_refused_before_anything_is_touched(tmp_path: Path) -> None:
    with Command("demo", "--memory", "16MiB", "--log-file", str(tmp_path)) as demo:
        code, _ = demo.end()
    assert code == 2
    assert f"the log file {tmp_path} cannot be written: Is a directory; give another --log-file" in demo.errors
