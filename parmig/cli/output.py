# SPDX-License-Identifier: Apache-2.0
"""How a command ends: the report on standard output, the error on standard error, the exit code.

With ``--json``, standard output gets exactly one JSON object in every outcome but a usage error, which is reported
before anything is touched.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import NoReturn

import msgspec
import typer

from parmig.engine.reporting.report import ErrorReport, Report
from parmig.errors import NotVerifiedError, ParmigError
from parmig.logs import printable


def echo_error(error: ErrorReport) -> None:
    """Print the error for a person, on standard error."""
    phase = f" (phase: {error.phase})" if error.phase else ""
    typer.echo(f"parmig: {printable(error.message)}{phase}", err=True)


@contextlib.contextmanager
def showing_errors() -> Iterator[None]:
    """Print an error that is raised in the context, and end the command with its exit code."""
    try:
        yield
    except ParmigError as error:
        echo_error(ErrorReport(type=type(error).__name__, message=str(error)))
        raise typer.Exit(error.exit_code) from None


def print_json(value: object) -> None:
    """Print *value* as one JSON object on standard output: one line on a pipe, indented on a terminal."""
    encoded = msgspec.json.encode(value)
    if sys.stdout.isatty():
        encoded = msgspec.json.format(encoded, indent=2)
    typer.echo(encoded.decode())


def exit_code(report: Report) -> int:
    """The exit code of *report*: 0 only if it completed, or was only to check, and no comparison found a difference."""
    code = report.exit_code
    if code == 0 and report.status not in ("completed", "checked"):
        return ParmigError.exit_code
    if code == 0 and report.verified is False:
        return NotVerifiedError.exit_code  # only the source has the error
    return code


def finish(report: Report, *, as_json: bool) -> NoReturn:
    """Print *report* and end the command with its exit code."""
    if as_json:
        print_json(report)
    else:
        from parmig.cli.summary import print_summary  # rich takes 50 ms to import, and JSON does not need it

        print_summary(report)
    if report.error is not None:
        echo_error(report.error)
    raise typer.Exit(exit_code(report))
