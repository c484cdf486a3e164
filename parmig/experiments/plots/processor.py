# SPDX-License-Identifier: Apache-2.0
"""Processor time for each GiB that was moved."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from parmig.experiments.plots.style import OTHERS, PARMIG, panel_figure, save
from parmig.experiments.results import Row
from parmig.experiments.table import cells, factors_of, varied

MAX_BARS = 24
"""More bars would not be read."""


def draw_processor(rows: Sequence[Row], directory: Path) -> Path:
    """A bar for each combination: the source's part dark, the destination's light. The cheapest is first."""
    told = tuple(name for name in varied(rows) if name != "guest")
    table = [cell for cell in cells(rows, told) if "processor_s_per_gib" in cell.figures]
    table = sorted(table, key=lambda cell: cell.figures["processor_s_per_gib"].median)[:MAX_BARS]
    with panel_figure(1, "Processor time of both sides for each GiB") as (figure, (axis,)):
        figure.set_size_inches(9, 1.4 + 0.28 * len(table))
        for place, cell in enumerate(table):
            figures = cell.figures
            colour = OTHERS.get(cell.factors.peer, PARMIG)[0]
            whole = figures["processor_s_per_gib"].median
            source = _source_share([row for row in rows if factors_of(row) == cell.factors]) * whole
            axis.barh(place, source, color=colour, height=0.7)
            axis.barh(place, whole - source, left=source, color=colour, height=0.7, alpha=0.5)
            axis.annotate(f"{whole:.3g}", (whole, place), (4, 0), textcoords="offset points", va="center", fontsize=8)
        axis.set_yticks(range(len(table)), [cell.label for cell in table])
        axis.invert_yaxis()
        axis.grid(axis="y", visible=False)
        axis.margins(x=0.08)
        axis.set_xlabel("seconds for each GiB (dark: source, light: destination)")
        return save(figure, directory, "processor")


def _source_share(rows: Sequence[Row]) -> float:
    """The source's part of the processor time of *rows*; all of it where sides are not told apart."""
    known = [row for row in rows if row.get("source_processor_s") is not None]
    whole = sum(float(row["processor_s"]) for row in known)
    return sum(float(row["source_processor_s"]) for row in known) / whole if whole else 1.0
