# SPDX-License-Identifier: Apache-2.0
"""Stores of the kernel's own threads through the guest's page tables are seen: so vhost-net and vhost-vsock store."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import numpy.typing as npt
import pytest

from parmig.guests.spawned.write_tracking import track_own_writes
from parmig.linux import syscalls, uffd
from parmig.ram.blocks import PAGE_BYTES, RamBlock
from parmig.ram.dirty_log import DirtyLog, Segment
from parmig.ram.regions import Region
from parmig.ram.trackers.pagemap import PagemapTracker
from tests.uring import KernelThread

PAGES = 64
Bytes = npt.NDArray[np.uint8]
SPAN = Region(0, 0, PAGES)
NO_PAGEMAP = uffd.probe_write_tracking()

pytestmark = [
    pytest.mark.skipif(NO_PAGEMAP is not None, reason=str(NO_PAGEMAP)),
    pytest.mark.skipif(syscalls.MACHINE != "x86_64", reason="tests/uring.py relies on the order of stores of x86"),
]


@pytest.fixture
def kernel_thread() -> Iterator[KernelThread]:
    try:
        thread = KernelThread()
    except OSError as error:
        pytest.skip(f"no io_uring here: {error}")
    with thread:
        yield thread


@pytest.fixture
def memory() -> Bytes:
    """Shared memory of a guest whose pages all exist."""
    pages = np.frombuffer(mmap.mmap(-1, PAGES * PAGE_BYTES), dtype=np.uint8)
    pages[:] = 1
    return pages


@pytest.fixture
def tracker(memory: Bytes) -> Iterator[PagemapTracker]:
    """Armed; nothing was written since."""
    address = memory.ctypes.data
    with ExitStack() as stack:
        stack.callback(os.close, track_own_writes([(address, memory.nbytes)]))
        log = DirtyLog("pagemap", os.getpid(), ((Segment(0, PAGES, address),),))
        tracker = PagemapTracker(log, [RamBlock("ram0", memory.nbytes)])
        stack.callback(tracker.close)
        tracker.arm(SPAN)
        assert tracker.scan(SPAN) is None
        yield tracker


def dirty_pages(tracker: PagemapTracker) -> list[int]:
    found = tracker.scan(SPAN)
    return [] if found is None else np.flatnonzero(found.dirty).tolist()


def test_what_a_thread_of_the_kernel_stores_between_two_scans_is_dirty(
    kernel_thread: KernelThread, memory: Bytes, tracker: PagemapTracker
) -> None:
    source, sink = os.pipe()
    with os.fdopen(source, "rb"), os.fdopen(sink, "wb"):
        for page, offset, dirty in ((5, 0, [5]), (5, 0, [5]), (40, 100, [40, 41])):
            data = os.urandom(PAGE_BYTES)
            os.write(sink, data)
            at = page * PAGE_BYTES + offset
            before = kernel_thread.faults
            assert kernel_thread.read(source, memory.ctypes.data + at, PAGE_BYTES) == PAGE_BYTES
            assert kernel_thread.faults - before == len(dirty)  # so it was this thread that stored
            assert memory[at : at + PAGE_BYTES].tobytes() == data
            assert dirty_pages(tracker) == dirty
            assert dirty_pages(tracker) == []
