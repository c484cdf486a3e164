# SPDX-License-Identifier: Apache-2.0
"""What the guardian does once it is needed: try until the guest is right, ever more slowly, and write it down.

Does not know what started it; see ``workers.guardian``.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from pkgutil import resolve_name

FIRST_WAIT_S = 0.1
LONGEST_WAIT_S = 10.0
"""Between two attempts: 0.1 s, then twice as long each time, up to this."""


class Log:
    """A file of a few lines, made at once, so that its name can be told, and removed if nothing had to be done.

    Args:
        directory: only this user may touch it; empty: there is no file.

    Attributes:
        path: of the file; empty: there is none.
    """

    def __init__(self, directory: str) -> None:
        self.path = ""
        self._fd = -1
        if not directory:
            return
        path = Path(directory, f"guardian-{os.getpid()}.log")
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)  # of a process that had this number before
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            self.path = str(path)

    def write(self, words: str) -> None:
        """Add a line. Never raises: a full disk must not keep a guest paused."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.write(self._fd, f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {words}\n".encode(errors="replace"))

    def remove(self) -> None:
        """There was nothing to write."""
        with contextlib.suppress(OSError):
            os.unlink(self.path)


def waits() -> Iterator[float]:
    """How long to wait before each further attempt, in seconds, without end."""
    wait_s = FIRST_WAIT_S
    while True:
        yield wait_s
        wait_s = min(2 * wait_s, LONGEST_WAIT_S)


def rescue(program: str, setup: bytes, log: Log, sleep: Callable[[float], None] = time.sleep) -> None:
    """Call *program* with *setup* until it says that all is done or that nothing is left to set right.

    Args:
        sleep: waits so many seconds.
    """
    said, attempts = "", 0
    for wait_s in waits():
        attempts += 1
        try:
            done = resolve_name(program)(setup)
        except Exception as error:
            words = f"{type(error).__name__}: {error}"
            if words != said:
                log.write(f"attempt {attempts}: {words}; going on to try")
                said = words
            sleep(wait_s)
            continue
        ending = "the guest is set right" if done else "nothing is left to set right: the monitor is gone"
        log.write(f"attempt {attempts}: {ending}")
        return
