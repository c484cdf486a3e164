# SPDX-License-Identifier: Apache-2.0
"""A file in memory that QEMU writes to by the name ``/dev/fdset/N``, so its user needs access to no path."""

from __future__ import annotations

import contextlib
import os

from parmig.errors import GuestError
from parmig.guests.qemu.qmp import Qmp

OPAQUE = "parmig"
"""The note on parmig's descriptors in ``query-fdsets``."""


class MemoryFile:
    """A memfd of which QEMU has a write-only copy in an fdset of its own.

    Args:
        qmp: the session; used, not owned.

    Attributes:
        name: the file, for QEMU.

    Raises:
        GuestError: QEMU does not take it.
    """

    def __init__(self, qmp: Qmp) -> None:
        self._qmp = qmp
        self._fd = os.memfd_create("parmig-device-state", os.MFD_CLOEXEC)
        try:
            # QEMU opens for writing only, and takes a descriptor of just this mode (monitor_fdset_dup_fd_add).
            for_qemu = os.open(f"/proc/self/fd/{self._fd}", os.O_WRONLY | os.O_CLOEXEC)
            try:
                self._number = int(qmp.execute_with_fd("add-fd", for_qemu, opaque=OPAQUE)["fdset-id"])
            finally:
                os.close(for_qemu)
        except BaseException:
            os.close(self._fd)
            raise
        self.name = f"/dev/fdset/{self._number}"

    def read(self) -> bytes:
        """Everything that QEMU wrote."""
        return os.pread(self._fd, os.fstat(self._fd).st_size, 0)

    def close(self) -> None:
        """Release the memory, also if QEMU still has a copy. Never raises; may be called twice."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.ftruncate(fd, 0)
            os.close(fd)


def remove_fdsets(qmp: Qmp) -> None:
    """Let QEMU close all descriptors that parmig gave it.

    QEMU before 9.1 keeps a descriptor in an fdset while its guest is paused, so this is called once the guest runs.

    Raises:
        GuestError: QEMU is gone or hangs.
    """
    for fdset in qmp.execute("query-fdsets"):
        if any(entry.get("opaque") == OPAQUE for entry in fdset["fds"]):
            with contextlib.suppress(GuestError):  # it was removed just now
                qmp.execute("remove-fd", fdset_id=fdset["fdset-id"])
