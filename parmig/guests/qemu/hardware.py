# SPDX-License-Identifier: Apache-2.0
"""What a QEMU is made of, during a migration: asked for at its start, and compared at the pause."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

from parmig.errors import GuestError
from parmig.guests.qemu import device_list as devices
from parmig.guests.qemu.qmp import Qmp

_COMMANDS = ("info qtree", "info ramblock")


class Hardware:
    """The devices and RAM blocks of a QEMU.

    Args:
        qmp: the session; used, not owned.
    """

    def __init__(self, qmp: Qmp) -> None:
        self._qmp = qmp
        self._noted = devices.Inventory((), ())
        self._asked: list[Future[Any]] = []

    def note(self) -> None:
        """Remember what there is, for :meth:`check`."""
        self._noted = devices.inventory(*(self._qmp.monitor(line) for line in _COMMANDS))

    def unseen(self) -> str:
        """Which of the devices noted write memory where the kernel tracks no writes, for people; empty: none."""
        found = devices.untracked(
            self._noted.devices,
            self._qmp.monitor("info network"),
            self._qmp.execute("qom-list", path="/objects"),
            self._qmp.execute("query-named-block-nodes", flat=True),
        )
        if not found:
            return ""
        names = ", ".join(str(device) for device in found)
        return f"{names} of QEMU writes guest memory past QEMU's page tables, where the kernel tracks no writes"

    def ask(self) -> None:
        """Ask QEMU what there is now, without waiting for the answer."""
        self._asked = [self._qmp.submit("human-monitor-command", command_line=line) for line in _COMMANDS]

    def check(self) -> None:
        """Compare what :meth:`ask` asked for with what was noted.

        Raises:
            GuestError: something came or went, or QEMU is gone.
        """
        answers = [self._qmp.answer(line, future) for line, future in zip(_COMMANDS, self._asked, strict=True)]
        changed = devices.changes(self._noted, devices.inventory(*answers))
        if changed:
            raise GuestError(
                f"QEMU changed during the migration: {changed}; the destination no longer matches it; "
                "start the destination with the source's devices, and migrate again"
            )
