# SPDX-License-Identifier: Apache-2.0
"""Cold free memory on a virtual machine: the host below has taken it back, so the first touch faults there too.

A host takes free memory back late, and never all of it: on the development machine (22 GiB free, touched 1 GiB after
the other), 9 GiB were warm right after they had been freed, and 3 GiB still after 15 and after 30 seconds. Warm
memory was touched at 1400 to 2500 MiB/s, cold memory at 250 to 380. A fixed wait therefore gives a mixture. Here a
ballast takes the warm part first, until touching becomes slow, and keeps it while the caller measures.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator

import psutil

MIB = 1 << 20
_CHUNK = bytes(32 * MIB)
_SLOW_CHUNKS = 8
"""So many slow chunks in a row are cold memory: a single one also comes from another program."""
_COLD_PART = 0.5
"""A chunk is slow if its rate is below this part of the warm one; cold memory was at 0.15 to 0.25 of it."""
_SPARE_BYTES = 2048 * MIB
"""What the ballast leaves free beyond what the caller needs."""
_LIMIT_S = 90.0


@contextlib.contextmanager
def cold_memory(needed_bytes: int) -> Iterator[int]:
    """Free memory is cold inside the context.

    Args:
        needed_bytes: how much of it the caller is going to use.

    Yields:
        the rate at which free memory was touched last, in MiB/s.

    Raises:
        RuntimeError: there is no cold memory: the host takes none back, or too little is free.
    """
    deadline = time.monotonic() + _LIMIT_S
    while True:
        fd = os.memfd_create("bench-ballast")
        try:
            if rate := _take_warm(fd, psutil.virtual_memory().available - needed_bytes - _SPARE_BYTES):
                yield round(rate)
                return
        finally:
            os.close(fd)
        if time.monotonic() > deadline:
            raise RuntimeError(
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
