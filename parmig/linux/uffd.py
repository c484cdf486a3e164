# SPDX-License-Identifier: Apache-2.0
"""userfaultfd: include/uapi/linux/userfaultfd.h."""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from parmig.linux.syscalls import MACHINE, syscall

SYS_USERFAULTFD = {"x86_64": 323, "aarch64": 282}
UFFD_USER_MODE_ONLY = 1
UFFD_FEATURE_MISSING_SHMEM = 1 << 5
UFFD_FEATURE_SIGBUS = 1 << 7
UFFD_FEATURE_MINOR_HUGETLBFS = 1 << 9
UFFD_FEATURE_WP_HUGETLBFS_SHMEM = 1 << 12
UFFD_FEATURE_WP_UNPOPULATED = 1 << 13
UFFD_FEATURE_WP_ASYNC = 1 << 15
UFFD_TRACKING_FEATURES = UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_WP_HUGETLBFS_SHMEM
"""What the pagemap tracker needs; WP_ASYNC came with Linux 6.7."""

_UFFD_API = 0xAA
_UFFDIO_API = 0xC018AA3F  # struct uffdio_api, 24 bytes: api, features, ioctls
_UFFDIO_REGISTER = 0xC020AA00  # struct uffdio_register, 32 bytes: start, len, mode, ioctls
_UFFDIO_UNREGISTER = 0x8010AA01  # struct uffdio_range, 16 bytes: start, len
_UFFDIO_COPY = 0xC028AA03  # struct uffdio_copy, 40 bytes: dst, src, len, mode, copy
_UFFDIO_CONTINUE = 0xC020AA07  # struct uffdio_continue, 32 bytes: start, len, mode, mapped
_UFFDIO_REGISTER_MODE_MISSING = 1
_UFFDIO_REGISTER_MODE_WP = 2
_UFFDIO_REGISTER_MODE_MINOR = 4
_UFFDIO_COPY_DONTWAKE = 1


def create(flags: int = UFFD_USER_MODE_ONLY) -> int:
    """A new userfaultfd of this process, close-on-exec. USER_MODE_ONLY needs no privilege."""
    number = SYS_USERFAULTFD.get(MACHINE)
    if number is None:
        raise OSError(38, f"userfaultfd: parmig does not know its number on {MACHINE}")
    return syscall(number, os.O_CLOEXEC | os.O_NONBLOCK | flags)


def enable(uffd: int, features: int) -> int:
    """UFFDIO_API: ask for *features* and return all that the kernel has. Once per descriptor."""
    argument = bytearray(struct.pack("=QQQ", _UFFD_API, features, 0))
    fcntl.ioctl(uffd, _UFFDIO_API, argument)
    return int(struct.unpack("=QQQ", argument)[1])


def register_wp(uffd: int, address: int, size_bytes: int) -> None:
    """UFFDIO_REGISTER for write protection over ``[address, address + size_bytes)``; EBUSY when taken."""
    _register(uffd, address, size_bytes, _UFFDIO_REGISTER_MODE_WP)


def register_minor(uffd: int, address: int, size_bytes: int) -> None:
    """UFFDIO_REGISTER for minor faults: pages that the file has and this mapping does not."""
    _register(uffd, address, size_bytes, _UFFDIO_REGISTER_MODE_MINOR)


def create_filler(address: int, size_bytes: int) -> int:
    """A userfaultfd for :func:`copy_absent` to this process's shared mapping of tmpfs memory at *address*.

    From then on, a store to a page of the mapping that the file does not have is a SIGBUS, not a wait for ever.

    Raises:
        OSError: userfaultfd is not allowed here, or the mapping is of another kind of file.
    """
    uffd = create()
    try:
        enable(uffd, UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_SIGBUS)
        _register(uffd, address, size_bytes, _UFFDIO_REGISTER_MODE_MISSING)
    except OSError:
        os.close(uffd)
        raise
    return uffd


def _register(uffd: int, address: int, size_bytes: int, mode: int) -> None:
    fcntl.ioctl(uffd, _UFFDIO_REGISTER, bytearray(struct.pack("=QQQQ", address, size_bytes, mode, 0)))


def unregister(uffd: int, address: int, size_bytes: int) -> None:
    """UFFDIO_UNREGISTER: ends protection of the range and clears what was protected."""
    fcntl.ioctl(uffd, _UFFDIO_UNREGISTER, struct.pack("=QQ", address, size_bytes))


def probe_write_tracking() -> str | None:
    """Why this kernel cannot track writes by PAGEMAP_SCAN, or None when it can."""
    try:
        uffd = create()
    except OSError as error:
        return f"userfaultfd is not allowed here ({error.strerror})"
    try:
        features = enable(uffd, 0)
    finally:
        os.close(uffd)
    missing = UFFD_TRACKING_FEATURES & ~features
    return f"the kernel lacks userfaultfd features {missing:#x} (Linux 6.7 has them)" if missing else None


def continue_page(uffd: int, address: int, page_bytes: int) -> bool:
    """UFFDIO_CONTINUE: map the page that the file has for *address*; False when it has none."""
    try:
        fcntl.ioctl(uffd, _UFFDIO_CONTINUE, bytearray(struct.pack("=QQQq", address, page_bytes, 0, 0)))
    except OSError as error:
        if error.errno in (errno.EFAULT, errno.ENOENT):  # an older or a newer kernel reports that there is no page
            return False
        raise
    return True


def copy_absent(uffd: int, address: int, source_address: int, size_bytes: int) -> int:
    """UFFDIO_COPY: make pages at *address* that do not exist yet, with the bytes at *source_address*.

    No lock of the file is taken, no page is cleared first, and a full file system is an error.

    Returns:
        how many bytes were copied: fewer than *size_bytes* if a page exists already; that page is not changed.

    Raises:
        OSError: no memory is left, or the mapping has changed.
    """
    done = 0
    while done < size_bytes:
        argument = bytearray(
            struct.pack("=QQQQq", address + done, source_address + done, size_bytes - done, _UFFDIO_COPY_DONTWAKE, 0)
        )
        try:
            fcntl.ioctl(uffd, _UFFDIO_COPY, argument)
        except BlockingIOError:  # it stopped on its way
            done += max(0, int(struct.unpack_from("=q", argument, 32)[0]))
            continue
        except FileExistsError:
            return done
        return size_bytes
    return done
