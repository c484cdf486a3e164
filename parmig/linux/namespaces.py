# SPDX-License-Identifier: Apache-2.0
"""Network namespaces and TAP devices: unshare(2), setns(2), include/uapi/linux/if_tun.h."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from collections.abc import Iterator

from parmig.linux.syscalls import check, libc

_CLONE_NEWNET = 0x40000000
_TUNSETIFF, _IFF_TAP, _IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
_IFREQ = struct.Struct("16sH22x")


@contextlib.contextmanager
def _staying() -> Iterator[None]:
    """Put this thread back into its network namespace afterwards."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            yield
        finally:
            check(libc.setns(before, _CLONE_NEWNET), "setns")
    finally:
        os.close(before)


@contextlib.contextmanager
def entered(fd: int) -> Iterator[None]:
    """Put this thread into the network namespace *fd*; sockets and processes that it makes then belong there."""
    with _staying():
        check(libc.setns(fd, _CLONE_NEWNET), "setns")
        yield


def new_network() -> int:
    """A descriptor of a new network namespace. This thread stays where it is.

    Raises:
        OSError: this process may not make one; root may.
    """
    with _staying():
        check(libc.unshare(_CLONE_NEWNET), "cannot make a network namespace, run this as root; unshare")
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def open_tap(name: str) -> int:
    """A descriptor of a new TAP device in this thread's namespace, not blocking. The device ends with it."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        fcntl.ioctl(fd, _TUNSETIFF, _IFREQ.pack(name.encode(), _IFF_TAP | _IFF_NO_PI))
    except OSError:
        os.close(fd)
        raise
    return fd
