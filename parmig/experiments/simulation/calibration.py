# SPDX-License-Identifier: Apache-2.0
"""Costs that fit measured runs, by least squares, and how far the runs are from them.

Each cost is fitted to the part of a run in which it appears alone: set-up, rounds of the running guest, the pause, what
is left, and the rounds of one worker that no link holds back. A run on a busy machine is an outlier: it gets less
weight the farther it is off (Huber's weights), so that a few of them do not change the costs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from parmig.engine.prediction.costs import Costs
from parmig.errors import UsageError
from parmig.experiments.results import Row, load_results, measured
from parmig.ram.blocks import PAGE_BYTES
from parmig.units import GIB

MIN_RUNS = 5
"""Fewer say more of chance than of the hosts."""

TURNS, HUBER = 30, 1.345
"""Huber's constant: residuals up to so many standard deviations have their full weight."""

MS = 1000
Floats = npt.NDArray[np.float64]
Factor = Callable[[Row], float]
"""How often a run has a cost."""


class Fit(msgspec.Struct, frozen=True):
    """Costs that were fitted together.

    Attributes:
        what: the part of a run, for people.
        values: cost to its value, in its unit.
        samples: how many runs or rounds there were.
        residual_ms: median of the absolute differences between what was measured and what the costs give.
        residual_90_ms: of nine in ten of them.
        kept: costs that these runs cannot show, with their defaults; and why.
    """

    what: str
    values: dict[str, float]
    samples: int
    residual_ms: float
    residual_90_ms: float
    kept: str = ""


class Calibration(msgspec.Struct, frozen=True):
    """All costs, and how they were found."""

    costs: Costs
    fits: tuple[Fit, ...]


def calibrate(directory: Path) -> Calibration:
    """The costs that fit the runs of parmig in *directory*.

    Raises:
        UsageError: there are not enough of them.
    """
    _, rows = load_results(directory)
    rows = [row for row in measured(rows) if row["peer"] == "parmig" and row.get("report.rounds")]
    if len(rows) < MIN_RUNS:
        raise UsageError(
            f"{directory} has {len(rows)} runs of parmig that completed; expected at least {MIN_RUNS}: raise repeats, "
            "and run parmig bench again"
        )
    return fit_costs(rows)


def fit_costs(rows: Sequence[Row]) -> Calibration:
    """The costs that fit *rows*, all of which completed."""
    fits = [
        _fixed("set-up", rows, [_setup_s(row) for row in rows], {"setup_s": _once, "setup_worker_s": _workers}),
        _rounds(rows),
        _pauses(rows),
        _fixed(
            "the rest",
            rows,
            [_rest_s(row) for row in rows],
            {"end_s": _once, "end_worker_s": _workers, "count_s": lambda row: len(_running(row))},
        ),
        _one_worker(rows),
    ]
    values = {name: value for fit in fits for name, value in fit.values.items()}
    return Calibration(msgspec.structs.replace(Costs(), **values), tuple(fits))


def calibration_text(calibration: Calibration) -> str:
    """What was fitted, for people."""
    lines = []
    for fit in calibration.fits:
        values = ", ".join(f"{name} {value:.4g}" for name, value in fit.values.items())
        line = f"{fit.what}: {values or 'nothing'}"
        if fit.values:
            line += f" (residuals {fit.residual_ms:.1f} ms, {fit.residual_90_ms:.1f} ms for 90 % of {fit.samples})"
        lines.append(f"{line}; {fit.kept}" if fit.kept else line)
    return "\n".join(lines)


# -- the parts of a run -------------------------------------------------------------------------


def _setup_s(row: Row) -> float:
    return float(row["setup_time_ms"]) / MS


def _rest_s(row: Row) -> float:
    """What belongs to no round and not to the pause."""
    running_ms = sum(each["duration_ms"] for each in _running(row))
    return float(row["total_time_ms"] - row["setup_time_ms"] - running_ms - row["downtime_ms"]) / MS


def _running(row: Row) -> list[dict[str, Any]]:
    """The rounds before the pause."""
    return [each for each in row["report.rounds"] if not each["paused"]]


def _once(_: Row) -> float:
    return 1.0


def _workers(row: Row) -> float:
    return float(row["workers"])


