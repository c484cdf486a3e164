# SPDX-License-Identifier: Apache-2.0
"""Letting a QEMU go on after the process that migrated it was killed, from a process that knows only its socket."""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec

from parmig.errors import GuestError
from parmig.guests.qemu.outgoing import Outgoing
from parmig.guests.qemu.qmp import Qmp
from parmig.guests.qemu.settings import Settings


class QemuRescue(msgspec.Struct, frozen=True):
    """What to know of a QEMU whose migration was begun.

    Attributes:
        path: of its QMP socket; free again, since the process that held it is dead.
        running: whether it ran before the pause.
        capabilities: migration capabilities as they were before.
        parameters: migration parameters as they were before.
    """

    path: str
    limit_s: float
    running: bool
    capabilities: dict[str, bool]
    parameters: dict[str, Any]


def set_right(setup: bytes) -> None:
    """Cancel QEMU's migration, let the guest run if it ran, and set its settings back.

    The write tracking needs nothing: the kernel dropped it with the process that held it.

    Raises:
        GuestError: QEMU is gone or refuses.
    """
    rescue = msgspec.msgpack.decode(setup, type=QemuRescue)
    qmp = Qmp(rescue.path, rescue.limit_s)
    with contextlib.closing(qmp):
        settings = Settings(qmp, rescue.capabilities, rescue.parameters)
        try:
            Outgoing(qmp).undo_unfinished(running=rescue.running)
        finally:
            with contextlib.suppress(GuestError):
                settings.restore()
