# SPDX-License-Identifier: Apache-2.0
"""Helps the network find a guest: its network devices send their addresses to the switches."""

from __future__ import annotations

from parmig.guests.qemu.qmp import Qmp

TIMES = ("initial", "max", "rounds", "step")
"""When and how often: parameters ``announce-...`` of QEMU's migration, and arguments of ``announce-self``."""


def announce(qmp: Qmp) -> None:
    """Begin to announce; QEMU repeats it by itself, 5 times within a second unless its user chose otherwise.

    Raises:
        GuestError: QEMU is gone or refuses.
    """
    parameters = qmp.execute("query-migrate-parameters")
    qmp.execute("announce-self", **{name: parameters[f"announce-{name}"] for name in TIMES})
