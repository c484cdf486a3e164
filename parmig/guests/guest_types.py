# SPDX-License-Identifier: Apache-2.0
"""The types that :class:`.guest.Guest` takes and returns. Import these names from there."""

from __future__ import annotations

from typing import Protocol

import msgspec


class GuestInfo(msgspec.Struct, frozen=True):
    """What both sides compare before anything is touched.

    Attributes:
        kind: the scheme of the guest: ``qemu``, ``kvm``, ``synthetic``.
        machine: what device state depends on (QEMU: the versioned machine type); compared literally.
        monitor: name and version of the monitor, for the report; not compared.
        state: how device state is taken, if a guest can do it in several ways (QEMU: ``devices``, ``migrate``).
        blocks_by_place: whether a RAM block may take the content of a block with another name, if the guest sees both
            at the same addresses. False if the device state names the blocks.
    """

    kind: str
    machine: str
    monitor: str
    state: str = ""
    blocks_by_place: bool = False


class Rescue(msgspec.Struct, frozen=True):
    """How another process lets a source guest run again.

    Attributes:
        program: ``module:function``, called with *setup*. It returns True when everything is done: the guest runs if
            it ran before its pause, and changed settings are set back. It returns False if nothing is left to do,
            because the monitor is gone. It raises if a later attempt may help. It is called until it returns, so an
            attempt may find what an earlier one did. It lets the guest run before it does anything else.
        setup: its argument. It has no descriptor and no reference to the dead process.
    """

    program: str
    setup: bytes


class StateSink(Protocol):
    """Where device state goes on the source. ``write`` may be called from ``pause`` on."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Copy *data* and pass it on. It blocks while the network is behind."""
