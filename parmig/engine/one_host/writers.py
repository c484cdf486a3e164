# SPDX-License-Identifier: Apache-2.0
"""(destination) The source's workers that may write to the memory here themselves, since both sides are on one host."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import time

from parmig import logs

_logger = logging.getLogger(__name__)

WRITERS_LIMIT_S = 5.0
"""How long the source's workers may take to end after the session. Nobody else may use the memory before."""


class Writers:
    """Notes them, and waits for their end."""

    def __init__(self) -> None:
        self._pidfds: list[int] = []

    def note(self, pid: int) -> None:
        """Note a send worker, process *pid* of this host."""
        with contextlib.suppress(OSError):  # it has ended
            self._pidfds.append(os.pidfd_open(pid))

    def wait(self) -> None:
        """Wait until none of them can write to the memory here any more."""
        deadline = time.monotonic() + WRITERS_LIMIT_S
        while self._pidfds:
            fd = self._pidfds.pop()
            ended = select.poll()
            ended.register(fd, select.POLLIN)
            if not ended.poll(max(0.0, deadline - time.monotonic()) * 1000):
                _logger.warning(
                    "a worker of the source has not ended, and may still write to the guest's memory here; "
                    "end it before this memory is used again",
                    extra=logs.REPORTED,
                )
            os.close(fd)
