# SPDX-License-Identifier: Apache-2.0
"""Opens the files that a running QEMU maps, whatever their names. QEMU may change its descriptors at any time."""

from __future__ import annotations

import fcntl
import os

from parmig.errors import GuestRefusedError
from parmig.guests.qemu.maps import Extent
from parmig.linux import privileges, ptrace, trusted_files


def open_mapped(pid: int, extent: Extent, address: int, name: str, *, writable: bool) -> int:
    """A descriptor of the file of a RAM block, for reading or for both. The caller closes it.

    A file that belongs to another user need not be open to this one: with CAP_SYS_PTRACE and CAP_FOWNER the descriptor
    of QEMU is copied instead.

    Args:
        pid: QEMU's process.
        extent: which file it is.
        address: where QEMU maps it.
        name: of the block.
        writable: whether to write it, too.

    Raises:
        GuestRefusedError: it cannot be opened; the message names the reason.
    """
    access = os.O_RDWR if writable else os.O_RDONLY
    numbers = _names(pid, "fd")
    candidates = [f"/proc/{pid}/fd/{number}" for number in numbers]
    # QEMU keeps the file open (RAMBlock.fd), but need not; these links need CAP_CHECKPOINT_RESTORE.
    start = f"{address:x}-"
    candidates += [f"/proc/{pid}/map_files/{span}" for span in _names(pid, "map_files") if span.startswith(start)]
    refusal = "no descriptor of it is open in QEMU"
    for path in candidates:
        try:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError as error:
            refusal = error.strerror or str(error)
            continue
        try:
            if _is_of(fd, extent):
                return os.open(trusted_files.name_of(fd), access | os.O_CLOEXEC)
        except OSError as error:
            refusal = error.strerror or str(error)
            copy = _copy(pid, path, extent, access)
            if copy >= 0:
                return copy
        finally:
            os.close(fd)
    wanted = "reading and writing" if writable else "reading"
    raise GuestRefusedError(
        f"the file of RAM block {name!r} (inode {extent.inode}) cannot be opened for {wanted}: {refusal}; "
        "run parmig as root, or with CAP_SYS_PTRACE, CAP_DAC_READ_SEARCH and CAP_FOWNER; QEMU's own user may only open "
        "files that QEMU keeps open"
    )


def _is_of(fd: int, extent: Extent) -> bool:
    status = os.fstat(fd)
    return (os.major(status.st_dev), os.minor(status.st_dev), status.st_ino) == (*extent.device, extent.inode)


def _copy(pid: int, path: str, extent: Extent, access: int) -> int:
    """A copy of the descriptor of QEMU that *path* names; -1: it is not allowed, or not what is needed.

    Without CAP_FOWNER mincore(2) would report every page of a file that this user may not write as one that exists.
    """
    folder, number = os.path.split(path)
    if not folder.endswith("fd") or not privileges.has(privileges.CAP_FOWNER):
        return -1
    try:
        pidfd = os.pidfd_open(pid)
        try:
            copy = ptrace.pidfd_getfd(pidfd, int(number))
        finally:
            os.close(pidfd)
    except OSError:
        return -1
    if _is_of(copy, extent) and fcntl.fcntl(copy, fcntl.F_GETFL) & os.O_ACCMODE in (access, os.O_RDWR):
        return copy
    os.close(copy)
    return -1


def _names(pid: int, folder: str) -> list[str]:
    try:
        return os.listdir(f"/proc/{pid}/{folder}")
    except OSError:
        return []
