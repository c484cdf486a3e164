# SPDX-License-Identifier: Apache-2.0
"""What the guest feels: its own speed over the time of a migration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from parmig.experiments.plots.pauses import median_run
from parmig.experiments.plots.series import Line, Panel, panels
from parmig.experiments.plots.style import FAINT, INK, PARMIG, legend, panel_figure, save, start_at_zero
from parmig.experiments.results import Row
from parmig.units import MIB

CURVE = "report.guest_speed.curve"
MAX_RUNS = 6
"""More panels cannot be seen at once."""

_SETUP, _ROUNDS, _PAUSE, _AFTER = "#b8b8b8", ("#dbe7f4", "#c3d6ec"), "#e8b9ab", "#7a4fa3"
_AFTER_SHARE = 0.12
"""The part of the picture that shows how fast the guest ran at the destination."""


def draw_guest_speed(rows: Sequence[Row], directory: Path) -> Path:
    """For each combination the run with the median time: how fast its guest wrote, with the parts of the migration.

    If there are too many combinations, those are drawn whose guests felt the most.
    """
    felt = [row for row in rows if row.get(CURVE)]
    runs = [(panel, line, median_run(line.points[None])) for panel in panels(felt, None) for line in panel.lines]
    most = sorted((_slower(run) for *_, run in runs), reverse=True)[:MAX_RUNS]
    drawn = [one for one in runs if _slower(one[2]) >= most[-1]][:MAX_RUNS]
    with panel_figure(len(drawn), "What the guest feels: how fast it writes, by its own count") as (figure, axes):
        for (panel, line, run), axis in zip(drawn, axes, strict=True):
            _draw_run(axis, run)
            axis.set_title(_title(panel, line, run))
        start_at_zero(axes)
        axes[0].set_ylabel("MiB/s")
        legend(figure, axes)
        return save(figure, directory, "guest-speed")


def _slower(run: Row) -> float:
    return float(run.get("guest_slow_down_percent") or 0.0)


def _title(panel: Panel, line: Line, run: Row) -> str:
    slower = _slower(run)
    names = ", ".join(filter(None, (panel.title, line.label)))
    return f"{names}\n{abs(slower):.0f} % {'slower' if slower >= 0 else 'faster'} in rounds"


def _draw_run(axis: Any, run: Row) -> None:
    times_ms, speeds = zip(*run[CURVE], strict=True)
    setup_ms = run["setup_time_ms"]
    axis.axvspan(0, setup_ms, color=_SETUP, alpha=0.5, linewidth=0, label="set-up", zorder=0)
    for number, one in enumerate(one for one in run["report.rounds"] if not one["paused"]):
        label = "rounds" if not number else None
        ended_ms = one["began_ms"] + one["duration_ms"]
        axis.axvspan(one["began_ms"], ended_ms, color=_ROUNDS[number % 2], linewidth=0, label=label, zorder=0)
    stopped_ms = times_ms[-1]
    resumed_ms = stopped_ms + (run["downtime_ms"] or 0.0)
    axis.axvspan(stopped_ms, resumed_ms, color=_PAUSE, linewidth=0, label="pause", zorder=0)
    axis.plot(times_ms, [speed / MIB for speed in speeds], color=PARMIG[0], linewidth=1.4, label="the guest's speed")
    after_ms = resumed_ms + (resumed_ms - times_ms[0]) * _AFTER_SHARE
    after = run.get("guest_after_bytes_per_s")
    if after is not None:
        axis.plot([resumed_ms, after_ms], [after / MIB] * 2, color=_AFTER, label="at the destination, mean")
    asked = run.get("report.guest_speed.asked_bytes_per_s")
    if asked is not None:
        axis.axhline(asked / MIB, color=INK, linestyle=":", linewidth=1, label="asked for", zorder=1)
    axis.set_xlim(times_ms[0], after_ms)
    axis.grid(axis="x", color=FAINT)
    axis.set_xlabel("ms since the start")
