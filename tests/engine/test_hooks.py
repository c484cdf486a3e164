# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import threading
from pathlib import Path

import psutil
import pytest

from parmig.engine import hooks
from parmig.engine.hooks import BEFORE_PAUSE, Hooks
from parmig.errors import HookError
from tests.support import PATIENCE_S, wait_until


def program(tmp_path: Path, text: str) -> str:
    path = tmp_path / "program"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_a_program_gets_the_moment_and_the_facts(tmp_path: Path) -> None:
    woken = threading.Event()
    runner = Hooks({BEFORE_PAUSE: program(tmp_path, f'(echo "$PARMIG_HOOK"; cat) > {tmp_path}/out')}, woken.set)
    runner.start(BEFORE_PAUSE, b'{"round": 3}')
    assert woken.wait(PATIENCE_S)
    assert list(runner.ended()) == [(BEFORE_PAUSE, None)]
    runner.close()
    assert (tmp_path / "out").read_text() == 'before-pause\n{"round": 3}'


@pytest.mark.parametrize(
    ("text", "words"), [("exit 3", "ended with code 3"), ("kill -TERM $$", "was ended by SIGTERM")]
)
def test_a_program_that_fails_is_named_with_the_reason(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(HookError, match=words):
        Hooks({BEFORE_PAUSE: program(tmp_path, text)}, lambda: None).run(BEFORE_PAUSE, b"x" * 1_000_000)


def test_a_program_that_cannot_be_started_is_named_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(HookError, match=r"cannot be started: No such file"):
        Hooks({BEFORE_PAUSE: str(tmp_path / "nothing")}, lambda: None).run(BEFORE_PAUSE, b"")


def test_a_program_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "LIMIT_S", 0.2)
    with pytest.raises(HookError, match=r"did not end within 0.2 s"):
        Hooks({BEFORE_PAUSE: program(tmp_path, "sleep 60")}, lambda: None).run(BEFORE_PAUSE, b"")


def test_a_program_that_runs_at_the_end_is_ended_with_its_children(tmp_path: Path) -> None:
    runner = Hooks({BEFORE_PAUSE: program(tmp_path, f"sleep 60 & echo $! > {tmp_path}/pid; wait")}, lambda: None)
    runner.start(BEFORE_PAUSE, b"")
    pid = tmp_path / "pid"
    while not (pid.exists() and pid.read_text().endswith("\n")):
        os.sched_yield()
    runner.close()
    wait_until(lambda: is_over(int(pid.read_text())), "the program's child has ended")


def is_over(pid: int) -> bool:
    """Whether a process has ended. Its parent may not have asked for its exit code."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
