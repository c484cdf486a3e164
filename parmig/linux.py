# SPDX-License-Identifier: Apache-2.0
"""The only file that knows Linux by numbers: system calls, ioctls, structure layouts, kernel probes.

Everything else asks by name. Numbers are those of x86-64 unless a table says otherwise; each section
names the kernel file that defines them. A call that fails raises :class:`OSError` with the kernel's errno.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import platform
import socket
import struct
import termios
from collections.abc import Iterator, Mapping

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
_UFFDIO_CONTINUE = 0xC020AA07  # struct uffdio_continue, 32 bytes: start, len, mode, mapped
_UFFDIO_REGISTER_MODE_WP = 2
_UFFDIO_REGISTER_MODE_MINOR = 4


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
    _uffd_register(uffd, address, size_bytes, _UFFDIO_REGISTER_MODE_WP)


def _uffd_register(uffd: int, address: int, size_bytes: int, mode: int) -> None:
    fcntl.ioctl(uffd, _UFFDIO_REGISTER, bytearray(struct.pack("=QQQQ", address, size_bytes, mode, 0)))


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
    vector: PageRegions | None,
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
        vector: scratch for the kernel's answer, dtype PAGE_REGION_DTYPE; None: nothing is told, only done.
        returned: the categories to tell.

    Yields:
        views of *vector*, valid until the next step; addresses ascend.

    Raises:
        OSError: EPERM when a range is not under asynchronous write protection; EINVAL when the kernel does not get
            on, as it does not where only a part of a huge page is to be protected.
    """
    address, entries = (vector.ctypes.data, len(vector)) if vector is not None else (0, 0)
    while start < end:
        argument = bytearray(
            _PM_SCAN_ARG.pack(
                _PM_SCAN_ARG.size,
                flags,
                start,
                end,
                0,
                address,
                entries,
                0,
                inverted,
                mask,
                anyof,
                returned,
            )
        )
        count = fcntl.ioctl(pagemap_fd, _PAGEMAP_SCAN, argument)
        walk_end = _PM_SCAN_ARG.unpack(argument)[4]
        if walk_end <= start:
            raise OSError(errno.EINVAL, "the kernel makes no progress; can it protect pages of this size, as a whole?")
        if count and vector is not None:
            yield vector[:count]
        start = walk_end


# -- files: lseek(2), fallocate(2), statfs(2) -----------------------------------------------------

FALLOC_FL_KEEP_SIZE = 1
FALLOC_FL_PUNCH_HOLE = 2
HUGETLBFS_MAGIC = 0x958458F6
_MAP_NORESERVE = 0x4000

_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]


def punch_hole(fd: int, offset: int, size_bytes: int) -> None:
    """Give the file's bytes ``[offset, offset + size_bytes)`` back; they read as zero from then on."""
    _check(_libc.fallocate(fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, offset, size_bytes), "fallocate")


def allocate(fd: int, offset: int, size_bytes: int) -> None:
    """Have memory behind the file's bytes ``[offset, offset + size_bytes)``; what is there stays."""
    _check(_libc.fallocate(fd, FALLOC_FL_KEEP_SIZE, offset, size_bytes), "fallocate")


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


