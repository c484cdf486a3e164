# SPDX-License-Identifier: Apache-2.0
"""Which runs belong together in a picture: panels, lines in a panel, and points on a line. Nothing is drawn here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec

from parmig.experiments.factors import matters, written
from parmig.experiments.results import Row, measured
from parmig.experiments.table import Figure, factors_of, interval, varied

MAX_LINES, MAX_PANELS = 7, 12
"""More lines cannot be told apart; more panels are no picture."""

MIN_POOL = 5
"""Runs of a distribution; fewer are steps, not a curve."""

_PANEL_FACTORS = (
    "link_rate_bytes_per_s",
    "link_delay_ns",
    "memory_bytes",
    "pattern",
    "trace",
    "dirty_rate_bytes_per_s",
    "downtime_limit_ns",
    "transport",
    "compress",
    "tracker",
    "batch_bytes",
    "auto_converge",
    "touched",
    "fill",
    "free_memory",
    "max_downtime_ns",
    "guest",
    "paths",
    "workers",
    "peer",
)
"""By what lines are spread over panels, if they are too many for one: the first first."""


class Line(msgspec.Struct, frozen=True):
    """Runs that differ only in the factor of the axis.

    Attributes:
        label: the factors that tell it from the other lines of its panel.
        peer: what moved the memory.
        points: value on the axis to the rows that have it, in ascending order.
    """

    label: str
    peer: str
    points: dict[Any, list[Row]]

    def figures(self, name: str) -> dict[Any, Figure]:
        """The medians of the field *name* along the line, where it is known."""
        values = {x: [row[name] for row in rows if row.get(name) is not None] for x, rows in self.points.items()}
        return {x: interval(known) for x, known in values.items() if known}


class Panel(msgspec.Struct, frozen=True):
    """Lines with the same axes; *title* has the factors that tell it from other panels."""

    title: str
    lines: list[Line]


def panels(rows: Sequence[Row], axis: str | None, told: Sequence[str] | None = None) -> list[Panel]:
    """The lines of *rows* along the factor *axis*, or of all runs with the same factors (None).

    Args:
        rows: of all runs; failed ones and warm-ups do not count.
        axis: field of :class:`.Factors`.
        told: the fields that tell lines apart; None: all that vary.
    """
    good = measured(rows)
    told = [name for name in (varied(good) if told is None else told) if name != axis]
    of_panels: list[str] = []
    for name in _PANEL_FACTORS:
        if name in told and _most_lines(good, told, of_panels) > MAX_LINES:
            of_panels.append(name)
    of_lines = [name for name in told if name not in of_panels]
    grouped: dict[tuple[str, ...], dict[tuple[str, ...], list[Row]]] = {}
    for row in sorted(good, key=lambda row: [row[name] for name in (*of_panels, *of_lines)]):
        panel = grouped.setdefault(_texts(row, of_panels), {})
        panel.setdefault(_texts(row, of_lines), []).append(row)
    made = []
    for title, lines in grouped.items():
        kept = [_line(label, same, axis) for label, same in list(lines.items())[:MAX_LINES]]
        made.append(Panel(", ".join(title), kept))
    return made[:MAX_PANELS]


def pooled(rows: Sequence[Row], preferred: Sequence[str]) -> list[str]:
    """The peer and those of the *preferred* fields, if they vary and leave each line :data:`MIN_POOL` runs or more."""
    good = measured(rows)
    told = ["peer"] if "peer" in varied(good) else []
    for name in preferred:
        if name in varied(good):
            sizes = Counter(_texts(row, [*told, name]) for row in good)
            if min(sizes.values()) >= MIN_POOL and len(sizes) <= MAX_LINES:
                told.append(name)
    return told


def _most_lines(rows: Sequence[Row], told: Sequence[str], of_panels: Sequence[str]) -> int:
    lines: dict[tuple[Any, ...], set[tuple[Any, ...]]] = {}
    for row in rows:
        panel = tuple(row[name] for name in of_panels)
        lines.setdefault(panel, set()).add(tuple(row[name] for name in told if name not in of_panels))
    return max((len(found) for found in lines.values()), default=0)


def _texts(row: Row, names: Sequence[str]) -> tuple[str, ...]:
    """The factors *names* of a run as text, without those that make no difference to its peer."""
    factors = factors_of(row)
    texts = written(factors, tuple(name for name in names if matters(factors, name)))
    return tuple(_short(name, text) for name, text in texts.items())


def _short(name: str, text: str) -> str:
    """``2 paths``, ``dirty-rate 10MiB/s``, and names of programs and patterns alone."""
    if name in ("workers", "paths"):
        return f"{text} {name[:-1] if text == '1' else name}"
    return text if name in ("peer", "pattern", "transport", "guest") else f"{name} {text}"


def _line(label: tuple[str, ...], rows: Sequence[Row], axis: str | None) -> Line:
    points: dict[Any, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row[axis] if axis else 0):
        points.setdefault(row[axis] if axis else None, []).append(row)
    return Line(", ".join(label) or rows[0]["peer"], rows[0]["peer"], points)
