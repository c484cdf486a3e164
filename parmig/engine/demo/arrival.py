# SPDX-License-Identifier: Apache-2.0
"""Checks the memory of a guest that has arrived, and notes how fast it runs, if the guest can do that."""

from __future__ import annotations

from parmig.engine.reporting.guest_speed import note_arrival
from parmig.engine.reporting.report import ErrorReport, Report
from parmig.errors import GuestError
from parmig.guests.guest import Guest
from parmig.guests.pulse import Pulsing

CHECK_PHASE = "check"


def check_arrived(guest: Guest, report: Report) -> bool:
    """Have *guest* check itself if *report* has no error; a failed check becomes the error of *report*.

    Returns:
        whether the guest checked its memory, and it was right.
    """
    if report.error is not None:
        return False
    try:
        right = guest.self_check()
        if isinstance(guest, Pulsing):
            report.guest_speed = note_arrival(report.guest_speed, guest.pulse())
        return right
    except GuestError as error:
        report.status = "failed"
        report.error = ErrorReport(type=type(error).__name__, message=str(error), phase=CHECK_PHASE)
        return False