def hugetlb_pages(fd: int, offset: int, page_bytes: int, wanted: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Which of the *wanted* huge pages from *offset* of a hugetlbfs file on exist. Allocates none.

    hugetlbfs says that all is data, and mincore(2) knows only what this process has mapped. UFFDIO_CONTINUE maps a page
    that the file has, and refuses where it has none. It is asked in a mapping of its own, 1 µs a page.

    Raises:
        OSError: userfaultfd is not allowed here.
    """
    exists = np.zeros(len(wanted), dtype=np.bool_)
    uffd = userfaultfd()
    try:
        uffd_enable(uffd, UFFD_FEATURE_MINOR_HUGETLBFS)
        with mmap.mmap(fd, len(wanted) * page_bytes, mmap.MAP_SHARED | _MAP_NORESERVE, offset=offset) as area:
            base = ctypes.addressof(ctypes.c_char.from_buffer(area))
            _uffd_register(uffd, base, len(area), _UFFDIO_REGISTER_MODE_MINOR)
            for number in np.flatnonzero(wanted).tolist():
                exists[number] = _uffd_continue(uffd, base + number * page_bytes, page_bytes)
    finally:
        os.close(uffd)
    return exists


def _uffd_continue(uffd: int, address: int, page_bytes: int) -> bool:
    try:
        fcntl.ioctl(uffd, _UFFDIO_CONTINUE, bytearray(struct.pack("=QQQq", address, page_bytes, 0, 0)))
    except OSError as error:
        if error.errno in (errno.EFAULT, errno.ENOENT):  # there is no page, says an older or a newer kernel
            return False
        raise
    return True


# -- processes: prctl(2), mallopt(3), pidfd_open(2), unix(7) --------------------------------------

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8


def die_with_parent(signal_number: int) -> None:
    """Have the kernel send *signal_number* to this process when its parent ends."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0), "prctl")


_UCRED = struct.Struct("=iII")  # struct ucred of unix(7): pid, uid, gid


def peer_of(connection: socket.socket) -> tuple[int, int]:
    """Process and user at the other end of this Unix socket, as our namespaces number them (SO_PEERCRED).

    They are of the instant in which it called ``connect()``, or ``listen()`` where we connected.
    """
    pid, uid, _gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return pid, uid


def unacknowledged_bytes(connection: socket.socket) -> int:
    """What was sent on this TCP connection and not acknowledged by the peer's kernel yet (TIOCOUTQ, tcp(7))."""
    found: int = struct.unpack("i", fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4)))[0]
    return found


_SO_ATTACH_FILTER = 26
_SOCK_FPROG = struct.Struct("@HP")  # struct sock_fprog of linux/filter.h: number of instructions, where they are
_BPF_KEEP_NOTHING = struct.pack("=HBBI", 0x06, 0, 0, 0)  # BPF_RET | BPF_K: keep 0 bytes of the packet


def drop_all_packets(sock: socket.socket) -> None:
    """Have the kernel drop whatever arrives at *sock*. On a listener: nobody new; connections there are go on."""
    program = ctypes.create_string_buffer(_BPF_KEEP_NOTHING)
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, _SOCK_FPROG.pack(1, ctypes.addressof(program)))


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


# -- KVM on x86-64: include/uapi/linux/kvm.h, arch/x86/include/uapi/asm/kvm.h; Documentation/virt/kvm/api.rst ----
#
# Only the process that created a VM may use its descriptor and those of its vCPUs: others get EIO.

KVM_API_VERSION = 12

KVM_CAP_IRQCHIP = 0
KVM_CAP_SET_TSS_ADDR = 4
KVM_CAP_MP_STATE = 14
KVM_CAP_PIT2 = 33
KVM_CAP_PIT_STATE2 = 35
KVM_CAP_SET_IDENTITY_MAP_ADDR = 37
KVM_CAP_ADJUST_CLOCK = 39
KVM_CAP_VCPU_EVENTS = 41
KVM_CAP_DEBUGREGS = 50
KVM_CAP_XSAVE = 55
KVM_CAP_XCRS = 56
KVM_CAP_MAX_VCPUS = 66
KVM_CAP_IMMEDIATE_EXIT = 136
KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 = 168
KVM_CAP_DIRTY_LOG_RING = 192
KVM_CAP_SREGS2 = 200

KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE = 1
KVM_DIRTY_LOG_INITIALLY_SET = 2

KVM_EXIT_IO = 2
KVM_EXIT_HLT = 5
KVM_EXIT_MMIO = 6
KVM_EXIT_DIRTY_RING_FULL = 31
KVM_EXIT_NAMES = {
    0: "UNKNOWN", 1: "EXCEPTION", 2: "IO", 3: "HYPERCALL", 4: "DEBUG", 5: "HLT", 6: "MMIO", 7: "IRQ_WINDOW_OPEN",
    8: "SHUTDOWN", 9: "FAIL_ENTRY", 10: "INTR", 17: "INTERNAL_ERROR", 24: "SYSTEM_EVENT", 31: "DIRTY_RING_FULL",
}  # fmt: skip
KVM_EXIT_IO_OUT = 1

KVM_MP_STATE_RUNNABLE = 0

