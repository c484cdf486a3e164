# SPDX-License-Identifier: Apache-2.0
"""The result of a simulation for people, as lines of text."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import median

from parmig.experiments.simulation.results import GuestResult, Result, Use
from parmig.units import format_size

MOST_GUESTS = 20
"""More guests are summed up, and only the slowest are listed."""


def result_text(result: Result) -> str:
    """What happened, and why it did not go faster."""
    lines = [result.description] if result.description else []
    lines.append(f"{_count(result.moved, 'guest')} moved in {_seconds(result.total_s)}")
    if result.failed:
        lines[-1] += f", {result.failed} did not"
    lines.append(f"bottleneck: {result.bottleneck} ({result.bottleneck_part:.0%} of the time of all guests)")
    if result.advice:
        lines.append(f"what helps: {result.advice}")
    others = [f"{name} {part:.0%}" for name, part in list(result.limited.items())[1:] if part >= 0.005]
    if others:
        lines.append(f"other limits: {', '.join(others)}")
    lines += ["", *_guest_lines(result.guests), "", *_use_lines(result.use)]
    lines += [f"{guest.name} failed: {guest.error}" for guest in result.guests[:MOST_GUESTS] if guest.error]
    return "\n".join(lines)


def _guest_lines(guests: Sequence[GuestResult]) -> list[str]:
    shown = list(guests)
    lines = []
    if len(guests) > MOST_GUESTS:
        shown = sorted(guests, key=lambda guest: -guest.total_s)[:MOST_GUESTS]
        totals = [guest.total_s for guest in guests]
        downtimes = [guest.downtime_s for guest in guests if guest.downtime_s is not None]
        lines.append(
            f"{len(guests)} guests: total time {_seconds(median(totals))} (median), {_seconds(max(totals))} (longest); "
            f"downtime {_seconds(median(downtimes or [0]))} (median), {_seconds(max(downtimes, default=0))} (longest)"
        )
        lines.append(f"the {MOST_GUESTS} slowest:")
    rows = [("guest", "memory", "began", "total", "rounds", "downtime", "sent", "on the wire", "throttled")]
    for guest in shown:
        rows.append(
            (
                guest.name,
                format_size(guest.memory_bytes),
                _seconds(guest.began_s),
                _seconds(guest.total_s),
                str(len(guest.rounds)),
                "-" if guest.downtime_s is None else _seconds(guest.downtime_s),
                format_size(guest.sent_bytes),
                format_size(guest.wire_bytes),
                f"{guest.max_throttle_percent} %" if guest.max_throttle_percent else "-",
            )
        )
    return [*lines, *_aligned(rows)]


def _use_lines(uses: Iterable[Use]) -> list[str]:
    """The use of each resource; alike ones in one line."""
    groups: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for use in uses:
        groups[use.group, f"{use.mean:.0%}", f"{use.most:.0%}"].append(use.name)
    rows = [("in use", "mean", "most")]
    for (group, mean, most), names in groups.items():
        rows.append((names[0] if len(names) == 1 else f"{group} ({len(names)} alike)", mean, most))
    return _aligned(rows)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number != 1 else ''}"


def _seconds(seconds: float) -> str:
    """*seconds* for people."""
    if seconds < 10:
        return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"
    return f"{seconds:.1f} s" if seconds < 600 else f"{seconds / 60:.1f} min"
