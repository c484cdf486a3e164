# SPDX-License-Identifier: Apache-2.0
"""A worker's log: lines go over the pipe to the coordinator, few and short, and never hold up the worker."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from parmig.engine.messages.worker_messages import MAX_LOG_TEXT, WorkerLog

LINES_PER_S = 20
BURST_LINES = 50


class PipeLog(logging.Handler):
    """Sends lines to the coordinator; drops lines above the limit, and reports how many it dropped.

    Args:
        send: sends a line if the pipe has room for it now; returns whether it had.
        clock: seconds that only grow.
    """

    def __init__(self, send: Callable[[WorkerLog], bool], clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._send = send
        self._clock = clock
        self._allowed = float(BURST_LINES)
        self._looked_s = clock()
        self._dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Send a line, or count it as dropped."""
        now = self._clock()
        self._allowed = min(BURST_LINES, self._allowed + (now - self._looked_s) * LINES_PER_S)
        self._looked_s = now
        text = record.getMessage()
        if self._dropped:
            text += f" ({self._dropped} lines before this one were dropped)"
        if self._allowed >= 1 and self._send(WorkerLog(record.levelno, record.name[:100], text[:MAX_LOG_TEXT])):
            self._allowed -= 1
            self._dropped = 0
        else:
            self._dropped += 1


def log_over_pipe(level: int, send: Callable[[WorkerLog], bool]) -> None:
    """Send the lines of this process from *level* on, and write no others."""
    root = logging.getLogger()
    root.handlers = [PipeLog(send)]
    root.setLevel(level)