KVM_STATE = {
    # of a vCPU
    "regs": (0x8090AE81, 0x4090AE82),
    "sregs": (0x8138AE83, 0x4138AE84),
    "sregs2": (0x8140AECC, 0x4140AECD),
    "fpu": (0x81A0AE8C, 0x41A0AE8D),
    "xsave": (0x9000AEA4, 0x5000AEA5),
    "xcrs": (0x8188AEA6, 0x4188AEA7),
    "debugregs": (0x8080AEA1, 0x4080AEA2),
    "lapic": (0x8400AE8E, 0x4400AE8F),
    "mp_state": (0x8004AE98, 0x4004AE99),
    "events": (0x8040AE9F, 0x4040AEA0),
    # of a VM; an irqchip's first word says which one, also to the getter
    "irqchip": (0xC208AE62, 0x8208AE63),
    "pit2": (0x8070AE9F, 0x4070AEA0),
    "clock": (0x8030AE7C, 0x4030AE7B),
}
"""Structures that the kernel gives and takes whole: KVM_GET_ and KVM_SET_ by name. Bits 16 to 29 hold the size."""

KVM_STATE_CAPABILITY = {
    "sregs2": KVM_CAP_SREGS2,
    "xsave": KVM_CAP_XSAVE,
    "xcrs": KVM_CAP_XCRS,
    "debugregs": KVM_CAP_DEBUGREGS,
    "mp_state": KVM_CAP_MP_STATE,
    "events": KVM_CAP_VCPU_EVENTS,
    "pit2": KVM_CAP_PIT_STATE2,
    "clock": KVM_CAP_ADJUST_CLOCK,
}
"""The capability that stands for a structure that not every KVM has."""

_KVM_GET_API_VERSION = 0xAE00
_KVM_CREATE_VM = 0xAE01
_KVM_GET_MSR_INDEX_LIST = 0xC004AE02
_KVM_CHECK_EXTENSION = 0xAE03
_KVM_GET_VCPU_MMAP_SIZE = 0xAE04
_KVM_GET_SUPPORTED_CPUID = 0xC008AE05
_KVM_CREATE_VCPU = 0xAE41
_KVM_GET_DIRTY_LOG = 0x4010AE42  # slot u32, pad u32, bitmap pointer
_KVM_SET_USER_MEMORY_REGION = 0x4020AE46  # slot u32, flags u32, gpa, size, address
_KVM_SET_TSS_ADDR = 0xAE47
_KVM_SET_IDENTITY_MAP_ADDR = 0x4008AE48
_KVM_CREATE_IRQCHIP = 0xAE60
_KVM_CREATE_PIT2 = 0x4040AE77
_KVM_RUN = 0xAE80
_KVM_GET_MSRS = 0xC008AE88
_KVM_SET_MSRS = 0x4008AE89
_KVM_SET_CPUID2 = 0x4008AE90
_KVM_ENABLE_CAP = 0x4068AEA3  # cap u32, flags u32, args[4] u64, 64 bytes
_KVM_SET_TSC_KHZ, _KVM_GET_TSC_KHZ = 0xAEA2, 0xAEA3
_KVM_KVMCLOCK_CTRL = 0xAEAD
_KVM_CLEAR_DIRTY_LOG = 0xC018AEC0  # slot u32, num_pages u32, first_page u64, bitmap pointer
_KVM_RESET_DIRTY_RINGS = 0xAEC7
_KVM_MEM_LOG_DIRTY_PAGES = 1
_KVM_DIRTY_RING_OFFSET = 64 * 4096  # of a vCPU's ring in the mapping of its descriptor
_KVM_TABLE_ENTRIES = 512  # room for CPUID entries and for MSRs; the kernels seen so far have under 150 of either
_KVM_TSS_ADDRESS, _KVM_IDENTITY_ADDRESS = 0xFEFFD000, 0xFEFFC000  # four pages below the BIOS, for older Intel hosts

_libc.ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong]

KVM_CPUID_DTYPE = np.dtype(
    [(name, "<u4") for name in ("function", "index", "flags", "eax", "ebx", "ecx", "edx")] + [("padding", "<u4", 3)]
)
"""struct kvm_cpuid_entry2, 40 bytes."""

KVM_MSR_DTYPE = np.dtype([("index", "<u4"), ("reserved", "<u4"), ("data", "<u8")])
"""struct kvm_msr_entry, 16 bytes."""

KVM_DIRTY_GFN_DTYPE = np.dtype([("flags", "<u4"), ("slot", "<u4"), ("offset", "<u8")])
"""struct kvm_dirty_gfn, 16 bytes: an entry of a dirty ring; *offset* is a page of the slot."""
KVM_DIRTY_GFN_DIRTY = 1
KVM_DIRTY_GFN_RESET = 2

