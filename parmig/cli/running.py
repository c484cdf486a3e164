# SPDX-License-Identifier: Apache-2.0
"""How a command that moves a guest runs: its processes, its log, its report, whatever happens."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

import typer

from parmig import logs
from parmig.cli.options import Output
from parmig.cli.output import echo_error, finish, showing_errors
from parmig.config import GUARDIAN_PROGRAM
from parmig.engine.reporting.report import ErrorReport, GuestReport, Report
from parmig.errors import CancelledError, OutcomeUnknownError, ParmigError, UsageError
from parmig.guests.registry import import_guest
from parmig.linux import process
from parmig.processes import fork_server
from parmig.units import MIB
from parmig.version import __version__

_logger = logging.getLogger(__name__)

SWITCH_INTERVAL_S = 0.0002
"""How long one thread of this process may keep the interpreter while another waits. The loop, the guest's thread and
QMP's hand the pause from one to the other; with Python's 5 ms each hand-over may cost that much."""

KEPT_MEMORY_BYTES = 8 * MIB
"""Freed memory that malloc keeps in this process and in the monitors that parmig starts. Otherwise each copy of a large
device state in the pause faults in new pages: 4 MiB through a pipe took 20 ms, and takes 4 ms so."""


def failed_report(error: BaseException, *, side: str, guest: str) -> Report:
    """The report of a migration that ended with *error* before the engine could write one."""
    status = "failed"
    if isinstance(error, CancelledError):
        status = "cancelled"
    elif isinstance(error, OutcomeUnknownError):
        status = "unknown"
    phase = getattr(error, "phase", None) or "setup"
    return Report(
        parmig=__version__,
        side=side,
        status=status,
        error=ErrorReport(type=type(error).__name__, message=str(error) or type(error).__name__, phase=phase),
        guest=GuestReport(kind=guest.partition(":")[0]),
    )


def run(body: Callable[[], Report], *, side: str, guest: str, output: Output, programs: Sequence[str] = ()) -> NoReturn:
    """Run *body*, print its report, and end the command.

    Call it before anything else is opened: it forks the fork server.

    Args:
        body: does the work. A ParmigError from it is reported like one from the engine. Any other exception is a
            bug of parmig and is printed with its traceback.
        side: ``source`` or ``destination``, for a report that is made here.
        guest: the value of ``--guest``, for the same.
        output: what the user wants to see.
        programs: what *body* will run in processes of its own.
    """
    with contextlib.suppress(UsageError):  # it is reported once the guest is opened
        import_guest(guest)
    process.keep_freed_memory(KEPT_MEMORY_BYTES)  # the processes that are forked inherit it
    fork_server(*programs)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    try:
        with logs.logging_to(output.log_file, output.verbose):
            report = _logged(body, side, guest)
    except UsageError as error:
        echo_error(ErrorReport(type="UsageError", message=str(error)))
        raise typer.Exit(error.exit_code) from None
    finish(report, as_json=output.json)


@contextlib.contextmanager
def watching(guest: str, output: Output) -> Iterator[None]:
    """Prepare for what only watches the guest named by ``--guest``. What fails in the context ends the command.

    Enter it before anything else is opened: it forks the fork server.
    """
    with contextlib.suppress(UsageError):  # it is reported once the guest is opened
        import_guest(guest)
    fork_server(GUARDIAN_PROGRAM)
    with showing_errors(), logs.logging_to(output.log_file, output.verbose):
        logs.begin_side("source")
        try:
            yield
        except KeyboardInterrupt:
            raise CancelledError("cancelled before the start") from None


def _logged(body: Callable[[], Report], side: str, guest: str) -> Report:
    """Run *body* and return its report, or one of its failure. Writes the first and the last line of the log."""
    logs.begin_side(side)
    _logger.info("parmig %s begins, process %d, guest %s", __version__, os.getpid(), guest)
    report = _done(body, side, guest)
    if report.error is None:
        _logger.info("ended: %s", report.status)
    else:
        error = report.error
        _logger.error(
            "ended: %s, %s in phase %r: %s", report.status, error.type, error.phase, error.message, extra=logs.REPORTED
        )
    return report


def _done(body: Callable[[], Report], side: str, guest: str) -> Report:
    try:
        return body()
    except UsageError:
        raise
    except ParmigError as error:
        return failed_report(error, side=side, guest=guest)
    except KeyboardInterrupt:
        return failed_report(CancelledError("cancelled before the start"), side=side, guest=guest)
    except Exception as error:
        traceback.print_exc()
        return failed_report(error, side=side, guest=guest)
