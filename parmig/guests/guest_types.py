# SPDX-License-Identifier: Apache-2.0
"""What :class:`.guest.Guest` takes and returns; import these names from there."""

from __future__ import annotations

from typing import Protocol

import msgspec


class GuestInfo(msgspec.Struct, frozen=True):
    """What both sides compare before anything is touched.

    Attributes:
        kind: the scheme of the guest: ``qemu``, ``kvm``, ``synthetic``.
        machine: what device state depends on (QEMU: the versioned machine type); compared literally.
        monitor: name and version of the VMM, for the report; not compared.
        state: how device state is taken, where a guest knows several ways (QEMU: ``devices``, ``migrate``).
    """

    kind: str
    machine: str
    monitor: str
    state: str = ""


class Rescue(msgspec.Struct, frozen=True):
    """What sets a source guest right from another process.

    Attributes:
        program: ``module:function``, called with *setup*. It returns True when all is done: the guest runs if it
            ran before its pause, and what was changed is set back; False when nothing is left to do, because the
            monitor is gone. It raises where another attempt, later, may help. It is called until it returns, so
            an attempt may find what the one before it did. First of all comes that the guest runs.
        setup: its argument; no descriptor, no reference to the dead process.
    """

    program: str
    setup: bytes


class StateSink(Protocol):
    """Where device state goes on the source. ``write`` may be called from ``pause`` on."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Take *data*, copying it; blocks while the network is behind."""
