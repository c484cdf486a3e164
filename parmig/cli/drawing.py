# SPDX-License-Identifier: Apache-2.0
"""Progress of a migration as a few lines of a terminal that are redrawn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from parmig.cli.progress import figures, note_drawing, shares
from parmig.engine.reporting.report import Progress
from parmig.logs import printable
from parmig.units import format_rate

LONGEST_BAR, SHORTEST_BAR = 30, 8
"""Columns of the bar."""

GAP = 2
"""Columns between two parts of a line."""


@contextmanager
def showing_drawing() -> Iterator[LiveProgress | None]:
    """While the context is open, what it yields draws; None: this terminal cannot."""
    console = Console(stderr=True, highlight=False)
    if not console.is_interactive:
        yield None
        return
    try:
        with Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False) as live:
            yield LiveProgress(live)
    finally:
        note_drawing(False)


class LiveProgress:
    """Lines of a terminal that are redrawn.

    Args:
        live: where to draw; its owner starts and stops it.
    """

    def __init__(self, live: Live) -> None:
        self._live = live

    def __call__(self, progress: Progress) -> None:
        """Draw *progress*."""
        if progress.message:
            self._live.console.print(printable(progress.message), markup=False)
        self._live.update(drawing(progress, self._live.console.width), refresh=True)
        note_drawing(True)


def drawing(progress: Progress, columns: int) -> RenderableType:
    """*progress* for a terminal of so many *columns*: a bar and the figures, and a line for the workers.

    Where there is little room, the bar gets shorter first, then the figures are cut.
    """
    status, stage = printable(progress.status), f"round {progress.round}" if progress.round else ""
    told = Text(", ".join(figures(progress)), no_wrap=True, overflow="ellipsis")
    head = Table.grid(padding=(0, GAP))
    for column in range(4):
        head.add_column(no_wrap=column < 3)  # rich makes the others narrower
    room = columns - len(status) - len(stage) - told.cell_len - 3 * GAP
    width = min(max(room, SHORTEST_BAR), LONGEST_BAR)
    bar = ProgressBar(total=max(progress.total_pages, 1), completed=progress.handled_pages, width=width)
    head.add_row(Text(status, style="bold"), stage, bar, told)
    rates = [f"{n}: {format_rate(rate)}" for n, rate in enumerate(progress.worker_rates_bytes_per_s)]
    parts = shares(progress) if progress.path_rates_bytes_per_s else ["workers", *rates] if rates else []
    below = Text("   ".join(parts), style="dim", no_wrap=True, overflow="ellipsis")
    return Group(head, below)
