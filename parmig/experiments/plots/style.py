# SPDX-License-Identifier: Apache-2.0
"""How all pictures look, and how they are written: each as PNG and as SVG."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")  # no display is needed
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from parmig.experiments.plots.series import Panel

PARMIG = ("#1f5fa8", "#2a9d8f", "#7a4fa3", "#4fa3d1", "#58a55c", "#b0568f", "#5c6bc0")
OTHERS = {
    "qemu-multifd": ("#e07b1a", "#f2b066", "#a85a10"),
    "qemu-precopy": ("#c0392b", "#e08a80", "#86231a"),
    "iperf3": ("#9c8463", "#c9b89f", "#6e5c42"),
    "bare": ("#7f7f7f", "#b0b0b0", "#555555"),
}
"""parmig is in cold colours, QEMU in warm ones, and limits are grey and brown."""

IDEAL = "#b8b8b8"
INK, FAINT = "#222222", "#e4e4e4"

_STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": "#8a8a8a",
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "svg.hashsalt": "parmig",
}

PANEL_INCHES = 4.3, 3.2
COLUMNS = 3


@contextmanager
def panel_figure(count: int, title: str, *, sharey: bool = True) -> Iterator[tuple[Figure, list[Any]]]:
    """A figure with *count* panels in rows of three, and the panels; the caller draws and saves it."""
    columns = min(count, COLUMNS)
    rows = math.ceil(count / columns)
    width, height = PANEL_INCHES
    with mpl.rc_context(_STYLE):
        size = (max(width * columns, 6.4), height * rows + 0.8)
        figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, sharey=sharey, layout="constrained")
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
        flat = list(axes.flat)
        for unused in flat[count:]:
            unused.set_visible(False)
        try:
            yield figure, flat[:count]
        finally:
            plt.close(figure)


def start_at_zero(axes: Sequence[Any]) -> None:
    """Let the y axes of all panels begin at 0. Call it once all are drawn: a limit ends the search for the others."""
    for axis in axes:
        axis.set_ylim(bottom=0)


def save(figure: Figure, directory: Path, name: str) -> Path:
    """Write the figure as ``NAME.png`` and ``NAME.svg``; the path of the latter."""
    figure.savefig(directory / f"{name}.png", dpi=130)
    path = directory / f"{name}.svg"
    figure.savefig(path, metadata={"Date": None})
    return path


def colours(panels: Sequence[Panel]) -> dict[str, str]:
    """A colour for each label, the same in all *panels*."""
    given: dict[str, str] = {}
    used: Counter[str] = Counter()
    for line in (line for panel in panels for line in panel.lines):
        if line.label not in given:
            palette = OTHERS.get(line.peer, PARMIG)
            given[line.label] = palette[used[line.peer] % len(palette)]
            used[line.peer] += 1
    return given


def legend(figure: Figure, axes: Sequence[Any]) -> None:
    """One legend below all panels, with each label once."""
    handles: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if len(handles) > 1:
        widest_inches = 0.066 * max(map(len, handles)) + 0.45
        columns = max(1, min(len(handles), int(figure.get_figwidth() / widest_inches)))
        place: Any = "outside lower left"
        figure.legend(list(handles.values()), list(handles), loc=place, ncols=columns)


def counted_axis(axis: Any, values: Sequence[float], label: str) -> None:
    """A logarithmic axis with a tick at each of *values* only."""
    axis.set_xscale("log", base=2)
    axis.set_xticks(list(values), [f"{value:g}" for value in values])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlabel(label)


def plain_log_y(axis: Any) -> None:
    """A logarithmic axis whose numbers are written out."""
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(FuncFormatter(lambda _value, _: ""))
