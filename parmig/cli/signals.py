# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C and SIGTERM cancel the migration in order instead of killing it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from parmig.cli.progress import say_in_signal_handler

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def cancelling(cancel: Callable[[], None]) -> Iterator[None]:
    """While the context is open, SIGINT and SIGTERM call *cancel* once. Afterwards they do what they did before.

    Args:
        cancel: must be safe to call from a signal handler.
    """
    asked = False

    def handle(_number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            say_in_signal_handler("parmig: already cancelling; waiting until both sides are as before")
            return
        asked = True
        say_in_signal_handler("parmig: cancelling")
        cancel()

    previous = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
