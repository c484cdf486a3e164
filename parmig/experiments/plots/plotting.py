# SPDX-License-Identifier: Apache-2.0
"""Draws what the results of a sweep can show: only the pictures whose factors vary."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from parmig.experiments.plots.felt import CURVE, draw_guest_speed
from parmig.experiments.plots.page import Picture, write_page
from parmig.experiments.plots.pauses import draw_convergence, draw_downtimes, draw_waterfall
from parmig.experiments.plots.processor import draw_processor
from parmig.experiments.plots.scaling import draw_scaling, draw_sizes
from parmig.experiments.results import Row, load_results, measured
from parmig.experiments.table import varied

MIN_DOWNTIMES = 4
"""Fewer are no distribution."""


def plot(directory: Path) -> Path:
    """Draw the results in *directory* there; the path of the page that has all pictures.

    Raises:
        UsageError: there are no results, or no run completed.
    """
    sweep, rows = load_results(directory)
    pictures = draw_all(rows, directory)
    return write_page(directory, sweep, rows, pictures)


def draw_all(rows: Sequence[Row], directory: Path) -> list[Picture]:
    """The pictures of *rows*, in the order of the page, written to *directory*."""
    good = measured(rows)
    told = varied(good)
    pictures = []
    for factor in ("workers", "paths"):
        if len({row[factor] for row in good if row["peer"] == "parmig"}) > 1:
            words = f"Dots are single runs, lines their medians, bars intervals of 95 %. With {factor} that scale, the "
            words += "time follows the dashed line."
            pictures.append(Picture(f"Time against {factor}", words, draw_scaling(good, directory, factor)))
    if "memory_bytes" in told:
        words = "Starting and ending cost the same whatever the size, so small guests move at a lower rate."
        pictures.append(Picture("Rate against size", words, draw_sizes(good, directory)))
    if sum(bool(row.get("downtime_ms")) for row in good) >= MIN_DOWNTIMES:
        words = "The share of runs whose guest stood still at most so long. The steeper, the more alike the runs are."
        pictures.append(Picture("Downtime", words, draw_downtimes(good, directory)))
    moved = [row for row in good if row.get("report.rounds")]
    if "dirty_rate_bytes_per_s" in varied(moved):
        words = "What each round has to send. A guest that writes faster than the network carries stays on one level."
        pictures.append(Picture("Convergence", words, draw_convergence(moved, directory)))
    if moved:
        words = "The run with the median time of all runs by parmig."
        pictures.append(Picture("One migration", words, draw_waterfall(moved, directory)))
    if any(row.get(CURVE) for row in moved):
        words = "The speed of the guest by its own count, in the run with the median time of each combination. Both "
        words += "shades of blue are rounds."
        pictures.append(Picture("What the guest feels", words, draw_guest_speed(moved, directory)))
    if any(row.get("processor_s_per_gib") for row in good):
        words = "All processes of both sides, with what starting them costs."
        pictures.append(Picture("Processor time", words, draw_processor(good, directory)))
    return pictures
