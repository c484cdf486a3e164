# SPDX-License-Identifier: Apache-2.0
"""Finds a QEMU again, from another process that has only its QMP socket and the number of its process."""

from __future__ import annotations

import os

import msgspec

from parmig.guests.guest_types import FoundGuest, Whereabouts
from parmig.guests.qemu.qemu_process import open_pidfd, quit_qemu, start_ticks
from parmig.guests.qemu.qmp import Qmp
from parmig.guests.qemu.running import run


class QemuPlace(msgspec.Struct, frozen=True):
    """Where a QEMU is.

    Attributes:
        path: of its QMP socket.
        limit_s: of each of its steps.
        pid: its process.
        started_ticks: when that process was started, so that no other process with the same number is taken for it.
    """

    path: str
    limit_s: float
    pid: int
    started_ticks: int | None


def whereabouts(qmp: Qmp, pid: int) -> Whereabouts:
    """How the QEMU of this session, process *pid*, is found again."""
    path = os.path.abspath(qmp.path)
    place = QemuPlace(path, qmp.limit_s, pid, start_ticks(pid))
    return Whereabouts(f"qemu:{path} (process {pid})", "parmig.guests.qemu.found:find", msgspec.msgpack.encode(place))


def find(setup: bytes) -> FoundQemu | None:
    """The QEMU that :func:`whereabouts` described; None: it has ended.

    Raises:
        GuestRefusedError: it does not greet, or another client holds its socket.
        GuestError: it does not answer.
    """
    place = msgspec.msgpack.decode(setup, type=QemuPlace)
    if start_ticks(place.pid) != place.started_ticks:
        return None
    pidfd = open_pidfd(place.pid, place.path)
    try:
        return FoundQemu(Qmp(place.path, place.limit_s), pidfd)
    except BaseException:
        os.close(pidfd)
        raise


class FoundQemu(FoundGuest):
    """A QEMU that another process left behind.

    Args:
        qmp: a session; owned.
        pidfd: of its process; owned.
    """

    def __init__(self, qmp: Qmp, pidfd: int) -> None:
        self._qmp = qmp
        self._pidfd = pidfd

    def is_running(self) -> bool:
        return bool(self._qmp.execute("query-status")["running"])

    def resume(self) -> None:
        run(self._qmp)

    def discard(self) -> None:
        quit_qemu(self._qmp, self._pidfd)

    def close(self) -> None:
        """End the session; QEMU goes on as it is."""
        self._qmp.close()
        pidfd, self._pidfd = self._pidfd, -1
        if pidfd >= 0:
            os.close(pidfd)
