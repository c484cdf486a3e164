# SPDX-License-Identifier: Apache-2.0
"""Shows the progress of a migration, always on standard error.

A terminal gets a few lines that are redrawn. A pipe gets a plain line whenever the status or the round changes, and
otherwise at most one line a second.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from parmig.cli.progress import plain_line, print_line
from parmig.engine.reporting.report import Progress
from parmig.units import NS_PER_S

ProgressCallback = Callable[[Progress], None]


@contextmanager
def showing_progress(*, quiet: bool, plain: bool = False) -> Iterator[ProgressCallback | None]:
    """While the context is open, the callback that it yields shows each :class:`Progress`.

    Args:
        quiet: show nothing; the context yields None.
        plain: write lines on a terminal too, because something else writes there.
    """
    if quiet:
        yield None
    elif plain or not sys.stderr.isatty():
        yield PlainProgress(print_line)
    else:
        from parmig.cli.drawing import showing_drawing  # rich takes 50 ms to import, and only a terminal needs it

        with showing_drawing() as draw:
            yield draw or PlainProgress(print_line)


class PlainProgress:
    """Lines for a pipe or a log.

    Args:
        write: takes a line without its end.
        clock: nanoseconds that only grow.
    """

    def __init__(self, write: Callable[[str], None], clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._write = write
        self._clock = clock
        self._stage: tuple[str, int] | None = None
        self._last_ns = 0

    def __call__(self, progress: Progress) -> None:
        """Write a line if there is news."""
        if progress.message:
            self._write(progress.message)
        now = self._clock()
        stage = (progress.status, progress.round)
        if stage == self._stage and now - self._last_ns < NS_PER_S:
            return
        self._stage, self._last_ns = stage, now
        self._write(plain_line(progress))
