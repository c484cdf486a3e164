# SPDX-License-Identifier: Apache-2.0
"""Letting a QEMU go on after the process that migrated it was killed, from a process that knows only its socket."""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec

from parmig.guests.qemu.outgoing import Outgoing
from parmig.guests.qemu.qemu_process import start_ticks
from parmig.guests.qemu.qmp import Qmp
from parmig.guests.qemu.settings import Settings


class QemuRescue(msgspec.Struct, frozen=True):
    """What to know of a QEMU whose migration was begun.

    Attributes:
        path: of its QMP socket; free again, since the process that held it is dead.
        pid: QEMU's process.
        started_ticks: when that was started, so that another of the same number is not taken for it.
        running: whether the guest ran until its pause, or, before that, when this was made.
        paused: whether pause() had returned by then.
        capabilities: migration capabilities as they were before.
        parameters: migration parameters as they were before.
    """

    path: str
    limit_s: float
    pid: int
    started_ticks: int | None
    running: bool
    paused: bool
    capabilities: dict[str, bool]
    parameters: dict[str, Any]


def set_right(setup: bytes) -> bool:
    """Cancel QEMU's migration, let the guest run if it ran, and then set QEMU's settings back.

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
        Outgoing(qmp).undo_unfinished(running=rescue.running, paused=rescue.paused)
        Settings(qmp, rescue.capabilities, rescue.parameters).restore()
    return True
