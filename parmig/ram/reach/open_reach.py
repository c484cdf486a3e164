# SPDX-License-Identifier: Apache-2.0
"""The way to the memory of each block."""

from __future__ import annotations

import os
from collections.abc import Iterable

from parmig.linux import process
from parmig.ram.blocks import PAGE_BYTES, BlockMemory
from parmig.ram.reach.mapped import BlockMapping
from parmig.ram.reach.process import ProcessReach
from parmig.ram.reach.reach import Reach


def open_reach(memory: BlockMemory) -> Reach:
    """Reach a block; the caller closes what is returned. The descriptor is used, not owned.

    Raises:
        GuestRefusedError: its file cannot be mapped.
        HostRefusedError: the memory of its process may not be read and written.
        GuestError: its process is gone.
    """
    return ProcessReach(memory) if memory.pid else BlockMapping(memory)


def allocated_bytes(memory: Iterable[BlockMemory]) -> int:
    """About how much memory *memory* takes on this host: what the files have, and what is private of the processes."""
    memory = list(memory)
    files = sum(os.fstat(fd).st_blocks * 512 for fd in {item.fd for item in memory if not item.pid})
    private = sum(item.block.size_bytes for item in memory if item.pid)
    return files + min(private, sum(process.anonymous_bytes(pid) for pid in {item.pid for item in memory if item.pid}))


def check_reachable(memory: Iterable[BlockMemory]) -> None:
    """Reach each block once, so that one that cannot be reached is refused here, by its name.

    Raises:
        ParmigError: as :func:`open_reach`.
    """
    page = memoryview(bytearray(PAGE_BYTES))
    for item in memory:
        reach = open_reach(item)
        try:
            reach.read_span(0, page)
        finally:
            reach.close()
