# SPDX-License-Identifier: Apache-2.0
"""How an experiment is ended before its time: from a signal handler, in order."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from typing import Any


class Interruption:
    """Whether the experiment is to end. Asking for it ends the processes of the run, and so whatever waits for them.

    A KeyboardInterrupt out of a signal handler would be lost where Python ignores exceptions, such as in hooks that run
    at a fork.
    """

    def __init__(self) -> None:
        self._asked = False
        self._running: set[subprocess.Popen[Any]] = set()

    def ask(self) -> None:
        """End the experiment; safe from a signal handler."""
        self._asked = True
        for process in tuple(self._running):
            process.terminate()

    def check(self) -> None:
        """Raise :class:`KeyboardInterrupt` if :meth:`ask` was called."""
        if self._asked:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def ending(self, process: subprocess.Popen[Any]) -> Iterator[None]:
        """In the context, :meth:`ask` ends *process*."""
        self._running.add(process)
        try:
            self.check()
            yield
        finally:
            self._running.discard(process)
