# SPDX-License-Identifier: Apache-2.0
"""The interface of the two ways in which the device state of a QEMU can be taken."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from parmig.guests.guest import StateSink
from parmig.guests.qemu.hardware import Hardware
from parmig.guests.qemu.qmp import Qmp
from parmig.guests.qemu.settings import Settings


class Departure(ABC):
    """One pause of a QEMU, from its preparation to its end or its undoing.

    Args:
        qmp: the session; used, not owned.
        hardware: compared at the pause with what was noted at the start of the dirty log.

    Attributes:
        started: whether the pause was begun and not undone.
        plain_pause: whether QEMU reports a guest that this has paused as one that its operator has paused.
    """

    plain_pause: ClassVar[bool]

    def __init__(self, qmp: Qmp, hardware: Hardware) -> None:
        self._qmp = qmp
        self._hardware = hardware
        self.started = False

    def prepare(self, settings: Settings) -> None:
        """Change the settings that it needs. The default needs none.

        Raises:
            GuestError: QEMU refuses.
        """

    def foresee(self, settings: Settings) -> tuple[dict[str, bool], dict[str, Any]]:
        """Capabilities and parameters that :meth:`prepare` changes, or has changed, with their values before.

        Raises:
            GuestError: QEMU is gone.
        """
        return {}, {}

    @abstractmethod
    def pause(self, sink: StateSink) -> int:
        """Stop the guest; state that QEMU sends while the guest still runs goes to *sink*.

        Returns:
            when the guest stopped, on the clock of ``time.monotonic_ns()``; for one that did not run,
            when QEMU was ready.

        Raises:
            GuestError: QEMU failed; *sink*'s errors come through as they are.
        """

    @abstractmethod
    def ran_until_pause(self) -> bool:
        """Whether pause() stopped a guest that ran. Its operator may have stopped it first, or let it run.

        Raises:
            GuestError: QEMU is gone or hangs.
        """

    @abstractmethod
    def save(self, sink: StateSink, *, stays: bool) -> None:
        """Write the device state to *sink*.

        Args:
            stays: the guest goes on here (a snapshot), so it keeps its disks where that is possible.

        Raises:
            StateError: QEMU cannot save it.
            GuestError: QEMU failed, is gone or hangs, or its hardware has changed; *sink*'s errors come through as
                they are.
        """

    @abstractmethod
    def undo(self) -> int | None:
        """Undo everything, at any stage. A guest that ran until its pause runs again.

        Returns:
            when it ran, on the clock of ``time.monotonic_ns()``; None if it was not resumed.

        Raises:
            GuestError: QEMU is gone, or does not let go.
        """

    @abstractmethod
    def undo_unfinished(self, *, running: bool, paused: bool) -> None:
        """The same, for a pause that another process began and could not end.

        Args:
            running: whether the guest ran until its pause, or, before that, when it was last asked.
            paused: whether pause() had returned, or, with ``plain_pause``, was called. Else another client may have
                paused the guest.

        Raises:
            GuestError: as :meth:`undo`.
        """

    def finish(self) -> None:
        """After a completed migration: release what QEMU still holds. The guest stays paused.

        Raises:
            GuestError: QEMU is gone.
        """
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Release everything on this side. Never raises; may be called twice."""
