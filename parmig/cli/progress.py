# SPDX-License-Identifier: Apache-2.0
"""Words for the progress of a migration, and lines on standard error."""

from __future__ import annotations

import os
import sys

from parmig.engine.reporting.report import Progress
from parmig.logs import printable
from parmig.units import format_ms, format_rate, format_size

CHECKED = "the guest continued at the destination and found its memory right"
"""Shown after a guest that can check its own memory has done so."""

DRAWN_LINES = 2
"""Height of the drawing, whatever it shows and however narrow the terminal is. Redrawing relies on it."""

_drawn = False  # whether the terminal shows the drawing, with the cursor in its last line


def note_drawing(there: bool) -> None:
    """Note whether the terminal shows the drawing, with the cursor in its last line."""
    global _drawn
    _drawn = there


def print_line(line: str) -> None:
    """One line on standard error, at once."""
    sys.stderr.write(f"{printable(line)}\n")
    sys.stderr.flush()


def say_in_signal_handler(line: str) -> None:
    """Write one line to standard error without buffers, because the interrupted code may hold the lock of one.

    The line replaces a drawing. The cursor ends where the next drawing expects it, so that appears below the line.
    """
    if _drawn:
        above = DRAWN_LINES - 1
        line = "\r\x1b[2K" + above * "\x1b[1A\x1b[2K" + line + above * "\n"
    os.write(2, f"{line}\n".encode())


def figures(progress: Progress) -> list[str]:
    """The known figures, without the status and the round."""
    parts = []
    if progress.total_pages:
        parts.append(f"{progress.handled_pages}/{progress.total_pages} pages")
    if progress.rate_bytes_per_s:
        parts.append(format_rate(progress.rate_bytes_per_s))
    if progress.remaining_bytes:
        parts.append(f"{format_size(progress.remaining_bytes)} remaining")
    if progress.time_left_ms is not None:
        parts.append(f"{format_ms(progress.time_left_ms)} left")
    if progress.converges is False:
        parts.append("does not converge")
    if progress.throttle_percent:
        parts.append(f"throttled by {progress.throttle_percent} %")
    if progress.insecure:
        parts.append("INSECURE")
    if progress.interrupted:
        parts.append(f"interrupted: {' '.join(progress.interrupted)}")
    return parts


def shares(progress: Progress) -> list[str]:
    """What each path carries, or each worker if there is only one path: a heading, then a rate each; empty: one."""
    if progress.path_rates_bytes_per_s:
        return ["paths", *(f"{path} {format_rate(rate)}" for path, rate in progress.path_rates_bytes_per_s.items())]
    rates = progress.worker_rates_bytes_per_s
    return ["workers", *map(format_rate, rates)] if len(rates) > 1 else []


def plain_line(progress: Progress) -> str:
    """*progress* on one line, for a pipe."""
    parts = [progress.status, *([f"round {progress.round}"] if progress.round else []), *figures(progress)]
    return ", ".join([*parts, *([" ".join(shares(progress))] if shares(progress) else [])])
