# SPDX-License-Identifier: Apache-2.0
"""A pseudo terminal with a program on it, and what a person sees there in the end."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def screen(text: str, columns: int, rows: int) -> list[str]:
    """All lines after *text*, those that scrolled out too; knows what the display uses, and refuses anything else."""
    lines, line, column = [""], 0, 0
    for token in re.findall(r"\x1b\[[?0-9;]*[A-Za-z]|.", text, re.S):
        if token == "\r":
            column = 0
        elif token == "\n":
            line += 1
        elif up := re.fullmatch(r"\x1b\[(\d+)A", token):
            line = max(line - int(up[1]), len(lines) - rows, 0)
        elif token == "\x1b[2K":
            lines[line] = ""
        elif not re.fullmatch(r"\x1b\[([\d;]*m|\?25[lh])", token):
            assert token.isprintable(), f"the screen does not know {token!r}"
            if column == columns:
                line, column = line + 1, 0
            lines += [""] * (line + 1 - len(lines))
            lines[line] = lines[line].ljust(column)[:column] + token + lines[line][column + 1 :]
            column += 1
        lines += [""] * (line + 1 - len(lines))
    return [one.rstrip() for one in lines]


def on_terminal(
    *arguments: str, columns: int, rows: int, seen: Callable[[str, subprocess.Popen[bytes]], None] = lambda *_: None
) -> tuple[int, list[str]]:
    """Run ``parmig`` with *arguments* on a terminal of its own; its exit code, and the screen in the end.

    Args:
        seen: called with all output so far, and the process, whenever there is more.
    """
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color"}
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "parmig", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdin=its, stdout=its, stderr=its, env=environment) as process:
        os.close(its)
        output = b""
        while True:
            try:
                more = os.read(ours, 1 << 16)
            except OSError:  # Linux says EIO when the last writer is gone
                break
            output += more
            seen(output.decode(errors="ignore"), process)
        os.close(ours)
        return process.wait(), screen(output.decode(), columns, rows)
