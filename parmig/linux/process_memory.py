# SPDX-License-Identifier: Apache-2.0
"""The memory of another process: process_vm_readv(2), process_vm_writev(2).

Either needs PTRACE_MODE_ATTACH: the same user and Yama's ptrace_scope 0, or CAP_SYS_PTRACE.
"""

from __future__ import annotations

import ctypes
import errno

import numpy as np
import numpy.typing as npt

from parmig.linux.syscalls import libc

Pieces = npt.NDArray[np.uint64]
"""Ranges of another process, shape (pieces, 2): address and size in bytes, as struct iovec has them."""

MAX_PIECES = 1024
"""Ranges a call (UIO_MAXIOV, include/uapi/linux/uio.h)."""

for _function in (libc.process_vm_readv, libc.process_vm_writev):
    _function.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_ulong,
        ctypes.c_void_p,
        ctypes.c_ulong,
        ctypes.c_ulong,
    ]
    _function.restype = ctypes.c_ssize_t


def read(pid: int, pieces: Pieces, target: npt.NDArray[np.uint8]) -> None:
    """Read *pieces* of process *pid* one after the other into *target*, contiguous and as long as they are together.

    A page that does not exist reads as zero. The process then maps the zero page there, which takes no memory;
    but a missing huge page of hugetlbfs is allocated.

    Raises:
        OSError: EPERM where it is not allowed, ESRCH where the process is gone, EFAULT where a piece is not mapped.
    """
    _transfer(libc.process_vm_readv, pid, pieces, target)


def write(pid: int, pieces: Pieces, source: npt.NDArray[np.uint8]) -> None:
    """Write *source* to *pieces* of process *pid*, one after the other; allocates what does not exist.

    Raises:
        OSError: as :func:`read`; EFAULT or ENOMEM where there is no memory left.
    """
    _transfer(libc.process_vm_writev, pid, pieces, source)


def _transfer(function: ctypes._NamedFuncPointer, pid: int, pieces: Pieces, buffer: npt.NDArray[np.uint8]) -> None:
    address = buffer.ctypes.data
    for first in range(0, len(pieces), MAX_PIECES):
        part = np.ascontiguousarray(pieces[first : first + MAX_PIECES])
        size = int(part[:, 1].sum())
        local = np.array([address, size], dtype=np.uint64)
        moved = function(pid, local.ctypes.data, 1, part.ctypes.data, len(part), 0)
        if moved != size:  # it stops before a range that is not there, and then reports how far it got
            number = ctypes.get_errno() if moved < 0 else errno.EFAULT
            raise OSError(number, f"{size} bytes in {len(part)} ranges of process {pid}: {errno.errorcode[number]}")
        address += size
