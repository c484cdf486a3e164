# SPDX-License-Identifier: Apache-2.0
"""Descriptors that become readable at a time: timerfd_create(2). Python has them from 3.13 on."""

from __future__ import annotations

import ctypes
import os
import time

from parmig.linux.syscalls import check, libc

_TFD_TIMER_ABSTIME = 1


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class Alarm:
    """One descriptor, which becomes readable at the time that was set last. It is for polling; nobody reads it.

    Raises:
        OSError: no descriptor is left.
    """

    def __init__(self) -> None:
        flags = os.O_CLOEXEC | os.O_NONBLOCK
        self._fd = check(libc.timerfd_create(time.CLOCK_MONOTONIC, flags), "timerfd_create")
        self._set_ns = 0

    def fileno(self) -> int:
        """What to poll."""
        return self._fd

    def set(self, at_ns: int) -> None:
        """Be readable from *at_ns* of ``time.monotonic_ns()`` on, and not before; 0: never."""
        if at_ns == self._set_ns:
            return
        self._set_ns = at_ns
        value = _Timespec(at_ns // 1_000_000_000, at_ns % 1_000_000_000)
        spec = _Itimerspec(_Timespec(0, 0), value)
        check(libc.timerfd_settime(self._fd, _TFD_TIMER_ABSTIME, ctypes.byref(spec), None), "timerfd_settime")

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._fd)
