# SPDX-License-Identifier: Apache-2.0
"""Huge pages of memory files: whether the host gives them, and what they gain when memory is filled."""

from __future__ import annotations

import mmap
import os
import time

import numpy as np

from parmig.linux import huge_pages
from parmig.linux.huge_pages import HUGE_PAGE_BYTES
from parmig.probes.probe import Probe
from parmig.units import GIB, MIB

_NAME = "shmem huge pages"

_FILLED_BYTES = 32 * MIB
"""Filled in small and in huge pages, some 20 ms together. The first time does not count: memory of a virtual machine
may have to be provided by its own host, which takes ten times as long."""


def probe_shmem_huge() -> Probe:
    """Whether memory files may use huge pages, and how much faster these are filled here."""
    setting = huge_pages.setting()
    gain = _measured_gain()
    if setting in ("never", "deny"):
        advice = "echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled, or mount tmpfs with huge=advise"
        return Probe(_NAME, "limited", f"{setting}; {gain}", advice)
    return Probe(_NAME, "ok", f"{setting}; {gain}")


def _measured_gain() -> str:
    """How fast memory files are filled here in small and in huge pages."""
    try:
        root = huge_pages.unmounted_tmpfs("advise")
    except OSError as error:
        return f"gain not measured: a tmpfs of its own is not allowed ({error.strerror})"
    try:
        rates = {huge: max(_fill_rate(root, huge=huge) for _ in range(3)) for huge in (False, True)}
    finally:
        os.close(root)
    small, large = (rates[huge] / GIB for huge in (False, True))
    return f"memory is filled at {small:.1f} GiB/s in small pages, at {large:.1f} in huge ones"


def _fill_rate(root: int, *, huge: bool) -> float:
    """How fast one process fills a new file in the directory *root*, in bytes a second."""
    fd = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=root)
    try:
        os.ftruncate(fd, _FILLED_BYTES)
        source = np.ones(HUGE_PAGE_BYTES, dtype=np.uint8)
        with mmap.mmap(fd, _FILLED_BYTES) as memory:
            target = np.frombuffer(memory, dtype=np.uint8)
            if huge:
                huge_pages.advise(target.ctypes.data, _FILLED_BYTES)
            began_ns = time.monotonic_ns()
            for at in range(0, _FILLED_BYTES, HUGE_PAGE_BYTES):
                if huge:
                    target[at : at + HUGE_PAGE_BYTES] = source
                else:
                    os.pwrite(fd, source.data, at)
            took_ns = time.monotonic_ns() - began_ns
            del target
    finally:
        os.close(fd)
    return _FILLED_BYTES * 1e9 / took_ns
