# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C and SIGTERM cancel the migration in order, instead of tearing it down."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def cancelling(cancel: Callable[[], None]) -> Iterator[None]:
    """While inside, SIGINT and SIGTERM call *cancel* once; afterwards they do what they did before.

    Args:
        cancel: must be safe to call from a signal handler.
    """
    asked = False

    def handle(_number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        # os.write, because the interrupted code may hold the lock of a buffered stream.
        if asked:
            os.write(2, b"parmig: is being cancelled already; waiting for both sides to be back as before\n")
            return
        asked = True
        os.write(2, b"parmig: cancelling\n")
        cancel()

    previous = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
