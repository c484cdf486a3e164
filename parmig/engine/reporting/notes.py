# SPDX-License-Identifier: Apache-2.0
"""The events of a migration, one JSON object each. Field names are a contract, like those of the report."""

from __future__ import annotations

import msgspec

from parmig.engine.reporting.change import Change
from parmig.engine.reporting.report import Report, RoundReport


class Note(msgspec.Struct, frozen=True, kw_only=True, tag_field="event"):
    """Root of the events. ``at_ms`` is the time since the command began."""

    at_ms: float


class BeginNote(Note, frozen=True, kw_only=True, tag="begin"):
    """The command begins at *time* (UTC, ISO 8601), with status ``setup``; ``parmig status`` has the same names."""

    time: str
    name: str
    command: str
    process: int
    peer: str
    parmig: str


class StatusNote(Note, frozen=True, kw_only=True, tag="status"):
    """The status has changed."""

    status: str


class RoundNote(Note, frozen=True, kw_only=True, tag="round"):
    """(source) A round has ended."""

    round: RoundReport


class OutlookNote(Note, frozen=True, kw_only=True, tag="outlook"):
    """(source) What is expected since the last round ended, as in the status of ``parmig status``."""

    converges: bool
    time_left_ms: float | None
    predicted_downtime_ms: float | None


class ThrottleNote(Note, frozen=True, kw_only=True, tag="throttle"):
    """(source) The guest is slowed down by another share of its time; 0: it runs freely."""

    throttle_percent: int


class ChannelsNote(Note, frozen=True, kw_only=True, tag="channels"):
    """(source) Other channels than before have no connection now; empty: all have one."""

    interrupted: list[str]


class ChangeNote(Note, frozen=True, kw_only=True, tag="change"):
    """(source) Somebody has changed limits."""

    change: Change


class PhaseNote(Note, frozen=True, kw_only=True, tag="downtime-phase"):
    """(source) How long one phase of the pause took. All of them come after the pause."""

    phase: str
    took_ms: float


class EndNote(Note, frozen=True, kw_only=True, tag="end"):
    """The command has ended, with this report."""

    report: Report


encode = msgspec.json.Encoder().encode_lines


def notes_at_end(report: Report) -> list[Note]:
    """The events that follow from the *report* at the end."""
    at_ms = report.total_time_ms
    phases = msgspec.structs.asdict(report.downtime_phases_ms) if report.downtime_ms is not None else {}
    notes: list[Note] = [PhaseNote(at_ms=at_ms, phase=name, took_ms=ms) for name, ms in phases.items()]
    return [*notes, EndNote(at_ms=at_ms, report=report)]
