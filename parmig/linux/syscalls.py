# SPDX-License-Identifier: Apache-2.0
"""The C library, for the modules of this package, and system calls by number.

A call that fails raises :class:`OSError` with the kernel's errno.
"""

from __future__ import annotations

import ctypes
import os
import platform

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long

MACHINE = platform.machine()


def check(result: int, what: str) -> int:
    """Return *result* of the C library call *what*, or raise OSError if it is negative."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def syscall(number: int, *arguments: int) -> int:
    """Make system call *number* in this process and return its result.

    Raises:
        OSError: the call failed.
    """
    return check(libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments)), f"system call {number}")
