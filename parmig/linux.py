# SPDX-License-Identifier: Apache-2.0
"""The only file that knows Linux by numbers: system calls, ioctls, structure layouts, kernel probes.

Everything else asks by name. Numbers are those of x86-64 unless a table says otherwise; each section
names the kernel file that defines them. A call that fails raises :class:`OSError` with the kernel's errno.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import struct
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

MACHINE = platform.machine()


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def syscall(number: int, *arguments: int) -> int:
    """Make system call *number* in this process and return its result.

    Raises:
        OSError: the call failed.
    """
    return _check(_libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments)), f"system call {number}")


# -- userfaultfd: include/uapi/linux/userfaultfd.h ----------------------------------------------

SYS_USERFAULTFD = {"x86_64": 323, "aarch64": 282}
UFFD_USER_MODE_ONLY = 1
UFFD_FEATURE_WP_HUGETLBFS_SHMEM = 1 << 12
UFFD_FEATURE_WP_UNPOPULATED = 1 << 13
UFFD_FEATURE_WP_ASYNC = 1 << 15
UFFD_TRACKING_FEATURES = UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_WP_HUGETLBFS_SHMEM
"""What the pagemap tracker needs; WP_ASYNC came with Linux 6.7."""

_UFFD_API = 0xAA
_UFFDIO_API = 0xC018AA3F  # struct uffdio_api, 24 bytes: api, features, ioctls
_UFFDIO_REGISTER = 0xC020AA00  # struct uffdio_register, 32 bytes: start, len, mode, ioctls
_UFFDIO_UNREGISTER = 0x8010AA01  # struct uffdio_range, 16 bytes: start, len
_UFFDIO_REGISTER_MODE_WP = 2


def userfaultfd(flags: int = UFFD_USER_MODE_ONLY) -> int:
    """A new userfaultfd of this process, close-on-exec. USER_MODE_ONLY needs no privilege."""
    number = SYS_USERFAULTFD.get(MACHINE)
    if number is None:
        raise OSError(38, f"userfaultfd: parmig does not know its number on {MACHINE}")
    return syscall(number, os.O_CLOEXEC | os.O_NONBLOCK | flags)


def uffd_enable(uffd: int, features: int) -> int:
    """UFFDIO_API: ask for *features* and return all that the kernel has. Once per descriptor."""
    argument = bytearray(struct.pack("=QQQ", _UFFD_API, features, 0))
    fcntl.ioctl(uffd, _UFFDIO_API, argument)
    return int(struct.unpack("=QQQ", argument)[1])


def uffd_register_wp(uffd: int, address: int, size_bytes: int) -> None:
    """UFFDIO_REGISTER for write protection over ``[address, address + size_bytes)``; EBUSY when taken."""
    fcntl.ioctl(
        uffd, _UFFDIO_REGISTER, bytearray(struct.pack("=QQQQ", address, size_bytes, _UFFDIO_REGISTER_MODE_WP, 0))
    )


def uffd_unregister(uffd: int, address: int, size_bytes: int) -> None:
    """UFFDIO_UNREGISTER: ends protection of the range and clears what was protected."""
    fcntl.ioctl(uffd, _UFFDIO_UNREGISTER, struct.pack("=QQ", address, size_bytes))


def probe_write_tracking() -> str | None:
    """Why this kernel cannot track writes by PAGEMAP_SCAN, or None when it can."""
    try:
        uffd = userfaultfd()
    except OSError as error:
        return f"userfaultfd is not allowed here ({error.strerror})"
    try:
        features = uffd_enable(uffd, 0)
    finally:
        os.close(uffd)
    missing = UFFD_TRACKING_FEATURES & ~features
    return f"the kernel lacks userfaultfd features {missing:#x} (Linux 6.7 has them)" if missing else None


# -- PAGEMAP_SCAN: include/uapi/linux/fs.h, Documentation/admin-guide/mm/pagemap.rst --------------

_PAGEMAP_SCAN = 0xC0606610  # _IOWR('f', 16, struct pm_scan_arg), twelve u64
PM_SCAN_WP_MATCHING = 1
PM_SCAN_CHECK_WPASYNC = 2
PAGE_IS_WRITTEN = 1 << 1
PAGE_IS_PRESENT = 1 << 3
PAGE_IS_SWAPPED = 1 << 4
_PM_SCAN_ARG = struct.Struct("=12Q")

PAGE_REGION_DTYPE = np.dtype([("start", "<u8"), ("end", "<u8"), ("categories", "<u8")])
"""struct page_region, 24 bytes: first and past-the-last address, what holds for all of its pages."""

PageRegions = npt.NDArray[np.void]


def pagemap_scan(
    pagemap_fd: int,
    start: int,
    end: int,
    vector: PageRegions,
    *,
    flags: int = PM_SCAN_CHECK_WPASYNC,
    mask: int = 0,
    inverted: int = 0,
    anyof: int = 0,
    returned: int = 0,
) -> Iterator[PageRegions]:
    """Walk the page tables behind *pagemap_fd* over addresses ``[start, end)``.

    A page matches when ``((its categories ^ inverted) & mask) == mask`` and, with *anyof*, at least
    one of those is set. With PM_SCAN_WP_MATCHING matching pages are write-protected in the same step.

    Args:
        pagemap_fd: an open ``/proc/PID/pagemap``.
        vector: scratch for the kernel's answer, dtype PAGE_REGION_DTYPE.
        returned: the categories to tell.

    Yields:
        views of *vector*, valid until the next step; addresses ascend.

    Raises:
        OSError: EPERM when a range is not under asynchronous write protection.
    """
    while start < end:
        argument = bytearray(
            _PM_SCAN_ARG.pack(
                _PM_SCAN_ARG.size,
                flags,
                start,
                end,
                0,
                vector.ctypes.data,
                len(vector),
                0,
                inverted,
                mask,
                anyof,
                returned,
            )
        )
        count = fcntl.ioctl(pagemap_fd, _PAGEMAP_SCAN, argument)
        walk_end = _PM_SCAN_ARG.unpack(argument)[4]
        if count:
            yield vector[:count]
        start = walk_end


# -- files: lseek(2), fallocate(2), statfs(2) -----------------------------------------------------

FALLOC_FL_KEEP_SIZE = 1
FALLOC_FL_PUNCH_HOLE = 2
HUGETLBFS_MAGIC = 0x958458F6

_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]


def punch_hole(fd: int, offset: int, size_bytes: int) -> None:
    """Give the file's bytes ``[offset, offset + size_bytes)`` back; they read as zero from then on."""
    _check(_libc.fallocate(fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, offset, size_bytes), "fallocate")


_libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]


def mincore(address: int, pages: int) -> npt.NDArray[np.bool_]:
    """Which of the *pages* 4 KiB pages mapped at *address* are in memory; one entry a page.

    For a shared file mapping that means: in the page cache, whoever put it there. Pages in swap and pages that
    do not exist are both "not". 5 ns a page that this process has mapped, about 100 ns others.
    """
    vector = np.empty(pages, dtype=np.uint8)
    _check(_libc.mincore(address, pages * 4096, vector.ctypes.data), "mincore")
    vector &= 1
    return vector.view(np.bool_)


def is_hugetlbfs(fd: int) -> bool:
    """Whether the file lies on hugetlbfs, which has no write(2) and no SEEK_HOLE."""
    buffer = ctypes.create_string_buffer(256)
    _check(_libc.fstatfs(fd, buffer), "fstatfs")
    return bool(struct.unpack_from("=q", buffer, 0)[0] == HUGETLBFS_MAGIC)


# -- processes: prctl(2), mallopt(3), pidfd_open(2) -----------------------------------------------

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8


def die_with_parent(signal_number: int) -> None:
    """Have the kernel send *signal_number* to this process when its parent ends."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0), "prctl")


def name_process(name: str) -> None:
    """Show this process as *name* in ``ps`` and ``top``; the kernel keeps 15 characters."""
    _check(_libc.prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0), "prctl")


def keep_freed_memory(size_bytes: int) -> None:
    """Have malloc keep up to *size_bytes* of freed memory, instead of faulting in new pages each time."""
    _libc.mallopt(_M_MMAP_THRESHOLD, size_bytes)
    _libc.mallopt(_M_TRIM_THRESHOLD, size_bytes)
    _libc.mallopt(_M_ARENA_MAX, 2)


# -- another process: ptrace(2), pidfd_getfd(2); include/uapi/linux/ptrace.h ----------------------

SYS_CLOSE = {"x86_64": 3, "aarch64": 57}
_SYS_PIDFD_GETFD = 438  # the same on every machine, as all system calls since 424

_PTRACE_CONT = 7
_PTRACE_SINGLESTEP = 9
_PTRACE_GETREGS = 12
_PTRACE_SETREGS = 13
_PTRACE_DETACH = 17
_PTRACE_SEIZE = 0x4206
_PTRACE_INTERRUPT = 0x4207
_PTRACE_GETSIGMASK = 0x420A
_PTRACE_SETSIGMASK = 0x420B
PTRACE_EVENT_STOP = 128
WAIT_ALL = 0x40000000
"""__WALL of waitpid(2): wait for threads of other processes too."""

SYSCALL_INSTRUCTION = {"x86_64": b"\x0f\x05"}

_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


class UserRegs(ctypes.Structure):
    """struct user_regs_struct of x86-64: arch/x86/include/asm/user_64.h, 27 registers of 64 bits."""

    # fmt: off
    _fields_ = [(name, ctypes.c_uint64) for name in (
        "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx",
        "rsi", "rdi", "orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds",
        "es", "fs", "gs",
    )]
    # fmt: on


def _ptrace(request: int, thread: int, address: int, data: int, what: str) -> None:
    _check(_libc.ptrace(request, thread, address, data), f"ptrace {what} of thread {thread}")


def ptrace_seize(thread: int) -> None:
    """Become the tracer of *thread* without stopping it; ends with the calling thread at the latest."""
    _ptrace(_PTRACE_SEIZE, thread, 0, 0, "SEIZE")


def ptrace_interrupt(thread: int) -> None:
    """Ask a seized thread to stop; it tells by a PTRACE_EVENT_STOP."""
    _ptrace(_PTRACE_INTERRUPT, thread, 0, 0, "INTERRUPT")


def ptrace_continue(thread: int, signal_number: int = 0) -> None:
    """Let a stopped thread go on, and give it *signal_number* unless that is 0."""
    _ptrace(_PTRACE_CONT, thread, 0, signal_number, "CONT")


def ptrace_step(thread: int) -> None:
    """Let a stopped thread run one instruction; it then stops by SIGTRAP."""
    _ptrace(_PTRACE_SINGLESTEP, thread, 0, 0, "SINGLESTEP")


def ptrace_detach(thread: int) -> None:
    """Let a stopped thread go on, untraced."""
    _ptrace(_PTRACE_DETACH, thread, 0, 0, "DETACH")


def ptrace_registers(thread: int) -> UserRegs:
    """The registers of a stopped thread."""
    registers = UserRegs()
    _ptrace(_PTRACE_GETREGS, thread, 0, ctypes.addressof(registers), "GETREGS")
    return registers


def ptrace_set_registers(thread: int, registers: UserRegs) -> None:
    """Set the registers of a stopped thread."""
    _ptrace(_PTRACE_SETREGS, thread, 0, ctypes.addressof(registers), "SETREGS")


def ptrace_signal_mask(thread: int) -> int:
    """The blocked signals of a stopped thread; bit n-1 is signal n."""
    mask = ctypes.c_uint64()
    _ptrace(_PTRACE_GETSIGMASK, thread, ctypes.sizeof(mask), ctypes.addressof(mask), "GETSIGMASK")
    return mask.value


def ptrace_set_signal_mask(thread: int, mask: int) -> None:
    """Set the blocked signals of a stopped thread."""
    value = ctypes.c_uint64(mask)
    _ptrace(_PTRACE_SETSIGMASK, thread, ctypes.sizeof(value), ctypes.addressof(value), "SETSIGMASK")


def pidfd_getfd(pidfd: int, number: int) -> int:
    """A copy, close-on-exec, of descriptor *number* of the process behind *pidfd*. Needs ptrace access."""
    return syscall(_SYS_PIDFD_GETFD, pidfd, number, 0)
