# SPDX-License-Identifier: Apache-2.0
"""Guest memory: one block, in the guest below 3 GiB and above 4 GiB. Devices have the addresses between."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from parmig.errors import GuestError
from parmig.linux import kvm
from parmig.ram.blocks import PAGE_BYTES, BlockMemory, GuestRange, RamBlock
from parmig.ram.reach.mapped import BlockMapping
from parmig.units import GIB

BLOCK_NAME = "ram"
LOW_BYTES = 3 * GIB
HIGH_START = 4 * GIB

Marker = Callable[[int, int], None]
"""Marks pages ``[first, end)`` of the block, which the monitor itself wrote, in the dirty log."""


def ram_block(memory_bytes: int) -> RamBlock:
    """The block of a guest with *memory_bytes*. The part over 3 GiB is at 4 GiB in the guest."""
    low_bytes = min(memory_bytes, LOW_BYTES)
    ranges = [GuestRange(0, 0, low_bytes)]
    if memory_bytes > low_bytes:
        ranges.append(GuestRange(HIGH_START, low_bytes, memory_bytes - low_bytes))
    return RamBlock(BLOCK_NAME, memory_bytes, ranges=tuple(ranges))


class Slot(NamedTuple):
    """A piece of a block as KVM knows it: *pages* pages from *first_page* of block *block*, at *gpa* in the guest.

    Attributes:
        number: its number in KVM.
        address: where this process maps it.
        first_bit: where it begins in the dirty bitmap; a multiple of 64.
    """

    number: int
    block: int
    first_page: int
    pages: int
    gpa: int
    address: int
    first_bit: int

    def show(self, vm: int, *, log: bool) -> None:
        """Show the slot to the guest, with or without a dirty log. If the guest has it, only the log changes."""
        kvm.set_memory(vm, self.number, self.gpa, self.pages * PAGE_BYTES, self.address, log=log)


class GuestRam:
    """The block as the monitor maps it, by guest physical address.

    Args:
        memory: the block; its descriptor is used, not owned.

    Attributes:
        mark: the dirty log; does nothing until it is set.
    """

    def __init__(self, memory: BlockMemory) -> None:
        self.mapping = BlockMapping(memory)
        self.mark: Marker = lambda *_: None

    def slots(self) -> list[Slot]:
        """The pieces of the block."""
        address = int(self.mapping.pages.ctypes.data)
        return [
            Slot(
                number,
                0,
                first := part.offset_bytes // PAGE_BYTES,
                part.size_bytes // PAGE_BYTES,
                part.gpa,
                address + part.offset_bytes,
                first,
            )
            for number, part in enumerate(self.mapping.block.ranges)
        ]

    def view(self, gpa: int, size_bytes: int) -> memoryview:
        """The memory at *gpa*. Call :meth:`wrote` after you write to it.

        Raises:
            GuestError: there is no such memory.
        """
        start = self._offset(gpa, size_bytes)
        return self.mapping.buffer[start : start + size_bytes]

    def wrote(self, gpa: int, size_bytes: int) -> None:
        """Note that the monitor wrote there, because KVM's log does not see it."""
        start = self._offset(gpa, size_bytes)
        self.mark(start // PAGE_BYTES, (start + size_bytes - 1) // PAGE_BYTES + 1)

    def _offset(self, gpa: int, size_bytes: int) -> int:
        for piece in self.mapping.block.ranges:
            if piece.gpa <= gpa and gpa + size_bytes <= piece.gpa + piece.size_bytes:
                return gpa - piece.gpa + piece.offset_bytes
        raise GuestError(f"the guest has no memory from {gpa:#x} to {gpa + size_bytes:#x}")

    def close(self) -> None:
        """Unmap."""
        self.mapping.close()
