# SPDX-License-Identifier: Apache-2.0
"""Medians of the runs with the same factors, with intervals by bootstrap. No run happens here, and nothing is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import msgspec
import numpy as np

from parmig.experiments import factors
from parmig.experiments.factors import NO_DIFFERENCE, Factors, written
from parmig.experiments.results import Row, measured

RESAMPLES = 2000
INTERVAL = (2.5, 97.5)
"""Percentiles: an interval of 95 %."""

FIGURES = {
    "total_time_ms": "total ms",
    "rate_mib_per_s": "MiB/s",
    "downtime_ms": "downtime ms",
    "processor_s_per_gib": "CPU s/GiB",
}
"""What a table shows, with its heading."""


class Figure(msgspec.Struct, frozen=True):
    """A median of runs, with its interval; both ends are None if there are fewer than three runs."""

    median: float
    low: float | None = None
    high: float | None = None


class Cell(msgspec.Struct, frozen=True):
    """The runs of one combination.

    Attributes:
        factors: of all of them.
        shown: the factors that vary in the sweep, as text.
        runs: that completed.
        failed: that did not.
        figures: the fields of :data:`FIGURES` that the peer knows.
        reasons: of the failures, each once.
    """

    factors: Factors
    shown: dict[str, str]
    runs: int
    failed: int
    figures: dict[str, Figure]
    reasons: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The factors in one line, without those that make no difference."""
        told = {name: text for name, text in self.shown.items() if text != NO_DIFFERENCE}
        return ", ".join(text if name == "peer" else f"{name} {text}" for name, text in told.items())


def factors_of(row: Row) -> Factors:
    """The factors of a run."""
    return msgspec.convert({name: row[name] for name in Factors.__struct_fields__ if name in row}, Factors)


def varied(rows: Sequence[Row]) -> tuple[str, ...]:
    """The fields of :class:`.Factors` in which *rows* differ, where they make a difference."""
    return factors.varied(map(factors_of, rows))


def cells(rows: Sequence[Row], shown: tuple[str, ...]) -> list[Cell]:
    """The combinations in the order of their factors; warm-ups do not count.

    Args:
        shown: fields of :class:`.Factors` that tell the cells apart.
    """
    groups: dict[Factors, list[Row]] = {}
    for row in rows:
        if not row["warm_up"]:
            groups.setdefault(factors_of(row), []).append(row)
    return [_cell(same, groups[same], shown) for same in sorted(groups, key=msgspec.structs.astuple)]


def _cell(same: Factors, rows: Sequence[Row], shown: tuple[str, ...]) -> Cell:
    good = measured(rows)
    figures = {
        name: interval(values)
        for name in FIGURES
        if (values := [row[name] for row in good if row.get(name) is not None])
    }
    reasons = tuple(dict.fromkeys(row["reason"] for row in rows if row["reason"]))
    return Cell(same, written(same, shown), len(good), len(rows) - len(good), figures, reasons)


def interval(values: Sequence[float]) -> Figure:
    """The median of *values*, with the interval in which medians of as many values would be."""
    if len(values) < 3:
        return Figure(median(values))
    draws = np.random.default_rng(1).choice(np.asarray(values, dtype=float), (RESAMPLES, len(values)))
    low, high = np.percentile(np.median(draws, axis=1), INTERVAL)
    return Figure(median(values), float(low), float(high))


def text_table(rows: Sequence[Cell]) -> str:
    """*rows* as lines of text."""
    heads = [*(rows[0].shown if rows else ()), "runs", "failed", *FIGURES.values()]
    lines = [heads]
    for cell in rows:
        counts = [str(cell.runs), str(cell.failed) if cell.failed else ""]
        lines.append([*cell.shown.values(), *counts, *(figure_text(cell.figures.get(name)) for name in FIGURES)])
    widths = [max(len(line[place]) for line in lines) for place in range(len(heads))]
    names = len(rows[0].shown) if rows else 0
    return "\n".join(
        "  ".join(
            text.ljust(width) if place < names else text.rjust(width)
            for place, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def figure_text(figure: Figure | None) -> str:
    """The median of *figure* with three digits that count, or a dash."""
    if figure is None:
        return "-"
    return number_text(figure.median)


def number_text(value: float) -> str:
    """*value* with three digits that count, and all before the point."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
