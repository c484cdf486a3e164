# SPDX-License-Identifier: Apache-2.0
"""The types that :class:`.guest.Guest` takes and returns. Import these names from there."""

from __future__ import annotations

from abc import ABC, abstractmethod
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


class Whereabouts(msgspec.Struct, frozen=True):
    """How another process finds a guest again, for the record of the hand-over.

    Attributes:
        text: for people: the kind of monitor, and the path of its socket.
        program: ``module:function``, called with *setup*. It returns a ``FoundGuest``, or None if the monitor is gone.
            It raises if a later attempt may help.
        setup: its argument; at most 1 KiB. It has no descriptor and no reference to the process that made it.
    """

    text: str
    program: str
    setup: bytes


class FoundGuest(ABC):
    """A guest that another process left behind, in a monitor that lives on. A context manager."""

    @abstractmethod
    def is_running(self) -> bool:
        """Whether the virtual CPUs run now.

        Raises:
            GuestError: the monitor does not answer.
        """

    @abstractmethod
    def resume(self) -> None:
        """(destination) Let the guest run.

        Raises:
            GuestError: the monitor refuses or does not answer.
        """

    @abstractmethod
    def discard(self) -> None:
        """(destination) End the monitor, so that this copy never runs.

        Raises:
            GuestError: it does not end.
        """

    @abstractmethod
    def close(self) -> None:
        """Leave the guest as it is. Never raises; may be called twice."""

    def __enter__(self) -> FoundGuest:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class StateSink(Protocol):
    """Where device state goes on the source. ``write`` may be called from ``pause`` on."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Copy *data* and pass it on. It blocks while the network is behind."""
