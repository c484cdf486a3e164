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

from parmig.cli.progress import figures, note_drawing, printable, shares
from parmig.engine.report import Progress
from parmig.units import format_rate


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
        self._live.update(drawing(progress), refresh=True)
        note_drawing(True)


def drawing(progress: Progress) -> RenderableType:
    """*progress* for a terminal: a bar and the figures, and a line for the workers. Long lines are cut."""
    head = Table.grid(padding=(0, 2))
    for _ in range(4):
        head.add_column(no_wrap=True)
    stage = f"round {progress.round}" if progress.round else ""
    bar = ProgressBar(total=max(progress.total_pages, 1), completed=progress.handled_pages, width=30)
    head.add_row(Text(printable(progress.status), style="bold"), stage, bar, Text(", ".join(figures(progress))))
    rates = [f"{n}: {format_rate(rate)}" for n, rate in enumerate(progress.worker_rates_bytes_per_s)]
    parts = shares(progress) if progress.path_rates_bytes_per_s else ["workers", *rates] if rates else []
    below = Text("   ".join(parts), style="dim", no_wrap=True, overflow="ellipsis")
    return Group(head, below)
