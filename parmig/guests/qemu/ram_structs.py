# SPDX-License-Identifier: Apache-2.0
"""Finds the RAM blocks of a QEMU before 8.0, which has no command that reports their addresses: reads its own list.

QEMU keeps a ``struct RAMBlock`` for each block on its heap (include/exec/ramblock.h) and a list of all
(include/exec/ramlist.h), which ``info ramblock`` prints in the same order. The three numbers of the first line lie side
by side in the first struct. From there on the pointers of the list lead to the others. A place is accepted
only if every struct of the list has the name and numbers of its line, and every pointer back leads to where it should.

This module does no I/O: the caller passes the function that reads QEMU's memory.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from parmig.errors import GuestRefusedError
from parmig.guests.qemu.maps import Vma
from parmig.guests.qemu.ram_list import RamEntry

Read = Callable[[int, int], bytes]
"""Reads bytes of QEMU's process; takes the address and the size. Returns fewer or none if there is no memory."""

HEAP_LIMIT_BYTES = 64 << 20
"""The largest mapping that is searched, besides ``[heap]``: a heap of another thread is no larger (glibc)."""

_BLOCK = struct.Struct("=24x Q 8x 3Q 12x 256s 4x 2Q")
"""Fields of a ``struct RAMBlock``: host, offset, used_length, max_length, idstr, next and previous pointer of the list.

On hosts of 64 bits: rcu_head 16, mr 8, host 8, colo_cache 8, offset 8, used_length 8,
max_length 8, resized 8, flags 4, idstr 256, 4 unused, next 16. QEMU 7.2 and 10.0 have the same.
"""

_NUMBERS = struct.Struct("=3Q")
_NUMBERS_OFFSET = 40
_NEXT_OFFSET = 336
_WORD = struct.Struct("=Q")

_HINT = (
    "use QEMU 8.0 or newer, or give its RAM a memory-backend-file with share=on, and add ,state=migrate to the "
    "guest's name; if this process is not QEMU itself (libvirt opens sockets for it), add ,pid=NUMBER"
)


def find_addresses(entries: Sequence[RamEntry], maps: Iterable[Vma], read: Read) -> list[int]:
    """The address of each block in QEMU's process, in the order of *entries*.

    Args:
        entries: all lines of ``info ramblock``.
        maps: all mappings of QEMU's process.
        read: reads its memory.

    Raises:
        GuestRefusedError: there is no list that fits, or more than one.
    """
    candidates: set[tuple[int, ...]] = set()
    for vma in _heaps(maps):
        for first in _search(entries[0], vma, read):
            if addresses := _walk(entries, first - _NUMBERS_OFFSET, read):
                candidates.add(addresses)
        if candidates:
            break
    if len(candidates) != 1:
        raise GuestRefusedError(
            f"the addresses of QEMU's {len(entries)} RAM blocks were looked for in its heap and found "
            f"{len(candidates)} times, expected once; {_HINT}"
        )
    return list(candidates.pop())


def _heaps(maps: Iterable[Vma]) -> list[Vma]:
    """Mappings in which the structs may be. The main heap, which the guest cannot write, comes first."""
    private = [vma for vma in maps if vma.writable and not vma.shared and not vma.inode]
    main = [vma for vma in private if vma.path == "[heap]"]
    return main + [vma for vma in private if not vma.path and vma.end - vma.start <= HEAP_LIMIT_BYTES]


def _search(entry: RamEntry, vma: Vma, read: Read) -> Iterator[int]:
    """The addresses in a mapping that have the three numbers of *entry*."""
    content = read(vma.start, vma.end - vma.start)
    words = np.frombuffer(content, np.uint64, len(content) // _WORD.size)
    # The size, which is the second number, is rarer than the offset, which may be 0.
    for index in np.flatnonzero(words[1:] == entry.used_bytes):
        at = int(index) * _WORD.size
        if content[at : at + _NUMBERS.size] == _numbers(entry):
            yield vma.start + at


def _walk(entries: Sequence[RamEntry], first: int, read: Read) -> tuple[int, ...]:
    """The addresses of the blocks, from the list that begins with the struct at *first*; empty: it is another list."""
    addresses = []
    address = first
    back = None
    for entry in entries:
        data = read(address, _BLOCK.size)
        if len(data) != _BLOCK.size:
            return ()
        host, *numbers, name, following, previous = _BLOCK.unpack(data)
        if (_NUMBERS.pack(*numbers), name.partition(b"\0")[0]) != (_numbers(entry), entry.name.encode()):
            return ()
        # A struct that QEMU has freed still looks like one, but no struct before it points to it.
        if read(previous, _WORD.size) != _WORD.pack(address) or back not in (None, previous):
            return ()
        addresses.append(host)
        address, back = following, address + _NEXT_OFFSET
    return () if address else tuple(addresses)


def _numbers(entry: RamEntry) -> bytes:
    return _NUMBERS.pack(entry.offset, entry.used_bytes, entry.total_bytes)
