# SPDX-License-Identifier: Apache-2.0
"""What stands on a real terminal when a command is over: its words, and nothing of the drawing."""

from __future__ import annotations

import signal
import subprocess

import pytest

from tests.cli.terminal import on_terminal, screen

QUICK = ("demo", "--memory", "32MiB", "--workers", "3")
SLOW = ("demo", "--memory", "1536MiB", "--dirty-rate", "1GiB/s", "--workers", "3")


def nothing_of_the_drawing(lines: list[str]) -> None:
    for line in lines:
        assert "━" not in line, lines
        assert not line.startswith(("workers ", "setup", "active", "pre-switch", "device", "hand-over")), lines


def test_the_screen_of_these_tests_draws_over() -> None:
    assert screen("one\r\ntwo\r\x1b[2K\x1b[1A\x1b[2Kthree\r\n", 80, 24) == ["three", ""]
    assert screen("abcdef", 3, 24) == ["abc", "def"]
    assert screen("a\r\nb\r\nc\x1b[5A\rX", 80, 2) == ["a", "X", "c"]


@pytest.mark.parametrize(("columns", "rows"), [(120, 30), (80, 24), (40, 10), (30, 4)])
def test_a_demo_leaves_its_words_and_nothing_of_the_drawing(columns: int, rows: int) -> None:
    code, lines = on_terminal(*QUICK, columns=columns, rows=rows)
    assert code == 0
    nothing_of_the_drawing(lines)
    assert "connecting to" in lines[0]
    assert "status       completed" in lines


@pytest.mark.parametrize("signals", [1, 2])
def test_a_cancelled_demo_leaves_its_words_and_nothing_of_the_drawing(signals: int) -> None:
    sent = 0

    def interrupt(output: str, process: subprocess.Popen[bytes]) -> None:
        nonlocal sent
        if sent < signals and "round 1" in output.rpartition("parmig: ")[2]:
            sent += 1
            process.send_signal(signal.SIGINT)

    code, lines = on_terminal(*SLOW, columns=100, rows=24, seen=interrupt)
    assert code == 130
    nothing_of_the_drawing(lines)
    told = [line for line in lines if line]
    assert told[1] == "parmig: cancelling"
    assert "status       cancelled" in told
