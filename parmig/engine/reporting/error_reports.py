# SPDX-License-Identifier: Apache-2.0
"""Errors as messages between processes. Text of the peer is cleaned, so that it is safe to show."""

from __future__ import annotations

from parmig.engine.reporting.report import ErrorReport
from parmig.errors import ParmigError, by_name

MAX_NAME = 255
MAX_TEXT = 4000


def peer_text(text: str, limit: int = MAX_TEXT) -> str:
    """Text from the peer as it may reach a terminal or a log: one line, without control characters, not too long."""
    shown = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text[:limit])
    return shown if len(text) <= limit else f"{shown} [and {len(text) - limit} characters more]"


def describe_error(error: BaseException, phase: str | None = None) -> ErrorReport:
    """The report of *error*, as it is sent and shown."""
    known = isinstance(error, ParmigError)
    message = str(error) if known else f"{type(error).__name__}: {error}"
    return ErrorReport(
        type=type(error).__name__ if known else "ParmigError",
        message=message,
        phase=getattr(error, "phase", None) or phase,
    )


def restore_error(report: ErrorReport, prefix: str = "") -> ParmigError:
    """The error that *report* describes, as the class it names."""
    error = by_name(report.type)(prefix + report.message)
    error.phase = report.phase
    return error
