# SPDX-License-Identifier: Apache-2.0
"""A picture of a simulation: when each guest moved, and how much of what they share was in use."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from parmig.errors import UsageError
from parmig.experiments.plots.style import PARMIG, legend, panel_figure
from parmig.experiments.simulation.results import GuestResult, Result, Timeline

SUFFIXES = (".png", ".svg")
SETUP, ROUNDS, PAUSE, FAILED = "#b8b8b8", ("#1f5fa8", "#7fb0e0"), "#c8553d", "#e0c341"
MOST_LINES = 7
"""So many groups of resources have a line: those that were used most."""

PIXELS = 1000
"""Instants at which the use is drawn, each as the mean since the one before."""


def draw(result: Result, timeline: Timeline, path: Path) -> None:
    """Write the picture to *path*, whose name ends with ``.png`` or ``.svg``.

    Raises:
        UsageError: it has another name, or cannot be written.
    """
    check_name(path)
    title = result.description or "Simulation"
    with panel_figure(2, title, sharey=False) as (figure, axes):
        figure.set_size_inches(12, min(9.0, 3.9 + 0.12 * len(result.guests)))
        _draw_guests(axes[0], result.guests)
        _draw_use(axes[1], result, timeline)
        for axis in axes:
            axis.set_xlim(0, 1.01 * result.total_s)
            axis.set_xlabel("s")
        legend(figure, axes)
        try:
            figure.savefig(path, dpi=130, metadata={"Date": None} if path.suffix == ".svg" else None)
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}; give another file") from error


def check_name(path: Path) -> None:
    """Raise :class:`UsageError` unless a picture can have this name."""
    if path.suffix not in SUFFIXES:
        raise UsageError(f"{path} is no name of a picture; expected one that ends with {' or '.join(SUFFIXES)}")


def _draw_guests(axis: Any, guests: Sequence[GuestResult]) -> None:
    for place, guest in enumerate(guests):
        axis.barh(place, guest.total_s, left=guest.began_s, color=SETUP, height=0.8, label="set-up and end")
        at = guest.began_s + guest.setup_s
        for number, each in enumerate(guest.rounds):
            length = each.duration_ms / 1000
            if not each.paused:
                axis.barh(
                    place, length, left=at, color=ROUNDS[number % 2], height=0.8, label="rounds" if not number else ""
                )
            at += length
        if guest.paused_s is not None:
            axis.barh(place, guest.downtime_s or 0.0, left=guest.paused_s, color=PAUSE, height=0.8, label="pause")
            axis.plot(guest.paused_s, place, "|", color=PAUSE, markersize=7)  # a short pause is narrower than a pixel
        if guest.error is not None:
            axis.plot(guest.ended_s, place, "x", color=PAUSE, label="failed")
    axis.set_title("guests")
    axis.set_ylim(len(guests) - 0.4, -0.6)
    axis.grid(axis="y", visible=False)
    if len(guests) <= 40:
        axis.set_yticks(range(len(guests)), [guest.name for guest in guests], fontsize=8)
    else:
        axis.set_ylabel("guests")


def _draw_use(axis: Any, result: Result, timeline: Timeline) -> None:
    members: dict[str, list[int]] = defaultdict(list)
    for number, resource in enumerate(timeline.resources):
        members[resource.group].append(number)
    means = {group: max((use.mean for use in result.use if use.group == group), default=0.0) for group in members}
    shown = sorted((group for group in members if means[group]), key=lambda group: -means[group])[:MOST_LINES]
    grid = np.linspace(0, result.total_s, PIXELS)
    for number, group in enumerate(shown):
        use = np.max([_mean_use(timeline, resource, grid) for resource in members[group]], axis=0)
        axis.plot(grid[1:], 100 * use, color=PARMIG[number % len(PARMIG)], label=group, linewidth=1.3)
    axis.set_ylim(0, 104)
    axis.set_title("in use, % (the busiest of each kind)")


def _mean_use(timeline: Timeline, resource: int, grid: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The use of *resource* between the instants of *grid*."""
    at = np.array([sample.at_s for sample in timeline.samples])
    used = np.array([sample.used.get(resource, 0.0) for sample in timeline.samples])
    total = np.concatenate([[0.0], np.cumsum(used[:-1] * np.diff(at))])
    # Past the last sample nothing is in use, which the sample says itself.
    means: npt.NDArray[np.float64] = np.diff(np.interp(grid, at, total, left=0.0)) / np.diff(grid)
    return means
