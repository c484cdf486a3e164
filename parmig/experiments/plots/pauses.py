# SPDX-License-Identifier: Apache-2.0
"""The distribution of downtimes, and one migration from its start to its end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from parmig.engine.reporting.report import DowntimePhases
from parmig.experiments.factors import Factors, written
from parmig.experiments.plots.series import panels, pooled
from parmig.experiments.plots.style import INK, colours, legend, panel_figure, plain_log_y, save
from parmig.experiments.results import Row
from parmig.experiments.table import factors_of, varied
from parmig.ram.blocks import PAGE_BYTES
from parmig.units import MIB

PHASES = {
    "pause": "#8d99ae",
    "final_scan": "#4fa3d1",
    "final_pages": "#1f5fa8",
    "state_save": "#f2b134",
    "post_save_scan": "#2a9d8f",
    "verify": "#9c8463",
    "state_transfer": "#e9822d",
    "state_load": "#c8553d",
    "resume": "#7a4fa3",
}
"""The phases of the pause, in their order."""

_FELT_IN_THE_PAUSE = ("dirty_rate_bytes_per_s", "pattern", "downtime_limit_ns", "link_rate_bytes_per_s", "memory_bytes",
                      "workers", "paths")  # fmt: skip
"""Factors that tell distributions apart, the one with the most effect first."""


def draw_downtimes(rows: Sequence[Row], directory: Path) -> Path:
    """The share of runs whose downtime was at most so long. Runs with other factors than those told are pooled."""
    paused = [row for row in rows if row.get("downtime_ms")]
    drawn = panels(paused, None, pooled(paused, _FELT_IN_THE_PAUSE))
    given = colours(drawn)
    with panel_figure(len(drawn), "Distribution of downtimes") as (figure, axes):
        for panel, axis in zip(drawn, axes, strict=True):
            for line in panel.lines:
                values = sorted(row["downtime_ms"] for same in line.points.values() for row in same)
                shares = [number / len(values) for number in range(1, len(values) + 1)]
                colour, label = given[line.label], f"{line.label} ({len(values)} runs)"
                axis.step([values[0], *values], [0, *shares], where="post", color=colour, label=label)
                axis.plot(values, shares, ".", color=colour, markersize=4)
            axis.set_title(panel.title)
            axis.set_xlabel("downtime, ms")
            axis.set_xlim(left=0)
            axis.set_ylim(0, 1.03)
        axes[0].set_ylabel("share of runs")
        legend(figure, axes)
        return save(figure, directory, "downtime-distribution")


def draw_convergence(rows: Sequence[Row], directory: Path) -> Path:
    """What each round had to send, for guests that write at different rates: the run with the median time of each."""
    drawn = panels(rows, None)
    given = colours(drawn)
    with panel_figure(len(drawn), "Convergence: what is left to send in each round") as (figure, axes):
        for panel, axis in zip(drawn, axes, strict=True):
            for line in panel.lines:
                run = median_run([row for same in line.points.values() for row in same])
                numbers, left = _rounds(run)
                axis.plot(numbers, left, "o-", color=given[line.label], label=line.label)
                axis.plot(numbers[-1:], left[-1:], "o", color=given[line.label], markerfacecolor="white", zorder=5)
            plain_log_y(axis)
            axis.set_title(panel.title)
            axis.set_xlabel("round (hollow: the guest is paused)")
            axis.xaxis.get_major_locator().set_params(integer=True)
        axes[0].set_ylabel("MiB to send")
        legend(figure, axes)
        return save(figure, directory, "convergence")


def _rounds(run: Row) -> tuple[list[int], list[float]]:
    """The numbers of the rounds up to the first one in the pause, and the MiB that each had to send."""
    numbers, left = [], []
    for one in run["report.rounds"]:
        numbers.append(one["round"])
        left.append(max(one["dirty_pages"], 1) * PAGE_BYTES / MIB)
        if one["paused"]:
            break
    return numbers, left


def draw_waterfall(rows: Sequence[Row], directory: Path) -> Path:
    """One migration: its set-up, its rounds and its pause, and the phases of the pause below."""
    run = median_run(rows)
    title = "One migration"
    if factors := ", ".join(f"{name} {text}" for name, text in _told(run, rows).items()):
        title += f": {factors}"
    with panel_figure(2, title, sharey=False) as (figure, axes):
        figure.set_size_inches(11, 4.4)
        _draw_rounds(axes[0], run)
        _draw_phases(axes[1], run)
        return save(figure, directory, "waterfall")


def median_run(rows: Sequence[Row]) -> Row:
    """The run with the median time."""
    ordered = sorted(rows, key=lambda row: float(row["total_time_ms"]))
    return ordered[len(ordered) // 2]


def _told(run: Row, rows: Sequence[Row]) -> dict[str, str]:
    factors: Factors = factors_of(run)
    return written(factors, tuple(name for name in varied(rows) if name not in ("peer", "guest")))


def _draw_rounds(axis: Any, run: Row) -> None:
    bars = [("set-up", 0.0, run["setup_time_ms"], "#b8b8b8")]
    at = run["setup_time_ms"]
    for one in run["report.rounds"]:
        label = f"round {one['round']}" + (" (paused)" if one["paused"] else "")
        bars.append((label, at, one["duration_ms"], "#c8553d" if one["paused"] else "#1f5fa8"))
        at += one["duration_ms"]
    rest = run["total_time_ms"] - at
    if rest > 0:
        bars.append(("state, hand-over, end", at, rest, "#7a4fa3"))
    _draw_bars(axis, bars)
    axis.set_title(f"from the start to the end: {run['total_time_ms']:.0f} ms")


def _draw_phases(axis: Any, run: Row) -> None:
    bars, at = [], 0.0
    for name in DowntimePhases.__struct_fields__:
        length = run.get(f"report.downtime_phases_ms.{name}", 0.0)
        if length:
            bars.append((name.replace("_", " "), at, length, PHASES.get(name, INK)))
        at += length
    _draw_bars(axis, bars)
    axis.set_title(f"phases of the pause: {run['downtime_ms']:.1f} ms")


def _draw_bars(axis: Any, bars: Sequence[tuple[str, float, float, str]]) -> None:
    """Bars one below the other, each from its begin on, with their lengths beside them."""
    for place, (_, begin, length, colour) in enumerate(bars):
        axis.barh(place, length, left=begin, color=colour, height=0.7)
        axis.annotate(f"{length:.3g}" if length < 100 else f"{length:.0f}", (begin + length, place), (4, 0),
                      textcoords="offset points", va="center", fontsize=8)  # fmt: skip
    axis.set_yticks(range(len(bars)), [label for label, *_ in bars])
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.margins(x=0.12)
    axis.set_xlim(left=0)
    axis.set_xlabel("ms")
