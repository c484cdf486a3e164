# SPDX-License-Identifier: Apache-2.0
"""How an experiment is ended before its time: from a signal handler, in order."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Whether the experiment is to end. Asking for it ends the processes of the run, and so whatever waits for them.

    Attributes:
        asked: :meth:`ask` was called.

    A KeyboardInterrupt out of a signal handler would be lost where Python ignores exceptions, such as in hooks that run
    at a fork.
    """

    def __init__(self) -> None:
        self.asked = False
        self._ends: set[Callable[[], None]] = set()

    def ask(self) -> None:
        """End the experiment; safe from a signal handler."""
        self.asked = True
        for end in tuple(self._ends):
            end()

    def check(self) -> None:
        """Raise :class:`KeyboardInterrupt` if :meth:`ask` was called."""
        if self.asked:
            raise KeyboardInterrupt

    def ending(self, process: subprocess.Popen[Any]) -> contextlib.AbstractContextManager[None]:
        """In the context, :meth:`ask` ends *process*."""
        return self.calling(process.terminate)

    @contextlib.contextmanager
    def calling(self, end: Callable[[], None]) -> Iterator[None]:
        """In the context, :meth:`ask` calls *end*, which must be safe in a signal handler."""
        self._ends.add(end)
        try:
            self.check()
            yield
        finally:
            self._ends.discard(end)


@contextlib.contextmanager
def interruptible(say: Callable[[], None]) -> Iterator[Interruption]:
    """What the first SIGINT or SIGTERM asks to end in order, in the context; the second one ends at once.

    In a thread that is not the main one, signals do what they did before.

    Args:
        say: called at the first signal; must be safe in a signal handler.
    """
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        for number in _SIGNALS:
            signal.signal(number, signal.default_int_handler)
        say()
        interruption.ask()

    previous = {number: signal.signal(number, interrupt) for number in _SIGNALS}
    try:
        yield interruption
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
