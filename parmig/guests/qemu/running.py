# SPDX-License-Identifier: Apache-2.0
"""Lets the guest of a QEMU run, and finds out when it did."""

from __future__ import annotations

import contextlib
import time

from parmig.errors import GuestError
from parmig.guests.qemu.qmp import Qmp

NOT_FINALIZED = "not finalized"
"""Part of QEMU's answer to ``cont`` while it still ends a migration (qmp_cont in monitor/qmp-cmds.c)."""

CONT_STEP_S = 0.02
"""How often ``cont`` is tried then."""


def run(qmp: Qmp) -> int:
    """Let the guest run as soon as QEMU's migration has ended.

    QEMU's answer comes milliseconds after the guest runs, because the virtual CPUs then hold the lock that
    its main loop needs. The RESUME event carries the time.

    Returns:
        when the guest ran, on the clock of ``time.monotonic_ns()``.

    Raises:
        GuestError: QEMU cannot; the message has its words.
    """
    with qmp.listen("RESUME") as listener:
        _cont(qmp)
        answered_ns = time.monotonic_ns()
        event = None
        with contextlib.suppress(GuestError):  # lost since the answer: the guest runs all the same
            event = listener.take()  # it is sent before the answer, so it is here; not if the guest ran already
        return answered_ns if event is None else min(event.at_ns, answered_ns)


def _cont(qmp: Qmp) -> None:
    deadline = time.monotonic() + qmp.limit_s
    while True:
        try:
            qmp.execute("cont")
        except GuestError as error:
            if NOT_FINALIZED not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(CONT_STEP_S)
        else:
            return
