# SPDX-License-Identifier: Apache-2.0
"""What a process may do: capabilities(7), capset(2), PR_SET_NO_NEW_PRIVS and PR_SET_DUMPABLE of prctl(2).

All of it holds for the calling thread and what that starts: call it before other threads are there.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterable
from pathlib import Path

from parmig.linux.syscalls import check, libc

CAP_DAC_OVERRIDE = 1
CAP_DAC_READ_SEARCH = 2
CAP_FOWNER = 3
CAP_NET_BIND_SERVICE = 10
CAP_NET_ADMIN = 12
CAP_SYS_PTRACE = 19

_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_HEAD = struct.pack("=Ii", 0x20080522, 0)  # struct cap_user_header_t: _LINUX_CAPABILITY_VERSION_3, this thread
_SETS = struct.Struct("=IIIIII")  # two of cap_user_data_t: effective, permitted, inheritable, low half and high half


def gain_no_more() -> None:
    """From now on no program that this process starts gets more rights than it has: setuid and file capabilities."""
    check(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")


def keep_only(capabilities: Iterable[int]) -> None:
    """Give up all capabilities but those of *capabilities* that this thread has. There is no way back."""
    kept = sum(1 << number for number in set(capabilities)) & _permitted()
    low, high = kept & 0xFFFF_FFFF, kept >> 32
    check(libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), "prctl")
    sets = ctypes.create_string_buffer(_SETS.pack(low, low, 0, high, high, 0))
    check(libc.capset(ctypes.create_string_buffer(_HEAD), sets), "capset")


def has(capability: int) -> bool:
    """Whether this thread may use *capability*."""
    return bool(_permitted() >> capability & 1)


def hide_memory() -> None:
    """Write no core dump of this process, and let no other process of its user look into its memory."""
    check(libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0), "prctl")


def _permitted() -> int:
    """The permitted capabilities of this thread, one bit each."""
    lines = Path("/proc/thread-self/status").read_text().splitlines()
    return next(int(line.split()[1], 16) for line in lines if line.startswith("CapPrm:"))
