# SPDX-License-Identifier: Apache-2.0
"""Transparent huge pages of tmpfs: madvise(2), fsmount(2), Documentation/admin-guide/mm/transhuge.rst."""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path

from parmig.linux.files import is_tmpfs, madvise
from parmig.linux.syscalls import syscall

HUGE_PAGE_BYTES = 2 << 20
"""Size of a huge page where a page table has 512 entries of 4 KiB pages: x86-64, and aarch64 with 4 KiB pages."""

_MADV_HUGEPAGE = 14
_MADV_POPULATE_WRITE = 23  # Linux 5.14

# The same numbers on all architectures; Linux 5.2.
_SYS_FSOPEN, _SYS_FSCONFIG, _SYS_FSMOUNT = 430, 431, 432
_FSOPEN_CLOEXEC = _FSMOUNT_CLOEXEC = 1
_FSCONFIG_SET_STRING, _FSCONFIG_CMD_CREATE = 1, 6

_SETTING = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")


def advise(address: int, size_bytes: int) -> None:
    """MADV_HUGEPAGE: page faults in the range may take huge pages where the host's setting is ``advise``."""
    madvise(address, size_bytes, _MADV_HUGEPAGE)


def populate(address: int, size_bytes: int) -> None:
    """MADV_POPULATE_WRITE: make all pages of the range, as stores would. Existing pages stay.

    Raises:
        OSError: there is no memory, or no space in the file system; a store would be a SIGBUS.
    """
    madvise(address, size_bytes, _MADV_POPULATE_WRITE)


def setting() -> str:
    """What this host allows memory files without a mount of their own (memfd): ``never``, ``advise`` and so on."""
    chosen = re.search(r"\[(\w+)\]", _SETTING.read_text())
    return chosen.group(1) if chosen else ""


def offered(fd: int) -> bool:
    """Whether the memory of the file may come in huge pages if its mapping is advised to use them."""
    if not is_tmpfs(fd):
        return False
    try:
        allowed = setting()
    except OSError:
        return False
    device = os.fstat(fd).st_dev
    mounted = _mount_option(f"{os.major(device)}:{os.minor(device)}")
    return allowed != "deny" and (allowed if mounted is None else mounted) not in ("never", "")


def _mount_option(device: str) -> str | None:
    """The option ``huge`` of the mounted file system *device*, empty if it has none; None: it is not mounted."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        words = line.split()
        if words[2] == device:
            option = re.search(r"\bhuge=(\w+)", words[-1])
            return option.group(1) if option else ""
    return None


def unmounted_tmpfs(huge: str) -> int:
    """Descriptor of the root of a new tmpfs with the option ``huge``. Nothing else sees it; it goes with its files.

    Raises:
        OSError: not allowed (it needs CAP_SYS_ADMIN), or Linux is older than 5.2.
    """
    name, key, value = (ctypes.create_string_buffer(text) for text in (b"tmpfs", b"huge", huge.encode()))
    context = syscall(_SYS_FSOPEN, _address(name), _FSOPEN_CLOEXEC)
    try:
        syscall(_SYS_FSCONFIG, context, _FSCONFIG_SET_STRING, _address(key), _address(value), 0)
        syscall(_SYS_FSCONFIG, context, _FSCONFIG_CMD_CREATE, 0, 0, 0)
        return syscall(_SYS_FSMOUNT, context, _FSMOUNT_CLOEXEC, 0)
    finally:
        os.close(context)


def _address(buffer: ctypes.Array[ctypes.c_char]) -> int:
    return ctypes.addressof(buffer)
