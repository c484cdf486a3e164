# SPDX-License-Identifier: Apache-2.0
"""Time against workers and paths, and rate against the size of the guest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from parmig.experiments.plots.series import Line, Panel, panels
from parmig.experiments.plots.style import IDEAL, colours, counted_axis, legend, panel_figure, save, start_at_zero
from parmig.experiments.results import Row
from parmig.units import MIB


def draw_scaling(rows: Sequence[Row], directory: Path, factor: str) -> Path:
    """Seconds of the whole move against *factor*, which is ``workers`` or ``paths``, with the ideal of each line."""
    drawn = [
        Panel(panel.title, lines)
        for panel in panels(rows, factor)
        if (lines := [line for line in panel.lines if len(line.points) > 1])
    ]
    given = colours(drawn)
    with panel_figure(len(drawn), f"Time of the whole move against {factor}") as (figure, axes):
        for panel, axis in zip(drawn, axes, strict=True):
            for line in panel.lines:
                _draw(axis, line, given[line.label], "total_time_ms", 1 / 1000)
                _draw_ideal(axis, line)
            counts = sorted({x for line in panel.lines for x in line.points})
            counted_axis(axis, counts, factor)
            axis.set_title(panel.title)
            axis.plot([], [], color=IDEAL, linestyle="--", linewidth=1.2, label="ideal")
        start_at_zero(axes)
        axes[0].set_ylabel("seconds")
        legend(figure, axes)
        return save(figure, directory, f"time-{factor}")


def draw_sizes(rows: Sequence[Row], directory: Path) -> Path:
    """MiB/s of the whole move against the memory of the guest."""
    drawn = panels(rows, "memory_bytes")
    given = colours(drawn)
    with panel_figure(len(drawn), "Rate of the whole move against the size of the guest") as (figure, axes):
        for panel, axis in zip(drawn, axes, strict=True):
            for line in panel.lines:
                _draw(axis, line, given[line.label], "rate_mib_per_s", 1, x_unit=MIB)
            counted_axis(
                axis, sorted({x / MIB for line in panel.lines for x in line.points}), "memory of the guest, MiB"
            )
            axis.set_title(panel.title)
        start_at_zero(axes)
        axes[0].set_ylabel("MiB/s")
        legend(figure, axes)
        return save(figure, directory, "rate-memory")


def _draw(axis: Any, line: Line, colour: str, name: str, scale: float, *, x_unit: float = 1) -> None:
    """Medians joined by a line, their intervals as bars, and each run as a faint dot."""
    figures = line.figures(name)
    places = [x / x_unit for x in figures]
    axis.plot(places, [one.median * scale for one in figures.values()], "o-", color=colour, label=line.label)
    for x, one in figures.items():
        if one.low is not None and one.high is not None:
            axis.vlines(x / x_unit, one.low * scale, one.high * scale, color=colour, alpha=0.35, linewidth=4)
    for x, same in line.points.items():
        values = [row[name] * scale for row in same if row.get(name) is not None]
        axis.plot([x / x_unit] * len(values), values, ".", color=colour, alpha=0.35, markersize=4)


def _draw_ideal(axis: Any, line: Line) -> None:
    """What the time would be if it fell in proportion to the factor."""
    figures = line.figures("total_time_ms")
    if line.peer == "parmig" and len(figures) > 1:
        first = next(iter(figures))
        ideal = [figures[first].median * first / x / 1000 for x in figures]
        axis.plot(list(figures), ideal, color=IDEAL, linestyle="--", linewidth=1.2, zorder=1)
