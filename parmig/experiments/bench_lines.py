# SPDX-License-Identifier: Apache-2.0
"""The progress of a sweep, as lines on standard error."""

from __future__ import annotations

import sys

from parmig.experiments.factors import NO_DIFFERENCE, written
from parmig.experiments.results import Row
from parmig.experiments.running import Step
from parmig.experiments.table import number_text


class StepLines:
    """Writes a line for each run that has ended; on a terminal, also one that stays while the run lasts.

    Args:
        shown: fields of :class:`.Factors` that tell the runs apart.
        is_terminal: whether a line can be overwritten.
    """

    def __init__(self, shown: tuple[str, ...], *, is_terminal: bool) -> None:
        self._shown = shown
        self._is_terminal = is_terminal

    def __call__(self, step: Step) -> None:
        """Write the line of *step*."""
        clear = "\r\x1b[2K" if self._is_terminal else ""
        line = step_line(step, self._shown)
        if step.row is not None:
            sys.stderr.write(f"{clear}{line}\n")
        elif self._is_terminal:
            sys.stderr.write(f"{clear}{line} ...")
        sys.stderr.flush()


def step_line(step: Step, shown: tuple[str, ...]) -> str:
    """``run 3 of 12, 2 min left: workers 2, paths 1: 512 MiB/s, downtime 12.3 ms``."""
    told = {name: text for name, text in written(step.run.factors, shown).items() if text != NO_DIFFERENCE}
    factors = ", ".join(text if name == "peer" else f"{name} {text}" for name, text in told.items())
    parts = [f"run {step.number} of {step.total}{_left(step.left_s)}"]
    parts += [factors] if factors else []
    parts += [_outcome(step.row)] if step.row is not None else []
    return ": ".join(parts) + (" (warm-up)" if step.run.repeat == 0 else "")


def _left(left_s: float | None) -> str:
    if not left_s:
        return ""
    if left_s < 90:
        return f", {left_s:.0f} s left"
    return f", {left_s / 60:.0f} min left" if left_s < 5400 else f", {left_s / 3600:.1f} h left"


def _outcome(row: Row) -> str:
    if row["status"] != "completed":
        return f"failed: {row['reason']}"
    downtime = row["downtime_ms"]
    return f"{row['rate_mib_per_s']:.0f} MiB/s" + (f", downtime {number_text(downtime)} ms" if downtime else "")
