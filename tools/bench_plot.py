# SPDX-License-Identifier: Apache-2.0
"""The plot of :mod:`tools.bench_peers`: for each setting, rates on the left and processor time on the right.

Bars are medians, dots are single runs. It needs matplotlib, of the extra ``experiments``.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")  # no display is needed
from matplotlib import pyplot as plt

from tools.bench_table import COUNTED, Row, cell_title, cells, medians, runs_of

_COLOURS = {"floor": "#8c8c8c", "floor-pwrite": "#a8a8a8", "iperf3": "#c4a484", "qemu": "#e08214"}
_PARMIG_COLOURS = ("#2166ac", "#35978f", "#762a83", "#5aae61")
_GAP = 0.6
"""Between the bars of two contenders, in widths of a bar."""


def draw(runs: Sequence[Row], path: Path, *, host: str) -> None:
    """Draw all settings of *runs*, one below the other, into the file *path*; *host* is what they were measured on."""
    settings = cells(medians(runs))
    figure, axes = plt.subplots(
        len(settings), 2, figsize=(13, 4.2 * len(settings)), squeeze=False, layout="constrained", sharey="col"
    )
    for rows, (rate, processor) in zip(settings, axes, strict=True):
        positions = _positions(rows)
        _draw_rates(rate, rows, positions, runs)
        _draw_processor(processor, rows, positions, runs)
        rate.set_title(f"{cell_title(rows[0])}: rate of the whole move", fontsize=10, loc="left")
        processor.set_title("processor time of both sides", fontsize=10, loc="left")
    legend = "Bars: medians. Dots: single runs. Above a bar on the left: its rate over that of the best floor."
    figure.suptitle(f"{legend}\n{host}", fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _positions(rows: Sequence[Row]) -> list[float]:
    """Where the bar of each row is: side by side for one contender, with a gap before the next one."""
    positions = [0.0]
    for left, right in itertools.pairwise(rows):
        positions.append(positions[-1] + 1 + (_GAP if left["contender"] != right["contender"] else 0))
    return positions


def _draw_rates(axis: Any, rows: Sequence[Row], positions: Sequence[float], runs: Sequence[Row]) -> None:
    bars = axis.bar(positions, [row["mib_per_s"] for row in rows], color=_colours(rows), width=0.9)
    axis.bar_label(bars, [str(row["mib_per_s"]) for row in rows], label_type="center", fontsize=8, color="white")
    for row, position in zip(rows, positions, strict=True):
        values = [run["mib_per_s"] for run in runs_of(runs, row)]
        _dots(axis, position, values)
        if row["over_floor"] is not None:
            _write_above(axis, position, max(values), row["over_floor"])
    axis.set_ylabel("MiB/s")
    _finish(axis, rows, positions)


def _draw_processor(axis: Any, rows: Sequence[Row], positions: Sequence[float], runs: Sequence[Row]) -> None:
    for row, position, colour in zip(rows, positions, _colours(rows), strict=True):
        if not row["processor_s"]:
            continue
        of_source = row["processor_s_per_gib"] * row["source_processor_s"] / row["processor_s"]
        of_destination = row["processor_s_per_gib"] - of_source
        axis.bar(position, of_source, color=colour, width=0.9)
        axis.bar(position, of_destination, bottom=of_source, color=colour, width=0.9, alpha=0.55)
        values = [run["processor_s_per_gib"] for run in runs_of(runs, row)]
        _dots(axis, position, values)
        _write_above(axis, position, max(values), row["processor_s_per_gib"])
    axis.set_ylabel("s/GiB (dark: source, light: destination)")
    _finish(axis, rows, positions)


def _write_above(axis: Any, position: float, height: float, value: float) -> None:
    axis.annotate(f"{value:.2f}", (position, height), (0, 5), textcoords="offset points", ha="center", fontsize=9)


def _dots(axis: Any, position: float, values: Sequence[float]) -> None:
    """Single runs, from left to right in their order."""
    step = 0.5 / max(1, len(values) - 1)
    places = [position + (number - (len(values) - 1) / 2) * step for number in range(len(values))]
    axis.plot(places, values, linestyle="", marker="o", markersize=3, color="black", alpha=0.7)


def _finish(axis: Any, rows: Sequence[Row], positions: Sequence[float]) -> None:
    """Counts below the bars, and below them, once for each contender, its name."""
    axis.set_xticks(positions, [str(row["count"]) for row in rows], fontsize=9)
    axis.tick_params(axis="x", length=0)
    for name in dict.fromkeys(row["contender"] for row in rows):
        places = [position for row, position in zip(rows, positions, strict=True) if row["contender"] == name]
        text = f"{name.replace('parmig-', 'parmig ')}\n{COUNTED.get(name, 'workers')}"
        centre = (sum(places) / len(places), 0)
        where: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
        axis.annotate(text, centre, (0, -18), **where, ha="center", va="top", fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", alpha=0.3)
    axis.set_axisbelow(True)
    axis.margins(y=0.12)


def _colours(rows: Sequence[Row]) -> list[str]:
    """A colour for each row; rows of one contender have the same."""
    others = dict.fromkeys(row["contender"] for row in rows if row["contender"] not in _COLOURS)
    chosen = _COLOURS | {name: _PARMIG_COLOURS[n % len(_PARMIG_COLOURS)] for n, name in enumerate(others)}
    return [chosen[row["contender"]] for row in rows]
