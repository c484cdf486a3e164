# SPDX-License-Identifier: Apache-2.0
"""A thread of another process, stopped for a moment and made to run system calls (ptrace(2), x86-64).

If this process is killed (SIGKILL) during a borrowed call, which takes about 50 microseconds, the thread continues with
wrong registers. Nothing else leaves a trace in it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import time
from pathlib import Path

from parmig.errors import HostRefusedError
from parmig.linux import ptrace, syscalls

STOP_LIMIT_S = 5.0
"""How long a thread may take to stop. It usually takes 0.1 ms; only a thread in a hung file system takes long."""

RESTORE_LIMIT_S = 60.0
"""How long to wait, at the end, for a thread that hangs in a borrowed call. Without its own registers it would crash,
so this limit is longer than that of the call."""

POLL_S = 50e-6
"""Pause between looks at a stopping thread: waitpid(2) has no limit of its own, and no descriptor."""

_CODE_SEGMENT_64 = 0x33  # __USER_CS, arch/x86/include/asm/segment.h


class StoppedThread:
    """The main thread of a process, stopped, that can be made to run system calls.

    A context manager for one thread of the caller. When it is left, in any way, registers and signal mask
    are as before, and the thread continues; an interrupted system call is restarted by the kernel.

    Args:
        pid: the process.
        limit_s: how long any stop may take, in seconds.

    Raises:
        OSError: EPERM: not allowed to trace; ESRCH: the process is gone.
        HostRefusedError: it does not stop, or another process stopped it, or it is not a 64-bit process.
    """

    def __init__(self, pid: int, limit_s: float = STOP_LIMIT_S) -> None:
        self._pid = pid
        self._limit_s = limit_s
        self._stopped = False

    def __enter__(self) -> StoppedThread:
        ptrace.seize(self._pid)
        try:
            ptrace.interrupt(self._pid)
            self._wait_for_interrupt()
            self._registers = ptrace.registers(self._pid)
            self._mask = ptrace.signal_mask(self._pid)
            if self._registers.cs != _CODE_SEGMENT_64:
                raise HostRefusedError(f"process {self._pid} is not a 64-bit process; use --tracker digest")
            self._instruction = self._find_instruction()
        except BaseException:
            self._detach()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if not self._stopped:
                self._give_up_call()
            ptrace.set_signal_mask(self._pid, self._mask)
            ptrace.set_registers(self._pid, self._registers)
        finally:
            self._detach()

    def _give_up_call(self) -> None:
        """Interrupt a borrowed call that hangs, as a signal would, and wait until the thread has stopped."""
        self._limit_s = RESTORE_LIMIT_S
        ptrace.interrupt(self._pid)
        if self._wait() >> 8 == ptrace.PTRACE_EVENT_STOP and _is_pending(self._pid, signal.SIGTRAP):
            ptrace.resume(self._pid)  # the step's own is on its way, and would end an untraced process
            self._wait()

    def _detach(self) -> None:
        # A thread that never stopped cannot be detached (ESRCH); it is let go of when this thread ends.
        if self._stopped:
            with contextlib.suppress(ProcessLookupError):
                ptrace.detach(self._pid)

    def call(self, number: int, *arguments: int) -> int:
        """Make the thread run system call *number*; returns its result, ``-errno`` for an error."""
        registers = ptrace.UserRegs.from_buffer_copy(self._registers)
        registers.rip = self._instruction
        registers.rax = number
        # Not in a system call, else the kernel would restart the interrupted one from here.
        registers.orig_rax = 2**64 - 1
        for name, value in zip(("rdi", "rsi", "rdx", "r10", "r8", "r9"), arguments, strict=False):
            setattr(registers, name, value)
        # A handler that ran now would run on the borrowed registers. SIGTRAP, the step's own, must pass.
        ptrace.set_signal_mask(self._pid, ~(1 << (signal.SIGTRAP - 1)) & (2**64 - 1))
        ptrace.set_registers(self._pid, registers)
        self._step()
        while self._wait() != signal.SIGTRAP:
            # A SIGSTOP or SIGCONT reported itself first; the step, or its trap, is still to come.
            self._step()
        return ctypes.c_int64(ptrace.registers(self._pid).rax).value

    def _step(self) -> None:
        ptrace.step(self._pid)
        self._stopped = False

    def _wait_for_interrupt(self) -> None:
        while (stop := self._wait()) >> 8 != ptrace.PTRACE_EVENT_STOP:
            ptrace.resume(self._pid, stop & 0xFF)  # a signal was on its way: deliver it
            self._stopped = False
        if stop & 0xFF != signal.SIGTRAP:
            raise HostRefusedError(f"process {self._pid} was stopped by a signal; continue it (kill -CONT {self._pid})")

    def _wait(self) -> int:
        """The next stop: its signal, and above bit 8 its event. Raises ESRCH when the process ended."""
        deadline = time.monotonic() + self._limit_s
        while True:
            stopped_pid, status = os.waitpid(self._pid, os.WNOHANG | ptrace.WAIT_ALL)
            if stopped_pid and os.WIFSTOPPED(status):
                self._stopped = True
                return status >> 8
            if stopped_pid:
                raise ProcessLookupError(errno.ESRCH, "ended")
            if time.monotonic() > deadline:
                raise HostRefusedError(
                    f"a thread of process {self._pid} did not stop within {self._limit_s:g} s; it hangs in the "
                    f"kernel (see /proc/{self._pid}/stack); use --tracker digest"
                )
            time.sleep(POLL_S)

    def _find_instruction(self) -> int:
        """The address of a system call instruction: the one it stopped in, else one of the vdso or libc."""
        wanted = ptrace.SYSCALL_INSTRUCTION[syscalls.MACHINE]
        with open(f"/proc/{self._pid}/mem", "rb", buffering=0) as memory:
            here = int(self._registers.rip) - len(wanted)
            if _peek(memory.fileno(), here, len(wanted)) == wanted:
                return here
            for line in Path(f"/proc/{self._pid}/maps").read_text().splitlines():
                if "r-xp" in line and ("[vdso]" in line or "/libc" in line or "/ld-" in line):
                    start, end = (int(text, 16) for text in line.split()[0].split("-"))
                    at = _peek(memory.fileno(), start, end - start).find(wanted)
                    if at >= 0:
                        return start + at
        raise HostRefusedError(
            f"process {self._pid} maps no libc, expected one to make a system call from; use --tracker digest"
        )


def _peek(fd: int, address: int, size_bytes: int) -> bytes:
    try:
        return os.pread(fd, size_bytes, address)
    except (OSError, OverflowError):
        return b""


def _is_pending(pid: int, number: signal.Signals) -> bool:
    """Whether that signal waits for the main thread of the process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (pending,) = (int(line.split()[1], 16) for line in lines if line.startswith("SigPnd:"))
    return bool(pending >> (number - 1) & 1)
