# SPDX-License-Identifier: Apache-2.0
"""QEMU's own list of RAM blocks, in a memory that is made as QEMU's is, and in memories that only look like it."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from parmig.errors import GuestRefusedError
from parmig.guests.qemu.maps import Vma
from parmig.guests.qemu.ram_list import RamEntry
from parmig.guests.qemu.ram_structs import HEAP_LIMIT_BYTES, find_addresses

HEAP, OTHER, HEAD = 0x1000_0000, 0x2000_0000, 0x3000_0000
ENTRIES = [
    RamEntry("pc.ram", 4096, 0, 0x7000000, 0x8000000, None),
    RamEntry("", 4096, 0x8000000, 0x10000, 0x10000, None),
    RamEntry("/rom@etc/acpi/tables", 4096, 0x8010000, 0x20000, 0x200000, None),
    RamEntry("vga.rom", 4096, 0x8210000, 0x10000, 0x10000, None),
]
ADDRESSES = [0x7F0000000000 + index * 0x1000000 for index in range(len(ENTRIES))]
STRUCT_BYTES = 0x180


class Memory:
    """A process with a heap, another anonymous mapping, and the head of the list in its data."""

    def __init__(self) -> None:
        self.parts = {HEAP: bytearray(0x4000), OTHER: bytearray(0x4000), HEAD: bytearray(0x1000)}
        self.maps = [
            Vma(HEAD, HEAD + 0x1000, True, False, 0, (8, 1), 7, "/usr/bin/qemu-system-x86_64"),
            Vma(HEAP, HEAP + 0x4000, True, False, 0, (0, 0), 0, "[heap]"),
            Vma(OTHER, OTHER + 0x4000, True, False, 0, (0, 0), 0, ""),
        ]

    def read(self, address: int, size_bytes: int) -> bytes:
        for vma in self.maps:
            if vma.start <= address < vma.end:
                assert address + size_bytes <= vma.end
                return bytes(self.parts[vma.start][address - vma.start :][:size_bytes])
        return b""

    def write(self, address: int, data: bytes) -> None:
        start = next(one for one, part in self.parts.items() if one <= address < one + len(part))
        self.parts[start][address - start : address - start + len(data)] = data

    def put_list(self, first: int, addresses: list[int], head: int = HEAD + 0x100) -> None:
        """The structs of all blocks from *first* on, and the head that points to them."""
        structs = [first + index * STRUCT_BYTES for index in range(len(ENTRIES))]
        previous = head
        for entry, address, at, following in zip(ENTRIES, addresses, structs, [*structs[1:], 0], strict=True):
            numbers = (entry.offset, entry.used_bytes, entry.total_bytes)
            name = entry.name.encode()
            data = struct.pack("=16xQQ8x3QQI256s4xQQ", 1, address, *numbers, 2, 3, name, following, previous)
            self.write(at, data)
            self.write(previous, struct.pack("=Q", at))
            previous = at + 336

    def find(self) -> list[int]:
        return find_addresses(ENTRIES, self.maps, self.read)


def test_every_block_is_found_in_the_order_of_the_list() -> None:
    memory = Memory()
    memory.put_list(HEAP + 0x1230, ADDRESSES)
    assert memory.find() == ADDRESSES


def test_a_heap_without_a_name_is_searched_too() -> None:
    memory = Memory()
    memory.put_list(OTHER + 0x40, ADDRESSES)
    assert memory.find() == ADDRESSES


@pytest.mark.parametrize(
    "vma",
    [
        Vma(HEAP, HEAP + 0x4000, False, False, 0, (0, 0), 0, "[heap]"),
        Vma(HEAP, HEAP + 0x4000, True, True, 0, (0, 1), 0, ""),
        Vma(HEAP, HEAP + 0x4000, True, False, 0, (0, 1), 5, ""),
        Vma(HEAP, HEAP + 0x4000, True, False, 0, (0, 0), 0, "[stack]"),
        Vma(HEAP, HEAP + HEAP_LIMIT_BYTES + 0x1000, True, False, 0, (0, 0), 0, ""),
    ],
    ids=["read-only", "shared", "file", "stack", "too large"],
)
def test_no_other_mapping_is_searched(vma: Vma) -> None:
    memory = Memory()
    memory.maps[1] = vma
    memory.put_list(HEAP, ADDRESSES)
    with pytest.raises(GuestRefusedError, match="found 0 times"):
        memory.find()
    memory.maps[1] = Vma(HEAP, HEAP + HEAP_LIMIT_BYTES, True, False, 0, (0, 0), 0, "")
    assert memory.find() == ADDRESSES
    memory.maps[1] = Vma(HEAP, HEAP + HEAP_LIMIT_BYTES + 0x1000, True, False, 0, (0, 0), 0, "[heap]")
    assert memory.find() == ADDRESSES


def test_numbers_that_are_only_partly_right_are_passed_over() -> None:
    memory = Memory()
    memory.put_list(HEAP + 0x2000, ADDRESSES)
    first = ENTRIES[0]
    for at, numbers in {
        0: (first.used_bytes, 0, 0),
        0x40: (first.used_bytes, first.used_bytes, first.used_bytes),
        0x80: (first.offset, first.used_bytes, first.used_bytes),
    }.items():
        memory.write(HEAP + at, struct.pack("=3Q", *numbers))
    memory.parts[HEAP] += b"odd"
    assert memory.find() == ADDRESSES


def test_a_freed_struct_is_passed_over() -> None:
    memory = Memory()
    memory.put_list(HEAP + 0x100, [address + 0x1000 for address in ADDRESSES])
    memory.put_list(HEAP + 0x2000, ADDRESSES)
    assert memory.find() == ADDRESSES


def test_what_a_guest_writes_into_its_own_memory_is_not_taken() -> None:
    memory = Memory()
    memory.put_list(HEAP + 0x100, ADDRESSES)
    memory.put_list(OTHER + 0x100, [1, 2, 3, 4], head=OTHER + 0x3000)
    assert memory.find() == ADDRESSES


def test_two_lists_that_fit_are_refused() -> None:
    memory = Memory()
    memory.put_list(HEAP + 0x100, ADDRESSES)
    memory.put_list(HEAP + 0x2000, [1, 2, 3, 4], head=HEAP + 0x3800)
    with pytest.raises(GuestRefusedError, match="found 2 times"):
        memory.find()


def nothing(memory: Memory) -> None:
    memory.parts[HEAP][:] = bytes(0x4000)


def another_name(memory: Memory) -> None:
    memory.write(HEAP + 2 * STRUCT_BYTES + 76, b"/rom@etc/acpi/rsdp\0\0")


def another_size(memory: Memory) -> None:
    memory.write(HEAP + 2 * STRUCT_BYTES + 48, struct.pack("=Q", 0x30000))


def another_total(memory: Memory) -> None:
    memory.write(HEAP + 2 * STRUCT_BYTES + 56, struct.pack("=Q", 0x400000))


def one_block_more(memory: Memory) -> None:
    memory.write(HEAP + 3 * STRUCT_BYTES + 336, struct.pack("=Q", HEAP + 0x2000))


def one_block_less(memory: Memory) -> None:
    memory.write(HEAP + 2 * STRUCT_BYTES + 336, struct.pack("=Q", 0))


def a_wild_pointer(memory: Memory) -> None:
    memory.write(HEAP + STRUCT_BYTES + 336, struct.pack("=Q", 0xFFFFFFFFFFFFFFF0))


def another_previous(memory: Memory) -> None:
    """It leads to a pointer to the struct, but not to that in the struct before."""
    memory.write(HEAP + 2 * STRUCT_BYTES + 344, struct.pack("=Q", OTHER))
    memory.write(OTHER, struct.pack("=Q", HEAP + 2 * STRUCT_BYTES))


def no_head(memory: Memory) -> None:
    memory.write(HEAD + 0x100, bytes(8))


@pytest.mark.parametrize(
    "spoil",
    [
        nothing,
        another_name,
        another_size,
        another_total,
        one_block_more,
        one_block_less,
        a_wild_pointer,
        another_previous,
        no_head,
    ],
)
def test_a_list_that_does_not_fit_is_refused_with_what_to_do(spoil: Callable[[Memory], None]) -> None:
    memory = Memory()
    memory.put_list(HEAP, ADDRESSES)
    assert memory.find() == ADDRESSES
    spoil(memory)
    with pytest.raises(GuestRefusedError, match=r"found 0 times.*share=on.*state=migrate"):
        memory.find()