def _fixed(what: str, rows: Sequence[Row], parts_s: Sequence[float], costs: Mapping[str, Factor]) -> Fit:
    """Times that are made of fixed costs.

    Args:
        parts_s: how long this part of each run took.
        costs: each with how often a run has it. The first one is always fitted; the others where that differs.
    """
    times_s = np.array(parts_s)
    fitted: list[str] = []
    columns: list[Floats] = []
    kept: list[str] = []
    for name, factor in costs.items():
        column = np.array([float(factor(row)) for row in rows])
        if columns and np.ptp(column) == 0:
            default = getattr(Costs(), name)
            times_s = times_s - default * column
            kept.append(f"{name} stays {default:.4g}, because it is in all runs as often")
        else:
            fitted.append(name)
            columns.append(column)
    fit = _fit(what, np.stack(columns, axis=1), times_s, fitted)
    return msgspec.structs.replace(fit, kept="; ".join(kept))


def _rounds(rows: Sequence[Row]) -> Fit:
    """What a round takes beside its pages. The rates of runs that are alike are fitted with it, and not kept."""
    alike = sorted({_alike(row) for row in rows})
    samples = [
        (alike.index(_alike(row)), each["wire_bytes"], each["duration_ms"] / MS)
        for row in rows
        for each in _running(row)
    ]
    if all(len(_running(row)) == 1 for row in rows):
        return Fit("rounds", {}, 0, 0.0, 0.0, f"round_s stays {Costs().round_s}: it needs guests that write")
    columns = np.zeros((len(samples), len(alike) + 1))
    columns[:, 0] = 1
    for place, (group, wire_bytes, _) in enumerate(samples):
        columns[place, 1 + group] = wire_bytes / GIB
    return _fit("rounds", columns, np.array([time_s for *_, time_s in samples]), ["round_s"])


def _pauses(rows: Sequence[Row]) -> Fit:
    """What the pause takes beside its pages, at the rate of the largest round before it."""
    times_s = []
    for row in rows:
        rounds = row["report.rounds"]
        largest = max(_running(row), key=lambda each: float(each["wire_bytes"]))
        rate = largest["wire_bytes"] / (largest["duration_ms"] / MS)
        pages_s = sum(each["wire_bytes"] for each in rounds if each["paused"]) / rate
        times_s.append(row["downtime_ms"] / MS - pages_s)
    return _fit("pauses", np.ones((len(rows), 1)), np.array(times_s), ["pause_s"])


def _one_worker(rows: Sequence[Row]) -> Fit:
    """What one worker carries if no link holds it back. Its receive worker is the slower one of the pair."""
    samples = [
        (each["sent_pages"] * PAGE_BYTES / GIB, each["duration_ms"] / MS)
        for row in rows
        if row["workers"] == 1 and not row["link_rate_bytes_per_s"] and row["compress"] == "none"
        for each in _running(row)
    ]
    if len(samples) < MIN_RUNS:
        value = Costs().destination_s_per_gib
        kept = f"destination_s_per_gib stays {value}: it needs runs of one worker without link-rate"
        return Fit("a worker", {}, 0, 0.0, 0.0, kept)
    sent_gib, times_s = np.array(samples).T
    return _fit("a worker", np.stack([sent_gib, np.ones(len(samples))], axis=1), times_s, ["destination_s_per_gib"])


def _alike(row: Row) -> tuple[Any, ...]:
    """Runs with the same of these have the same rate."""
    return tuple(row[name] for name in ("link_rate_bytes_per_s", "paths", "workers", "transport", "compress", "guest"))


# -- least squares ------------------------------------------------------------------------------


def _fit(what: str, columns: Floats, times_s: Floats, names: Sequence[str]) -> Fit:
    """Fit the coefficients of *columns*, none of which is below 0; the first ones are the costs *names*."""
    weights = np.ones(len(times_s))
    for _ in range(TURNS):
        found = not_negative(columns * weights[:, None], times_s * weights)
        off = np.abs(times_s - columns @ found)
        scale = 1.4826 * float(np.median(off)) or 1e-9
        weights = np.sqrt(np.minimum(1.0, HUBER * scale / np.maximum(off, 1e-12)))
    values = {name: round(float(value), 6) for name, value in zip(names, found, strict=False)}
    low, high = np.percentile(off, [50, 90]) * MS
    return Fit(what, values, len(times_s), float(low), float(high))


def not_negative(columns: Floats, values: Floats) -> Floats:
    """The coefficients of *columns* that fit *values* best and are not below 0.

    Those that would be are 0, the lowest one first, and the others are fitted again.
    """
    used = list(range(columns.shape[1]))
    found = np.zeros(columns.shape[1])
    while used:
        part = np.linalg.lstsq(columns[:, used], values, rcond=None)[0]
        if part.min() >= 0:
            found[used] = part
            break
        used.pop(int(part.argmin()))
    return found
