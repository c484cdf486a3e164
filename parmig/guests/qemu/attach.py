# SPDX-License-Identifier: Apache-2.0
"""Write tracking for the memory of a process that does not cooperate.

A userfaultfd tracks the address space of the process that made it, so QEMU has to make it: one of its
threads is stopped for a moment (0.5 ms measured) and made to run two system calls. The first makes the
descriptor, which is copied to this process; the second closes QEMU's own, in the same stop. From then on
this process holds the only one. However it ends, by SIGKILL too, the kernel drops the descriptor and with
it every registration (fs/userfaultfd.c, userfaultfd_release): nothing stays behind in QEMU.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from parmig.errors import GuestError, HostRefusedError
from parmig.guests.qemu.stopped import StoppedThread
from parmig.linux import ptrace, syscalls, uffd

_UFFD_FLAGS = os.O_CLOEXEC | os.O_NONBLOCK | uffd.UFFD_USER_MODE_ONLY

Range = tuple[int, int]
"""Address and size in bytes."""


class WriteTracking:
    """Asynchronous write protection over memory of another process, for as long as this object is open.

    Made by :func:`attach`. Owns the only descriptor of the userfaultfd.
    """

    def __init__(self, tracking_fd: int, ranges: Iterable[Range]) -> None:
        self._uffd = tracking_fd
        self._ranges = tuple(ranges)

    def close(self) -> None:
        """End the tracking. Never raises; calling it twice is fine."""
        tracking_fd, self._uffd = self._uffd, -1
        if tracking_fd < 0:
            return
        for address, size_bytes in self._ranges:
            # Fails when the process is gone; its memory is, too.
            with contextlib.suppress(OSError):
                uffd.unregister(tracking_fd, address, size_bytes)
        os.close(tracking_fd)

    def __enter__(self) -> WriteTracking:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def attach(pid: int, ranges: Iterable[Range]) -> WriteTracking:
    """Track writes to *ranges* of process *pid*; they are registered, not yet protected.

    Args:
        pid: a process of this machine; it runs on as before.
        ranges: whole mappings or parts of them, on page borders.

    Raises:
        HostRefusedError: ptrace is not allowed, or the kernel or another tracker is in the way.
        GuestError: the process ended meanwhile.
    """
    ranges = tuple(ranges)
    tracking_fd = borrow_userfaultfd(pid)
    tracking = WriteTracking(tracking_fd, ())
    try:
        uffd.enable(tracking_fd, uffd.UFFD_TRACKING_FEATURES)
        for address, size_bytes in ranges:
            uffd.register_wp(tracking_fd, address, size_bytes)
    except OSError as error:
        tracking.close()  # drops what was registered, with the descriptor
        raise _registration_refused(pid, error) from error
    except BaseException:
        tracking.close()
        raise
    return WriteTracking(tracking_fd, ranges)


def borrow_userfaultfd(pid: int) -> int:
    """A userfaultfd of process *pid* that only this process holds; the caller closes it.

    Raises:
        HostRefusedError: ptrace or userfaultfd is not allowed; the message names the reason and what to do.
        GuestError: the process ended meanwhile.
    """
    if syscalls.MACHINE not in ptrace.SYSCALL_INSTRUCTION:
        raise HostRefusedError(
            f"parmig cannot attach to QEMU on {syscalls.MACHINE}, only on x86-64; use --tracker digest"
        )
    return _in_own_thread(lambda: _borrow(pid))


def _in_own_thread(borrow: Callable[[], int]) -> int:
    """The descriptor that *borrow* returns, run in a thread that no signal handler of Python interrupts.

    ptrace belongs to a thread, and when that ends the kernel lets go of all it traced. A KeyboardInterrupt
    in the caller therefore never leaves a stopped QEMU: it is raised after the work has ended.
    """
    results: list[int] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(borrow())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="parmig-ptrace", daemon=True)
    thread.start()
    try:
        thread.join()
    except BaseException:
        thread.join()
        for fd in results:
            os.close(fd)
        raise
    if errors:
        raise errors[0]
    return results[0]


def _borrow(pid: int) -> int:
    copy = -1
    try:
        pidfd = os.pidfd_open(pid)
        try:
            with StoppedThread(pid) as thread:
                number = thread.call(uffd.SYS_USERFAULTFD[syscalls.MACHINE], _UFFD_FLAGS)
                if number < 0:
                    raise _userfaultfd_refused(pid, -number)
                try:
                    copy = ptrace.pidfd_getfd(pidfd, number)
                finally:
                    thread.call(ptrace.SYS_CLOSE[syscalls.MACHINE], number)
        finally:
            os.close(pidfd)
    except BaseException as error:
        if copy >= 0:
            os.close(copy)
        if isinstance(error, ProcessLookupError):
            raise GuestError(f"QEMU (process {pid}) ended while parmig attached to it") from error
        if isinstance(error, OSError):
            raise _ptrace_refused(pid, error) from error
        raise
    return copy


def _ptrace_refused(pid: int, error: OSError) -> HostRefusedError:
    reasons = []
    status = dict(line.split(":\t", 1) for line in _read(f"/proc/{pid}/status").splitlines() if ":\t" in line)
    if (tracer := status.get("TracerPid", "0")) != "0":
        reasons.append(f"process {tracer} (a debugger?) traces it already: end that one")
    if scope := _read("/proc/sys/kernel/yama/ptrace_scope").strip():
        reasons.append(f"/proc/sys/kernel/yama/ptrace_scope is {scope}, 0 is needed without CAP_SYS_PTRACE")
    owner = status.get("Uid", "?").split("\t")[0]
    reasons.append(f"QEMU's uid is {owner}, parmig's is {os.getuid()}")
    return HostRefusedError(
        f"not allowed to attach to QEMU (process {pid}): {error.strerror or error}; {'; '.join(reasons)}. "
        "Run parmig as root or with CAP_SYS_PTRACE, or as QEMU's own user with Yama's ptrace_scope 0; "
        "for shared memory, state=migrate and --tracker digest need no attaching"
    )


def _userfaultfd_refused(pid: int, number: int) -> HostRefusedError:
    return HostRefusedError(
        f"QEMU (process {pid}) may not make a userfaultfd: {os.strerror(number)}; a seccomp filter (of a container, "
        "or -sandbox) denies it, or the kernel has none: allow the system call, or use --tracker digest"
    )


def _registration_refused(pid: int, error: OSError) -> HostRefusedError:
    if error.errno == errno.EBUSY:
        return HostRefusedError(
            f"memory of QEMU (process {pid}) has a userfaultfd already: another tracker is attached, another migration "
            "or QEMU's own post-copy or background snapshot; end that one, or use --tracker digest"
        )
    return HostRefusedError(
        f"the kernel refuses write tracking over memory of QEMU (process {pid}): {error.strerror or error}; "
        "Linux 6.7 or newer is needed: use --tracker digest"
    )


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
