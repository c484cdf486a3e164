# SPDX-License-Identifier: Apache-2.0
"""The devices and RAM blocks of a QEMU: noted at the start of a migration, and compared at the pause."""

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
        """Note the devices and RAM blocks, for :meth:`check`."""
        self._noted = devices.inventory(*(self._qmp.monitor(line) for line in _COMMANDS))

    def unseen(self) -> str:
        """The noted devices whose writes to memory the kernel does not track, for people; empty: none."""
        untracked = devices.untracked(
            self._noted.devices,
            self._qmp.monitor("info network"),
            self._qmp.execute("qom-list", path="/objects"),
            self._qmp.execute("query-named-block-nodes", flat=True),
        )
        if not untracked:
            return ""
        names = ", ".join(str(device) for device in untracked)
        return f"{names} of QEMU writes guest memory past QEMU's page tables, where the kernel tracks no writes"

    def ask(self) -> None:
        """Ask QEMU for its devices and RAM blocks now, and do not wait for the answers."""
        self._asked = [self._qmp.submit("human-monitor-command", command_line=line) for line in _COMMANDS]

    def check(self) -> None:
        """Compare the answers to :meth:`ask` with what was noted.

        Raises:
            GuestError: a device or block was added or removed, or QEMU is gone.
        """
        answers = [self._qmp.answer(line, future) for line, future in zip(_COMMANDS, self._asked, strict=True)]
        changed = devices.changes(self._noted, devices.inventory(*answers))
        if changed:
            raise GuestError(
                f"QEMU changed during the migration: {changed}; the destination no longer matches it; "
                "start the destination with the source's devices, and migrate again"
            )