KVM_REGISTERS = (
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip", "rflags",
)  # fmt: skip
"""struct kvm_regs: 18 registers of 64 bits."""

KvmTable = npt.NDArray[np.void]


def kvm_registers(values: Mapping[str, int]) -> bytes:
    """A struct kvm_regs with these registers, by name; the others are 0."""
    return struct.pack("=18Q", *(values.get(name, 0) for name in KVM_REGISTERS))


class KvmSegment(ctypes.Structure):
    """struct kvm_segment."""

    _fields_ = [("base", ctypes.c_uint64), ("limit", ctypes.c_uint32), ("selector", ctypes.c_uint16)] + [
        (name, ctypes.c_uint8) for name in ("type", "present", "dpl", "db", "s", "l", "g", "avl", "unusable", "padding")
    ]


class KvmTableRegister(ctypes.Structure):
    """struct kvm_dtable."""

    _fields_ = [("base", ctypes.c_uint64), ("limit", ctypes.c_uint16), ("padding", ctypes.c_uint16 * 3)]


class KvmSregs(ctypes.Structure):
    """struct kvm_sregs."""

    _fields_ = (
        [(name, KvmSegment) for name in ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")]
        + [(name, KvmTableRegister) for name in ("gdt", "idt")]
        + [(name, ctypes.c_uint64) for name in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")]
        + [("interrupt_bitmap", ctypes.c_uint64 * 4)]
    )

    def make_flat(self, code: int, data: int) -> None:
        """Switch to 32-bit protected mode without paging, all segments over all memory, with these selectors."""
        flat = {"limit": 0xFFFF_FFFF, "present": 1, "db": 1, "s": 1, "g": 1}
        self.cs = KvmSegment(selector=code, type=0xB, **flat)
        for name in ("ds", "es", "fs", "gs", "ss"):
            setattr(self, name, KvmSegment(selector=data, type=0x3, **flat))
        self.cr0 |= 1


class KvmExitIo(ctypes.Structure):
    """The io member of struct kvm_run: *count* items of *size* bytes lie at *data_offset* of the structure."""

    _fields_ = [
        ("direction", ctypes.c_uint8),
        ("size", ctypes.c_uint8),
        ("port", ctypes.c_uint16),
        ("count", ctypes.c_uint32),
        ("data_offset", ctypes.c_uint64),
    ]


class KvmExitMmio(ctypes.Structure):
    """The mmio member of struct kvm_run."""

    _fields_ = [
        ("phys_addr", ctypes.c_uint64),
        ("data", ctypes.c_uint8 * 8),
        ("len", ctypes.c_uint32),
        ("is_write", ctypes.c_uint8),
    ]


class _KvmExitData(ctypes.Union):
    _fields_ = [("io", KvmExitIo), ("mmio", KvmExitMmio), ("words", ctypes.c_uint64 * 4)]


class KvmRun(ctypes.Structure):
    """The head of struct kvm_run, which kernel and VMM share."""

    _anonymous_ = ("data",)
    _fields_ = [
        ("request_interrupt_window", ctypes.c_uint8),
        ("immediate_exit", ctypes.c_uint8),
        ("padding", ctypes.c_uint8 * 6),
        ("exit_reason", ctypes.c_uint32),
        ("ready_for_interrupt_injection", ctypes.c_uint8),
        ("if_flag", ctypes.c_uint8),
        ("flags", ctypes.c_uint16),
        ("cr8", ctypes.c_uint64),
        ("apic_base", ctypes.c_uint64),
        ("data", _KvmExitData),
    ]


def kvm_open() -> int:
    """A new descriptor of /dev/kvm; OSError also where its structures are others than those of this file."""
    if MACHINE != "x86_64":
        raise OSError(errno.ENOSYS, f"parmig knows KVM's structures on x86_64, not on {MACHINE}")
    kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    version = fcntl.ioctl(kvm, _KVM_GET_API_VERSION)
    if version != KVM_API_VERSION:
        os.close(kvm)
        raise OSError(errno.ENOSYS, f"KVM interface version {version}, expected {KVM_API_VERSION}")
    return kvm


def kvm_check(fd: int, capability: int) -> int:
    """What the kernel says of *capability*: 0 is no, other numbers depend on the capability."""
    return fcntl.ioctl(fd, _KVM_CHECK_EXTENSION, capability)


def kvm_create_vm(kvm: int) -> int:
    """The descriptor of a new VM, close-on-exec, which belongs to this process."""
    return fcntl.ioctl(kvm, _KVM_CREATE_VM, 0)


def kvm_set_fixed_pages(vm: int) -> None:
    """Tell KVM where below 4 GiB four pages are free that it needs on some Intel processors."""
    if kvm_check(vm, KVM_CAP_SET_IDENTITY_MAP_ADDR):
        fcntl.ioctl(vm, _KVM_SET_IDENTITY_MAP_ADDR, struct.pack("=Q", _KVM_IDENTITY_ADDRESS))
    if kvm_check(vm, KVM_CAP_SET_TSS_ADDR):
        _check(_libc.ioctl(vm, _KVM_SET_TSS_ADDR, _KVM_TSS_ADDRESS), "KVM_SET_TSS_ADDR")


def kvm_create_irqchip(vm: int) -> None:
    """Put PIC, IOAPIC and a LAPIC for each vCPU into the kernel; before the first vCPU."""
    fcntl.ioctl(vm, _KVM_CREATE_IRQCHIP)


def kvm_create_pit(vm: int) -> None:
    """Put the interval timer into the kernel."""
    fcntl.ioctl(vm, _KVM_CREATE_PIT2, bytes(64))


def kvm_enable(vm: int, capability: int, argument: int) -> None:
    """KVM_ENABLE_CAP with one argument."""
    fcntl.ioctl(vm, _KVM_ENABLE_CAP, struct.pack("=IIQ88x", capability, 0, argument))


def kvm_set_memory(vm: int, slot: int, gpa: int, size_bytes: int, address: int, *, log: bool) -> None:
    """Show ``[address, address + size_bytes)`` of this process to the guest at *gpa*, with a dirty log or without."""
    flags = _KVM_MEM_LOG_DIRTY_PAGES if log else 0
    fcntl.ioctl(vm, _KVM_SET_USER_MEMORY_REGION, struct.pack("=IIQQQ", slot, flags, gpa, size_bytes, address))


def kvm_get_dirty_log(vm: int, slot: int, bits: npt.NDArray[np.uint8]) -> None:
    """Overwrite *bits* (one a page, whole 64-bit words) with the slot's log; clears it unless protection is manual."""
    fcntl.ioctl(vm, _KVM_GET_DIRTY_LOG, struct.pack("=IIQ", slot, 0, bits.ctypes.data))


def kvm_clear_dirty_log(vm: int, slot: int, first_page: int, pages: int, bits: npt.NDArray[np.uint8]) -> None:
    """Re-arm the pages set in *bits*, whose first bit is *first_page* of the slot.

    *first_page* must be a multiple of 64, *pages* too unless they reach the end of the slot.
    """
    argument = bytearray(struct.pack("=IIQQ", slot, pages, first_page, bits.ctypes.data))
    fcntl.ioctl(vm, _KVM_CLEAR_DIRTY_LOG, argument)


def kvm_reset_dirty_rings(vm: int) -> int:
    """Re-arm the pages of all ring entries that are marked KVM_DIRTY_GFN_RESET; returns how many entries."""
    while True:
        try:
            return fcntl.ioctl(vm, _KVM_RESET_DIRTY_RINGS)
        except InterruptedError:  # Linux 6.16 and newer stop at a signal, and go on where they stopped
            continue


def kvm_map_dirty_ring(vcpu: int, size_bytes: int) -> mmap.mmap:
    """The dirty ring of *vcpu*, entries of KVM_DIRTY_GFN_DTYPE."""
    return mmap.mmap(vcpu, size_bytes, offset=_KVM_DIRTY_RING_OFFSET)


def kvm_create_vcpu(vm: int, number: int) -> int:
    """The descriptor of a new vCPU, close-on-exec."""
    return fcntl.ioctl(vm, _KVM_CREATE_VCPU, number)


def kvm_map_run(kvm: int, vcpu: int) -> mmap.mmap:
    """The struct kvm_run of *vcpu*, with the data of its exits behind it."""
    return mmap.mmap(vcpu, fcntl.ioctl(kvm, _KVM_GET_VCPU_MMAP_SIZE))


def kvm_run(vcpu: int) -> bool:
    """Run *vcpu*, without the interpreter's lock, until an exit: True. False: interrupted, and nothing is pending.

    Not by fcntl.ioctl(), so that no version of Python calls again by itself after a signal.
    """
    if _libc.ioctl(vcpu, _KVM_RUN, 0) >= 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINTR, errno.EAGAIN):
        return False
    raise OSError(number, f"KVM_RUN: {os.strerror(number)}")


def kvm_get(fd: int, what: str, head: bytes = b"") -> bytes:
    """The structure *what* of KVM_STATE of a VM or vCPU; *head* is put into it before asking."""
    number = KVM_STATE[what][0]
    buffer = bytearray(head.ljust(number >> 16 & 0x3FFF, b"\0"))
    fcntl.ioctl(fd, number, buffer)
    return bytes(buffer)


def kvm_set(fd: int, what: str, content: bytes) -> None:
    """Set the structure *what* of KVM_STATE; ValueError unless *content* has its size."""
    number = KVM_STATE[what][1]
    size_bytes = number >> 16 & 0x3FFF
    if len(content) != size_bytes:
        raise ValueError(f"{what} has {size_bytes} bytes on this host, not {len(content)}")
    fcntl.ioctl(fd, number, bytearray(content))


def kvm_tsc_khz(vcpu: int) -> int:
    """The frequency of the vCPU's time stamp counter in kHz."""
    return fcntl.ioctl(vcpu, _KVM_GET_TSC_KHZ)


def kvm_set_tsc_khz(vcpu: int, khz: int) -> None:
    """Have the vCPU's time stamp counter run at *khz*; EINVAL where that is not the host's and cannot be scaled to."""
    fcntl.ioctl(vcpu, _KVM_SET_TSC_KHZ, khz)


def kvm_note_pause(vcpu: int) -> None:
    """Tell the guest's watchdog through its kvmclock that it stood still; a guest without kvmclock is not told."""
    try:
        fcntl.ioctl(vcpu, _KVM_KVMCLOCK_CTRL)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise


def kvm_supported_cpuid(kvm: int) -> KvmTable:
    """The CPUID entries that this host can give a guest, dtype KVM_CPUID_DTYPE."""
    buffer = bytearray(struct.pack("=II", _KVM_TABLE_ENTRIES, 0) + bytes(_KVM_TABLE_ENTRIES * KVM_CPUID_DTYPE.itemsize))
    fcntl.ioctl(kvm, _KVM_GET_SUPPORTED_CPUID, buffer)
    return np.frombuffer(buffer, KVM_CPUID_DTYPE, struct.unpack_from("=I", buffer)[0], 8).copy()


def kvm_set_cpuid(vcpu: int, entries: KvmTable) -> None:
    """Give *vcpu* these CPUID entries; before it runs for the first time."""
    fcntl.ioctl(vcpu, _KVM_SET_CPUID2, bytearray(struct.pack("=II", len(entries), 0) + entries.tobytes()))


def kvm_msr_indices(kvm: int) -> list[int]:
    """The MSRs that this host can save and restore."""
    buffer = bytearray(struct.pack("=I", _KVM_TABLE_ENTRIES) + bytes(4 * _KVM_TABLE_ENTRIES))
    fcntl.ioctl(kvm, _KVM_GET_MSR_INDEX_LIST, buffer)
    return list(struct.unpack_from(f"={struct.unpack_from('=I', buffer)[0]}I", buffer, 4))


def kvm_get_msrs(vcpu: int, entries: KvmTable) -> int:
    """Fill in the data of *entries* (KVM_MSR_DTYPE) in order; returns how many: the next one cannot be read."""
    buffer = bytearray(struct.pack("=II", len(entries), 0) + entries.tobytes())
    done = int(fcntl.ioctl(vcpu, _KVM_GET_MSRS, buffer))
    entries["data"][:done] = np.frombuffer(buffer, KVM_MSR_DTYPE, done, 8)["data"]
    return done


def kvm_set_msrs(vcpu: int, entries: KvmTable) -> int:
    """Set the MSRs of *entries* (KVM_MSR_DTYPE) in order; returns how many: the next one was refused."""
    buffer = bytearray(struct.pack("=II", len(entries), 0) + entries.tobytes())
    return int(fcntl.ioctl(vcpu, _KVM_SET_MSRS, buffer))
