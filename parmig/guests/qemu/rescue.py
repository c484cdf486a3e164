# SPDX-License-Identifier: Apache-2.0
"""Lets the guest of a QEMU run after the sender was killed, from another process that has only the QMP socket."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import msgspec
from msgspec.structs import replace

from parmig.guests.guest import Rescue
from parmig.guests.qemu.departure import Departure
from parmig.guests.qemu.hardware import Hardware
from parmig.guests.qemu.qemu_process import start_ticks
from parmig.guests.qemu.qmp import Qmp
from parmig.guests.qemu.settings import Settings
from parmig.guests.qemu.state_choice import DEPARTURES


class QemuRescue(msgspec.Struct, frozen=True):
    """What the guardian must know about a QEMU whose migration has begun.

    Attributes:
        path: path of its QMP socket, which is free again, because the process that held it is dead.
        pid: QEMU's process.
        started_ticks: when that process was started, so that no other process with the same number is taken for it.
        running: whether the guest ran until its pause, or, before that, when this was made.
        paused: whether it may be paused by parmig by then (see Departure.undo_unfinished).
        state: ``devices`` or ``migrate``: how it was paused.
        capabilities: migration capabilities as they were before.
        parameters: migration parameters as they were before.
    """

    path: str
    limit_s: float
    pid: int
    started_ticks: int | None
    running: bool
    paused: bool
    state: str
    capabilities: dict[str, bool]
    parameters: dict[str, Any]


def set_right(setup: bytes) -> bool:
    """Undo QEMU's pause, let the guest run if it ran, and then set QEMU's settings back.

    The write tracking needs nothing: the kernel dropped it with the process that held it.

    Returns:
        False when this QEMU has ended.

    Raises:
        GuestRefusedError: QEMU does not greet, or another client holds the socket.
        GuestError: QEMU does not answer or refuses.
    """
    rescue = msgspec.msgpack.decode(setup, type=QemuRescue)
    if start_ticks(rescue.pid) != rescue.started_ticks:
        return False
    with contextlib.closing(Qmp(rescue.path, rescue.limit_s)) as qmp:
        departure = DEPARTURES[rescue.state](qmp, Hardware(qmp))
        departure.undo_unfinished(running=rescue.running, paused=rescue.paused)
        Settings(qmp, rescue.capabilities, rescue.parameters).restore()
    return True


class RescueNotes:
    """Keeps the notes for the guardian about a QEMU that is about to leave.

    Args:
        qmp: the session; used, not owned.
        pid: QEMU's process.
        state: of DEPARTURES.
        departure: the guest's; used, not owned.
        settings: the same.
    """

    def __init__(self, qmp: Qmp, pid: int, state: str, departure: Departure, settings: Settings) -> None:
        self._qmp = qmp
        self._pid = pid
        self._state = state
        self._departure = departure
        self._settings = settings
        self._noted: QemuRescue | None = None

    def note(self, *, settling: bool, pausing: bool) -> Rescue:
        """What is known now. See :meth:`.guest.Guest.rescue`.

        Raises:
            GuestError: QEMU is gone or hangs.
        """
        if self._noted is None:
            noted = self._first()
        elif self._departure.started:
            noted = replace(self._noted, running=self._departure.ran_until_pause(), paused=True)
        else:
            stops = settling or (pausing and self._departure.plain_pause)
            noted = replace(self._noted, running=self._running() if stops else self._noted.running, paused=stops)
        self._noted = noted
        return Rescue("parmig.guests.qemu.rescue:set_right", msgspec.msgpack.encode(noted))

    def _first(self) -> QemuRescue:
        """Before anything is changed."""
        capabilities, parameters = self._departure.foresee(self._settings)
        return QemuRescue(
            path=os.path.abspath(self._qmp.path),
            limit_s=self._qmp.limit_s,
            pid=self._pid,
            started_ticks=start_ticks(self._pid),
            running=self._running(),
            paused=False,
            state=self._state,
            capabilities=capabilities,
            parameters=parameters,
        )

    def _running(self) -> bool:
        return bool(self._qmp.execute("query-status")["running"])

    def forget(self) -> None:
        """Everything was undone, so the next note is a first one again."""
        self._noted = None
