# SPDX-License-Identifier: Apache-2.0
"""A guest that arrived checks its own memory, if it can."""

from __future__ import annotations

import os

from parmig.engine.demo.arrival import CHECK_PHASE, check_arrived
from parmig.engine.reporting.report import ErrorReport, Report
from parmig.guests.guest import Guest
from parmig.guests.registry import open_guest
from parmig.ram.blocks import PAGE_BYTES

GUEST = "synthetic:memory=1MiB,rate=1MiB/s"


def report() -> Report:
    return Report(parmig="0", side="destination", status="completed")


def test_a_guest_whose_memory_is_right_is_paused_and_checked() -> None:
    arrived = report()
    with open_guest(GUEST, incoming=False) as guest:
        assert guest.is_running()
        assert check_arrived(guest, arrived)
        assert not guest.is_running()
    assert (arrived.status, arrived.error) == ("completed", None)


def test_a_page_that_is_lost_fails_the_report() -> None:
    arrived = report()
    with open_guest("synthetic:memory=1MiB,rate=0", incoming=False) as guest:
        os.pwrite(guest.memory()[0].fd, b"?" * PAGE_BYTES, 7 * PAGE_BYTES)
        assert not check_arrived(guest, arrived)
    assert arrived.status == "failed"
    assert arrived.error is not None
    assert (arrived.error.type, arrived.error.phase) == ("GuestError", CHECK_PHASE)


def test_after_a_failure_nothing_is_checked() -> None:
    failed = report()
    failed.error = ErrorReport(type="PeerLostError", message="gone")
    with open_guest(GUEST, incoming=False) as guest:
        assert not check_arrived(guest, failed)
        assert guest.is_running()
    assert failed.error.type == "PeerLostError"


def test_a_guest_that_cannot_check_itself_is_left_alone() -> None:
    class Plain:
        self_check = Guest.self_check

    arrived = report()
    assert not check_arrived(Plain(), arrived)  # type: ignore[arg-type]
    assert arrived.error is None
