# SPDX-License-Identifier: Apache-2.0
"""What the guardian does once it is needed: it retries until the guest is set right, and keeps a log.

Does not know what started it; see ``workers.guardian``.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from pkgutil import resolve_name

from parmig.engine.records.handover_record import RecordState
from parmig.engine.records.record_file import RecordReader
from parmig.errors import RecordError

FIRST_WAIT_S = 0.1
LONGEST_WAIT_S = 10.0
"""The longest delay between two attempts. It begins with FIRST_WAIT_S and doubles each time."""


class Log:
    """A log file of a few lines. It is made early, so that its name can be reported, and removed if nothing was done.

    Args:
        directory: only this user may write there; empty: there is no file.

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
        """Remove the file: nothing had to be done."""
        with contextlib.suppress(OSError):
            os.unlink(self.path)


def waits() -> Iterator[float]:
    """How long to wait before each further attempt, in seconds, without end."""
    wait_s = FIRST_WAIT_S
    while True:
        yield wait_s
        wait_s = min(2 * wait_s, LONGEST_WAIT_S)


def why_not(reader: RecordReader) -> str:
    """Why the guest must not run again here, by the record of the hand-over; empty: it may."""
    try:
        record = reader.read()
    except RecordError as error:
        return f"who has the guest cannot be seen: {error}"
    if record.state in (RecordState.HANDED_OVER, RecordState.COMPLETED):
        return f"the guest was handed over; run parmig recover {record.name}"
    return ""


def rescue(program: str, setup: bytes, log: Log, sleep: Callable[[float], None] = time.sleep) -> None:
    """Call *program* with *setup* until it returns: True, the guest is set right; False, its monitor is gone.

    Args:
        sleep: waits for a number of seconds.
    """
    logged, attempts = "", 0
    for wait_s in waits():
        attempts += 1
        try:
            done = resolve_name(program)(setup)
        except Exception as error:
            words = f"{type(error).__name__}: {error}"
            if words != logged:
                log.write(f"attempt {attempts}: {words}; going on to try")
                logged = words
            sleep(wait_s)
            continue
        ending = "the guest is set right" if done else "nothing is left to set right: the monitor is gone"
        log.write(f"attempt {attempts}: {ending}")
        return
