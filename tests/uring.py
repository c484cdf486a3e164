# SPDX-License-Identifier: Apache-2.0
"""A thread of the kernel that stores to this process's memory, as vhost's threads do: io_uring with SQPOLL.

The thread uses this process's page tables and reads from a pipe. It finds a request in shared memory and copies the
data itself; this process makes a system call only to wake it. Layout: include/uapi/linux/io_uring.h. The rings are read
and written without barriers, so this works only on x86, which keeps stores in order.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import struct
import time
from pathlib import Path
from types import TracebackType

from parmig.linux import syscalls

_SYS_IO_URING_SETUP = 425
_SYS_IO_URING_ENTER = 426
_SETUP_SQPOLL = 2
_NEEDS_WAKEUP = 1
_ENTER_SQ_WAKEUP = 2
_OP_READ = 22
_OFFSET_OF_REQUESTS = 0x1000_0000
_LIMIT_S = 60.0
_IDLE_MS = 10
"""The thread sleeps after so long without a request; until then it looks for one all the time."""


class KernelThread:
    """A context manager; one read at a time.

    Raises:
        OSError: the kernel does not allow io_uring.
    """

    def __init__(self) -> None:
        parameters = bytearray(120)  # struct io_uring_params
        struct.pack_into("=3I", parameters, 8, _SETUP_SQPOLL, 0, _IDLE_MS)
        held = (ctypes.c_char * len(parameters)).from_buffer(parameters)
        before = _threads()
        self._fd = syscalls.syscall(_SYS_IO_URING_SETUP, 1, ctypes.addressof(held))
        deadline = time.monotonic() + _LIMIT_S
        while not (found := _threads() - before):  # it takes its name when it first runs
            assert time.monotonic() < deadline, "the kernel's thread begins"
        (self._task,) = found
        (self._tail,) = struct.unpack_from("=I", parameters, 44)
        self._flags, _, self._array = struct.unpack_from("=3I", parameters, 56)
        self._done_head, self._done_tail, self._done_mask = struct.unpack_from("=3I", parameters, 80)
        (self._done,) = struct.unpack_from("=I", parameters, 100)
        self._rings = mmap.mmap(self._fd, mmap.PAGESIZE)
        self._requests = mmap.mmap(self._fd, mmap.PAGESIZE, offset=_OFFSET_OF_REQUESTS)

    def __enter__(self) -> KernelThread:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._rings.close()
        self._requests.close()
        os.close(self._fd)

    @property
    def faults(self) -> int:
        """Page faults of the thread so far: min_flt of /proc/PID/stat."""
        return int((self._task / "stat").read_text().rpartition(")")[2].split()[7])

    def read(self, fd: int, address: int, size_bytes: int) -> int:
        """Let the thread read from *fd*, a filled pipe, into our memory at *address*; return the number of bytes."""
        struct.pack_into("=BBHiQQI36x", self._requests, 0, _OP_READ, 0, 0, fd, 0, address, size_bytes)
        tail = self._word(self._tail)
        self._put_word(self._array, 0)
        self._put_word(self._tail, (tail + 1) % 2**32)
        head = self._word(self._done_head)
        deadline = time.monotonic() + _LIMIT_S
        while self._word(self._done_tail) == head:
            if self._word(self._flags) & _NEEDS_WAKEUP:
                syscalls.syscall(_SYS_IO_URING_ENTER, self._fd, 0, 0, _ENTER_SQ_WAKEUP, 0, 0)
            assert time.monotonic() < deadline, "the kernel's thread answers"
        at = self._done + (head & self._word(self._done_mask)) * 16
        (result,) = struct.unpack_from("=i", self._rings, at + 8)
        self._put_word(self._done_head, (head + 1) % 2**32)
        if result < 0:
            raise OSError(-result, f"read by the kernel's thread: {os.strerror(-result)}")
        return int(result)

    def _word(self, at: int) -> int:
        return int(struct.unpack_from("I", self._rings, at)[0])

    def _put_word(self, at: int, value: int) -> None:
        struct.pack_into("I", self._rings, at, value)


def _threads() -> set[Path]:
    """The threads of the kernel among those of this process; ``iou-sqp-`` is how the kernel calls them."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended
            if (task / "comm").read_text().startswith("iou-sqp-"):
                found.add(task)
    return found
