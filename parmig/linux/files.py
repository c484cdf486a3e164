# SPDX-License-Identifier: Apache-2.0
"""Files: lseek(2), fallocate(2), mmap(2), mincore(2), statfs(2), seals of fcntl(2)."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import struct

import numpy as np
import numpy.typing as npt

from parmig.linux import uffd
from parmig.linux.syscalls import check, libc

FALLOC_FL_KEEP_SIZE = 1
FALLOC_FL_PUNCH_HOLE = 2
HUGETLBFS_MAGIC = 0x958458F6
TMPFS_MAGIC = 0x01021994
_MAP_NORESERVE = 0x4000
_MAP_FIXED = 0x10

libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]


def punch_hole(fd: int, offset: int, size_bytes: int) -> None:
    """Free the storage of the file's bytes ``[offset, offset + size_bytes)``; they read as zero from then on."""
    check(libc.fallocate(fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, offset, size_bytes), "fallocate")


def allocate(fd: int, offset: int, size_bytes: int) -> None:
    """Allocate storage for the file's bytes ``[offset, offset + size_bytes)``; existing bytes stay."""
    check(libc.fallocate(fd, FALLOC_FL_KEEP_SIZE, offset, size_bytes), "fallocate")


libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]


def map_again(fd: int, offset: int, address: int, size_bytes: int, *, writable: bool) -> None:
    """Replace the shared mapping at *address* by a new one of the same bytes of the file, which has no page tables.

    The bytes of the file do not change, and pages that the kernel still sends from stay until they are sent. A store
    or a load of another thread waits meanwhile. What was registered with a userfaultfd is so no longer. This takes
    65 ms a GiB that was mapped, as long as MADV_DONTNEED, which gives page tables back from Linux 6.14 on only.
    """
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    result = libc.mmap(address, size_bytes, protection, mmap.MAP_SHARED | _MAP_FIXED, fd, offset)
    check(0 if result == address else -1, "mmap")


libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def madvise(address: int, size_bytes: int, advice: int) -> None:
    """Give the kernel *advice* (``MADV_…``) on a range of this process's memory."""
    check(libc.madvise(address, size_bytes, advice), "madvise")


def pass_through(address: int, size_bytes: int) -> None:
    """Have the kernel take no use of this mapping as a sign that its pages are needed (MADV_SEQUENTIAL).

    Else each page that was used counts as accessed when it is unmapped, and moves to the list of active pages: half
    the time of unmapping. Nor does a passing look change which of a guest's pages the host may swap out first.
    """
    madvise(address, size_bytes, mmap.MADV_SEQUENTIAL)


libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]


def mincore(address: int, pages: int) -> npt.NDArray[np.bool_]:
    """Which of the *pages* 4 KiB pages mapped at *address* are in memory; one entry a page.

    A page of a shared file mapping is in memory if it is in the page cache, whichever process put it there. Pages in
    swap and pages that do not exist are not. This takes 5 ns a page that this process has mapped, and about 100 ns a
    page that it has not.
    """
    vector = np.empty(pages, dtype=np.uint8)
    check(libc.mincore(address, pages * 4096, vector.ctypes.data), "mincore")
    vector &= 1
    return vector.view(np.bool_)


_SYS_CACHESTAT = 451  # the same number on all architectures; Linux 6.5


def cachestat(fd: int, offset: int, size_bytes: int) -> int | None:
    """How many pages of the file's bytes ``[offset, offset + size_bytes)`` are in memory; None: the kernel cannot tell.

    It takes 31 ns a page that is in memory, and next to nothing for others. Linux before 6.5 has no such call,
    hugetlbfs does not answer it, and files of others need to be writable.
    """
    span = struct.pack("QQ", offset, size_bytes)
    counts = ctypes.create_string_buffer(40)  # struct cachestat: five numbers, the first is nr_cache
    if libc.syscall(ctypes.c_long(_SYS_CACHESTAT), fd, span, counts, 0) < 0:
        return None
    return int(struct.unpack_from("Q", counts.raw)[0])


_MADV_POPULATE_READ = 22  # Linux 5.14


def map_pages(address: int, size_bytes: int) -> None:
    """Map all pages of a shared mapping at once, as loads would (MADV_POPULATE_READ); pages that are absent are made.

    A store to a page of a memory file that is mapped so needs no page fault any more. It takes a tenth of what a
    fault for each page does. Where the kernel cannot do it, nothing happens.
    """
    libc.madvise(address, size_bytes, _MADV_POPULATE_READ)


SEALS_OF_MEMORY = fcntl.F_SEAL_SHRINK
"""Nobody can shorten the file, which would kill every process that uses what was cut off."""

SEALS_AGAINST_WRITES = fcntl.F_SEAL_WRITE | 0x10  # F_SEAL_FUTURE_WRITE of linux/fcntl.h


def create_memory_file(name: str, size_bytes: int) -> int:
    """A descriptor of a new memory file of a fixed size, sealed: its size and its seals cannot be changed."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size_bytes)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    except BaseException:
        os.close(fd)
        raise
    return fd


def seals(fd: int) -> int:
    """The seals of a file; 0 if its file system has none."""
    try:
        return fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        return 0


def is_hugetlbfs(fd: int) -> bool:
    """Whether the file lies on hugetlbfs, which has no write(2) and no SEEK_HOLE."""
    return _file_system(fd) == HUGETLBFS_MAGIC


def is_tmpfs(fd: int) -> bool:
    """Whether the file lies on tmpfs, mounted or not (memfd)."""
    return _file_system(fd) == TMPFS_MAGIC


def _file_system(fd: int) -> int:
    """The magic number of the file system that the file lies on."""
    buffer = ctypes.create_string_buffer(256)
    check(libc.fstatfs(fd, buffer), "fstatfs")
    return int(struct.unpack_from("=q", buffer, 0)[0])


def hugetlb_pages(fd: int, offset: int, page_bytes: int, wanted: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Which of the *wanted* huge pages of a hugetlbfs file, counted from *offset* on, exist. Allocates none.

    lseek(2) reports all of such a file as data, and mincore(2) knows only what this process has mapped.
    UFFDIO_CONTINUE maps a page that the file has, and fails if it has none. It is called on a new mapping and takes
    1 µs a page.

    Raises:
        OSError: userfaultfd is not allowed here.
    """
    exists = np.zeros(len(wanted), dtype=np.bool_)
    userfault_fd = uffd.create()
    try:
        uffd.enable(userfault_fd, uffd.UFFD_FEATURE_MINOR_HUGETLBFS)
        with mmap.mmap(fd, len(wanted) * page_bytes, mmap.MAP_SHARED | _MAP_NORESERVE, offset=offset) as area:
            base = ctypes.addressof(ctypes.c_char.from_buffer(area))
            uffd.register_minor(userfault_fd, base, len(area))
            for number in np.flatnonzero(wanted).tolist():
                exists[number] = uffd.continue_page(userfault_fd, base + number * page_bytes, page_bytes)
    finally:
        os.close(userfault_fd)
    return exists
