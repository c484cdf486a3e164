# SPDX-License-Identifier: Apache-2.0
"""Regions that have memory are found, where it matters, and the plan uses what was found."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator

import pytest

from parmig.engine.messages.worker_messages import SendRegions
from parmig.engine.plan.events import Instruct, Instruction, LogStarted, WorkersReady
from parmig.engine.source.begun_regions import MIN_REGIONS, find_begun
from parmig.engine.source_plan.coordinator import Coordinator
from parmig.engine.work.policy import Limits
from parmig.linux.files import create_memory_file
from parmig.ram.blocks import PAGE_BYTES, BlockMemory, RamBlock, Segment
from parmig.ram.regions import Region, Regions, cut
from parmig.units import MIB, NS_PER_S

MAP_NORESERVE = 0x4000
REGION_PAGES = 64
SIZE_BYTES = MIN_REGIONS * REGION_PAGES * PAGE_BYTES
ROM_BYTES = 3 * PAGE_BYTES


@pytest.fixture
def memory() -> Iterator[list[BlockMemory]]:
    """A file of two blocks, of which the second one is at its begin, and nothing exists."""
    fd = create_memory_file("guest", ROM_BYTES + SIZE_BYTES)
    yield [BlockMemory(RamBlock("ram", SIZE_BYTES), fd, ROM_BYTES), BlockMemory(RamBlock("rom", ROM_BYTES), fd)]
    os.close(fd)


def regions_of(memory: list[BlockMemory]) -> Regions:
    return cut([item.block for item in memory], REGION_PAGES)


def test_regions_of_a_file_that_have_memory_are_found(memory: list[BlockMemory]) -> None:
    fd, region_bytes = memory[0].fd, REGION_PAGES * PAGE_BYTES
    for region, offset in ((0, region_bytes - 1), (7, 0), (8, PAGE_BYTES), (MIN_REGIONS - 1, region_bytes - 1)):
        os.pwrite(fd, b"x", ROM_BYTES + region * region_bytes + offset)
    begun = find_begun(memory, regions_of(memory))
    assert len(begun) == MIN_REGIONS + 1
    assert [number for number, has in enumerate(begun) if has] == [0, 7, 8, MIN_REGIONS - 1]
    os.pwrite(fd, b"x", 0)
    assert find_begun(memory, regions_of(memory))[-1] == 1


def test_regions_of_private_memory_are_found() -> None:
    block = RamBlock("ram", MIN_REGIONS * 8 * MIB)  # much more than this process has otherwise
    with mmap.mmap(-1, block.size_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE) as private:
        private[5 * 8 * MIB + 4 * MIB] = 1
        address = ctypes.addressof(ctypes.c_char.from_buffer(private))
        item = BlockMemory(block, pid=os.getpid(), segments=(Segment(0, block.pages, address),))
        begun = find_begun([item], cut([block], 8 * MIB // PAGE_BYTES))
    assert [number for number, has in enumerate(begun) if has] == [5]


def test_small_and_full_guests_are_not_looked_at(memory: list[BlockMemory]) -> None:
    assert find_begun(memory, cut([item.block for item in memory], 2 * REGION_PAGES)) == b""
    os.posix_fallocate(memory[0].fd, 0, ROM_BYTES + SIZE_BYTES // 2)
    assert find_begun(memory, regions_of(memory)) == b""


def test_the_plan_cuts_the_first_round_by_what_was_found() -> None:
    assert first_bundle(b"") == (0, 1)
    assert first_bundle(bytes(64)) == tuple(range(8))
    assert first_bundle(bytes([1] * 64)) == (0, 1)


def first_bundle(begun: bytes) -> tuple[int, ...]:
    """What a plan for 64 regions of 2 MiB and two workers gives the first one first."""
    regions = [Region(0, number * 512, 512) for number in range(64)]
    plan = Coordinator(regions, 2, Limits(NS_PER_S, 0, NS_PER_S), verify=False)
    plan.handle(WorkersReady(), 1)
    first: Instruction = plan.handle(LogStarted(needs_sync=False, begun=begun), 2)[0]
    assert isinstance(first, Instruct)
    assert isinstance(first.instruction, SendRegions)
    return first.instruction.regions
