# SPDX-License-Identifier: Apache-2.0
"""What is shown while a migration runs, always on standard error.

On a terminal a few lines that are drawn over; on a pipe a plain line whenever the status or the round
changes, and otherwise at most one a second.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from parmig.engine.report import Progress
from parmig.units import NS_PER_S, format_ms, format_rate, format_size

CHECKED = "the guest went on at the destination, and its memory is what its program left there"
"""Said after a guest that can check itself has done so."""

ProgressCallback = Callable[[Progress], None]


@contextmanager
def showing_progress(*, quiet: bool) -> Iterator[ProgressCallback | None]:
    """While inside, the callback that is handed out shows each :class:`Progress` it is given.

    Args:
        quiet: show nothing; None is handed out.
    """
    if quiet:
        yield None
    elif sys.stderr.isatty():
        console = Console(stderr=True, highlight=False)
        with Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False) as live:
            yield LiveProgress(live)
    else:
        yield PlainProgress(print_line)


def print_line(line: str) -> None:
    """One line on standard error, at once."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


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


class LiveProgress:
    """Lines of a terminal that are drawn over.

    Args:
        live: where to draw; its owner starts and stops it.
    """

    def __init__(self, live: Live) -> None:
        self._live = live

    def __call__(self, progress: Progress) -> None:
        """Draw *progress*."""
        if progress.message:
            self._live.console.print(progress.message, markup=False)
        self._live.update(drawing(progress), refresh=True)


def figures(progress: Progress) -> list[str]:
    """What is known, in words, without the status and the round."""
    parts = []
    if progress.total_pages:
        parts.append(f"{progress.handled_pages}/{progress.total_pages} pages")
    if progress.rate_bytes_per_s:
        parts.append(format_rate(progress.rate_bytes_per_s))
    if progress.remaining_bytes:
        parts.append(f"{format_size(progress.remaining_bytes)} remaining")
    if progress.time_left_ms is not None:
        parts.append(f"{format_ms(progress.time_left_ms)} left")
    if progress.throttle_percent:
        parts.append(f"throttled by {progress.throttle_percent} %")
    return parts


def plain_line(progress: Progress) -> str:
    """*progress* on one line, for a pipe."""
    parts = [progress.status, *([f"round {progress.round}"] if progress.round else []), *figures(progress)]
    if len(progress.worker_rates_bytes_per_s) > 1:
        parts.append("workers " + " ".join(format_rate(rate) for rate in progress.worker_rates_bytes_per_s))
    return ", ".join(parts)


def drawing(progress: Progress) -> RenderableType:
    """*progress* for a terminal: a bar, the figures, and a line for the workers."""
    head = Table.grid(padding=(0, 2))
    stage = f"round {progress.round}" if progress.round else ""
    bar = ProgressBar(total=max(progress.total_pages, 1), completed=progress.handled_pages, width=30)
    head.add_row(Text(progress.status, style="bold"), stage, bar, Text(", ".join(figures(progress))))
    if not progress.worker_rates_bytes_per_s:
        return head
    workers = "   ".join(f"{n}: {format_rate(rate)}" for n, rate in enumerate(progress.worker_rates_bytes_per_s))
    return Group(head, Text(f"workers  {workers}", style="dim"))
