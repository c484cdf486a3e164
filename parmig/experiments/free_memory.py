# SPDX-License-Identifier: Apache-2.0
"""Free memory, warm and cold. Cold: the host below this virtual machine has taken it back, so a touch faults there.

A host takes free memory back late, and never all of it: on the development machine (22 GiB free, touched 1 GiB after
the other), 9 GiB were warm right after they had been freed, and 3 GiB still after 15 and after 30 seconds. Warm
memory was touched at 1400 to 2500 MiB/s, cold memory at 250 to 380. A fixed wait therefore gives a mixture. Here a
ballast takes the warm part first, until touching becomes slow, and keeps it while the caller measures.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import time
from collections.abc import Iterator

import psutil

from parmig.errors import HostRefusedError
from parmig.units import MIB

_CHUNK = bytes(32 * MIB)
_SLOW_CHUNKS = 8
"""So many slow chunks in a row are cold memory: a single one also comes from another program."""
_COLD_PART = 0.5
"""A chunk is slow if its rate is below this part of the warm one; cold memory was at 0.15 to 0.25 of it."""
_SPARE_BYTES = 2048 * MIB
"""What the ballast leaves free beyond what the caller needs."""
_LIMIT_S = 90.0

MORE_BYTES = 512 * MIB
"""What is prepared beyond the guest's size, for socket buffers, page tables and processes."""


def touch_memory(size_bytes: int, *, huge: bool = False) -> None:
    """Take *size_bytes* of memory and give it back.

    Args:
        huge: take as much again in transparent huge pages, if this host has them. A kernel takes those from other
            free memory than small pages: they were touched at 155 MiB/s right after as much had been touched in small
            pages, and at 1450 MiB/s the second time. That memory is what a host takes back first, too.

    In a virtual machine the first touch of memory that the host has taken back costs four times as much as the guest
    kernel's own part, and the first run would pay for all of it. The host takes free memory back within seconds, so
    this belongs right before the start: with a second in between, single runs were 25 % slower than others.
    """
    fd = os.memfd_create("parmig-touch")
    chunk = bytes(4 * MIB)
    for at in range(0, size_bytes, len(chunk)):
        os.pwrite(fd, chunk, at)
    if huge and size_bytes:
        with mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
            with contextlib.suppress(OSError):  # this kernel has no huge pages
                memory.madvise(mmap.MADV_HUGEPAGE)
            for at in range(0, size_bytes, mmap.PAGESIZE):
                memory[at] = 1
    os.close(fd)


@contextlib.contextmanager
def prepared(condition: str, needed_bytes: int) -> Iterator[None]:
    """Free memory is in *condition* at the start of the context; enter it when all else has been filled.

    Args:
        condition: one of :data:`.factors.FREE_MEMORY`.
        needed_bytes: the size of what is going to be moved.

    Raises:
        HostRefusedError: as :func:`cold_memory`.
    """
    with contextlib.ExitStack() as stack:
        if condition == "warm":
            touch_memory(needed_bytes + MORE_BYTES)
        elif condition == "cold":
            stack.enter_context(cold_memory(needed_bytes + MORE_BYTES))
        yield


@contextlib.contextmanager
def cold_memory(needed_bytes: int) -> Iterator[int]:
    """Free memory is cold inside the context.

    Args:
        needed_bytes: how much of it the caller is going to use.

    Yields:
        the rate at which free memory was touched last, in MiB/s.

    Raises:
        HostRefusedError: there is no cold memory: the host takes none back, or too little is free.
    """
    deadline = time.monotonic() + _LIMIT_S
    while True:
        fd = os.memfd_create("parmig-ballast")
        try:
            if rate := _take_warm(fd, psutil.virtual_memory().available - needed_bytes - _SPARE_BYTES):
                yield round(rate)
                return
        finally:
            os.close(fd)
        if time.monotonic() > deadline:
            raise HostRefusedError(
                f"all free memory is warm since {_LIMIT_S:g} s: this host takes none back; leave out the condition cold"
            )
        time.sleep(5)  # the host needs time to take back what was just freed


def _take_warm(fd: int, limit_bytes: int) -> float | None:
    """Fill the memory file *fd* until touching is slow; that rate in MiB/s, or None if it was fast up to the limit."""
    _touch(fd, 0)
    os.ftruncate(fd, 0)
    warm = _touch(fd, 0)
    rates: list[float] = []
    for at in range(len(_CHUNK), limit_bytes, len(_CHUNK)):
        rates = [*rates[1 - _SLOW_CHUNKS :], _touch(fd, at)]
        if len(rates) == _SLOW_CHUNKS and max(rates) < warm * _COLD_PART:
            return sum(rates) / len(rates)
    return None


def _touch(fd: int, at: int) -> float:
    began = time.monotonic()
    os.pwrite(fd, _CHUNK, at)
    return len(_CHUNK) / MIB / (time.monotonic() - began)
