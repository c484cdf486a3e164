# SPDX-License-Identifier: Apache-2.0
"""Processes: prctl(2), mallopt(3), proc_pid_stat(5), proc_pid_statm(5), proc_pid_status(5)."""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path

from parmig.linux.syscalls import check, libc

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_ARGUMENTS_FIELDS = (48, 49)  # arg_start and arg_end, as proc_pid_stat(5) counts
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8


def die_with_parent(signal_number: int) -> None:
    """Have the kernel send *signal_number* to this process when its parent ends."""
    check(libc.prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0), "prctl")


def name_process(name: str) -> None:
    """Show this process as *name* in ``ps`` and ``top``, with and without arguments; the kernel keeps 15 characters.

    The name takes the place of the arguments. A process that was forked from a command has those of the command, and
    a signal to all processes with such arguments (``pkill -f``) is not for it.
    """
    short = name.encode()[:15]
    check(libc.prctl(_PR_SET_NAME, short, 0, 0, 0), "prctl")
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = (int(fields[number - 3]) for number in _ARGUMENTS_FIELDS)
    if end - start > len(short):
        ctypes.memmove(start, short.ljust(end - start, b"\0"), end - start)


def keep_freed_memory(size_bytes: int) -> None:
    """Have malloc keep up to *size_bytes* of freed memory, instead of faulting in new pages each time."""
    libc.mallopt(_M_MMAP_THRESHOLD, size_bytes)
    libc.mallopt(_M_TRIM_THRESHOLD, size_bytes)
    libc.mallopt(_M_ARENA_MAX, 2)


def state_of(pid: int) -> str:
    """The state of a process, one letter as in proc(5): R, S, D, Z, T (stopped) and so on; empty: it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return chr(file.read().rpartition(b") ")[2][0])
    except OSError:
        return ""


def private_bytes() -> int:
    """Resident memory of this process that belongs to no file. A guest's memory files do not count."""
    _size, resident, shared, *_ = map(int, Path("/proc/self/statm").read_text().split())
    return (resident - shared) * mmap.PAGESIZE


def anonymous_bytes(pid: int) -> int:
    """Resident private memory of process *pid* that no file is behind; 0 when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))
