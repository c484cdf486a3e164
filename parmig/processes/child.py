# SPDX-License-Identifier: Apache-2.0
"""A process that the fork server started, as its owner sees it."""

from __future__ import annotations

import contextlib
import os
import select
import signal

from parmig.processes.wire import EXIT_CODE

KILLED_LIMIT_S = 5.0
"""For a process to end after SIGKILL. One that takes longer hangs in the kernel and is left behind."""

UNKNOWN_CODE = 255
"""The exit code of a process whose fork server ended first."""


class ChildProcess:
    """A process that the fork server started.

    Args:
        pid: its process id.
        sentinel: pipe from the fork server, which writes the exit code to it; owned.

    Attributes:
        sentinel: becomes readable when the process has ended; open until close().
        exitcode: how it ended, negative: by this signal; None: no call of this object has noticed an end.
    """

    def __init__(self, pid: int, sentinel: int) -> None:
        self.pid = pid
        self.sentinel = sentinel
        self.exitcode: int | None = None

    def join(self, limit_s: float) -> None:
        """Wait until the process has ended, for *limit_s* at most."""
        if self.exitcode is not None or self.sentinel < 0:
            return
        poll = select.poll()
        poll.register(self.sentinel, select.POLLIN)
        if poll.poll(limit_s * 1000):
            code = os.read(self.sentinel, EXIT_CODE.size)
            self.exitcode = EXIT_CODE.unpack(code)[0] if code else UNKNOWN_CODE

    def is_alive(self) -> bool:
        """Whether it still runs."""
        self.join(0)
        return self.exitcode is None

    def kill(self) -> None:
        """Send SIGKILL, unless it has ended."""
        if self.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Forget the process, whether or not it has ended. Calling it twice is fine."""
        if self.sentinel >= 0:
            os.close(self.sentinel)
            self.sentinel = -1


def end_process(process: ChildProcess, *, patience_s: float) -> None:
    """Join *process*; past *patience_s* kill it first. Closes the process object, whether or not it ends."""
    process.join(patience_s)
    if process.is_alive():
        process.kill()
        process.join(KILLED_LIMIT_S)
    process.close()


def describe_exit(process: ChildProcess) -> str:
    """How *process* ended, for people."""
    code = process.exitcode
    if code is None:
        return "is still running"
    return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
