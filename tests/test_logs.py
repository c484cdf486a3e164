# SPDX-License-Identifier: Apache-2.0
"""Log lines of workers are few and short, and hold up nobody; the log ends without a trace."""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
from pathlib import Path

import pytest

from parmig import logs
from parmig.engine.messages import worker_messages
from parmig.engine.messages.worker_messages import MAX_LOG_TEXT, WorkerLog
from parmig.errors import UsageError
from workers.bootstrap import Inbox
from workers.pipe_log import BURST_LINES, LINES_PER_S, PipeLog


class Clock:
    """Seconds that pass when told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Receiver:
    """Takes lines, or has no room."""

    def __init__(self) -> None:
        self.lines: list[WorkerLog] = []
        self.has_room = True

    def __call__(self, line: WorkerLog) -> bool:
        if self.has_room:
            self.lines.append(line)
        return self.has_room


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("workers.send", logging.INFO, "", 0, text, None, None)


def test_a_worker_sends_few_lines_and_says_how_many_are_missing() -> None:
    clock, receiver = Clock(), Receiver()
    log = PipeLog(receiver, clock)
    for number in range(BURST_LINES + 10):
        log.emit(record(f"line {number}"))
    assert len(receiver.lines) == BURST_LINES
    clock.now += 1 / LINES_PER_S
    log.emit(record("later"))
    log.emit(record("too soon"))
    assert receiver.lines[BURST_LINES:] == [
        WorkerLog(logging.INFO, "workers.send", "later (10 lines before this one were dropped)")
    ]


def test_a_line_is_dropped_where_the_pipe_has_no_room() -> None:
    receiver = Receiver()
    log = PipeLog(receiver, Clock())
    receiver.has_room = False
    log.emit(record("nobody reads"))
    receiver.has_room = True
    log.emit(record("x" * 10 * MAX_LOG_TEXT))
    log.emit(record("short"))
    assert [len(line.text) for line in receiver.lines] == [MAX_LOG_TEXT, len("short")]


@pytest.mark.timeout(20)
def test_a_worker_whose_pipe_is_full_is_not_held_up() -> None:
    ours, theirs = multiprocessing.Pipe()
    with ours, theirs:
        inbox = Inbox(theirs)
        line = WorkerLog(logging.INFO, "workers.send", "x" * MAX_LOG_TEXT)
        sent = 0
        while inbox.log(line):
            sent += 1
        assert sent > 10
        assert worker_messages.event_decoder.decode(ours.recv_bytes()) == line


def test_the_log_leaves_logging_as_it_was(tmp_path: Path) -> None:
    root, parmig = logging.getLogger(), logging.getLogger("parmig")
    before = (list(root.handlers), parmig.level, os.listdir("/proc/self/fd"))
    path = tmp_path / "log"
    with logs.logging_to(str(path), 0):
        logs.begin_side("source")
        logs.note_session(b"secret token....")
        logging.getLogger("parmig.test").info("one %s", "line")
        logging.getLogger("parmig.test").debug("not this one")
        logs.relay(3, "workers.send", logging.INFO, "100 % of it")
        logs.begin_side("-")
    assert (list(root.handlers), parmig.level, os.listdir("/proc/self/fd")) == before
    first, second = path.read_text().splitlines()
    assert re.search(r"Z INFO source worker=- session=[0-9a-f]{8} parmig.test: one line$", first)
    assert " worker=3 " in second
    assert second.endswith("workers.send: 100 % of it")
    assert "secret" not in first


def test_a_log_file_must_be_a_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"{tmp_path} cannot be written"), logs.logging_to(str(tmp_path), 1):
        raise AssertionError


def test_text_of_a_peer_can_neither_steer_a_terminal_nor_forge_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said, shown = "\x1b]0;title\x07\n2026-01-01 INFO forged", "\\x1b]0;title\\x07\\n2026-01-01 INFO forged"
    path = tmp_path / "log"
    with logs.logging_to(str(path), 1):
        logging.getLogger("parmig.engine.channels.control").info("the peer sent %s", said)
        logs.relay(0, "workers.send", logging.INFO, said)
    for text in (path.read_text(), capsys.readouterr().err):
        assert text.count("\n") == 2
        assert text.count(shown) == 2


def test_a_warning_cannot_steer_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    logs.show_warnings()
    logging.getLogger("parmig.guests.qemu").warning("QEMU said %s", "\x1b[2J")
    assert capsys.readouterr().err == "parmig: QEMU said \\x1b[2J\n"
