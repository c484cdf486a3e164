# SPDX-License-Identifier: Apache-2.0
"""Another process: ptrace(2), pidfd_getfd(2); include/uapi/linux/ptrace.h."""

from __future__ import annotations

import ctypes

from parmig.linux.syscalls import check, libc, syscall

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

libc.ptrace.restype = ctypes.c_long
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


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
    check(libc.ptrace(request, thread, address, data), f"ptrace {what} of thread {thread}")


def seize(thread: int) -> None:
    """Become the tracer of *thread* without stopping it. Tracing ends with the calling thread at the latest."""
    _ptrace(_PTRACE_SEIZE, thread, 0, 0, "SEIZE")


def interrupt(thread: int) -> None:
    """Ask a seized thread to stop; it reports a PTRACE_EVENT_STOP."""
    _ptrace(_PTRACE_INTERRUPT, thread, 0, 0, "INTERRUPT")


def resume(thread: int, signal_number: int = 0) -> None:
    """Let a stopped thread go on, and give it *signal_number* unless that is 0."""
    _ptrace(_PTRACE_CONT, thread, 0, signal_number, "CONT")


def step(thread: int) -> None:
    """Let a stopped thread run one instruction; it then stops by SIGTRAP."""
    _ptrace(_PTRACE_SINGLESTEP, thread, 0, 0, "SINGLESTEP")


def detach(thread: int) -> None:
    """Let a stopped thread go on, untraced."""
    _ptrace(_PTRACE_DETACH, thread, 0, 0, "DETACH")


def registers(thread: int) -> UserRegs:
    """The registers of a stopped thread."""
    registers = UserRegs()
    _ptrace(_PTRACE_GETREGS, thread, 0, ctypes.addressof(registers), "GETREGS")
    return registers


def set_registers(thread: int, registers: UserRegs) -> None:
    """Set the registers of a stopped thread."""
    _ptrace(_PTRACE_SETREGS, thread, 0, ctypes.addressof(registers), "SETREGS")


def signal_mask(thread: int) -> int:
    """The blocked signals of a stopped thread; bit n-1 is signal n."""
    mask = ctypes.c_uint64()
    _ptrace(_PTRACE_GETSIGMASK, thread, ctypes.sizeof(mask), ctypes.addressof(mask), "GETSIGMASK")
    return mask.value


def set_signal_mask(thread: int, mask: int) -> None:
    """Set the blocked signals of a stopped thread."""
    value = ctypes.c_uint64(mask)
    _ptrace(_PTRACE_SETSIGMASK, thread, ctypes.sizeof(value), ctypes.addressof(value), "SETSIGMASK")


def pidfd_getfd(pidfd: int, number: int) -> int:
    """A copy, close-on-exec, of descriptor *number* of the process that *pidfd* names. Needs ptrace access."""
    return syscall(_SYS_PIDFD_GETFD, pidfd, number, 0)
