# SPDX-License-Identifier: Apache-2.0
"""Tables for people, on standard output."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from parmig.logs import printable

PIPE_COLUMNS = 120
"""Width if there is no terminal to ask; wide enough that no table of a report wraps."""


def output_console() -> Console:
    """Standard output, as wide as its terminal. What is printed may be what a peer says: nothing in it is markup."""
    width = None if sys.stdout.isatty() else PIPE_COLUMNS
    return Console(file=sys.stdout, highlight=False, markup=False, emoji=False, width=width)


def plain_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str | Text]],
    *,
    right: Collection[str] = (),
    folded: Collection[str] | None = None,
) -> Table:
    """A table without lines.

    Args:
        rows: of cells; text may be what a peer says.
        right: the columns that hold numbers.
        folded: those that give way where the terminal is narrow, over several lines; None: all.
    """
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in columns:
        fixed = folded is not None and column not in folded
        table.add_column(column, justify="right" if column in right else "left", no_wrap=fixed, overflow="fold")
    for row in rows:
        table.add_row(*(printable(cell) if isinstance(cell, str) else cell for cell in row))
    return table
