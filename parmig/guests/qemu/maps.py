# SPDX-License-Identifier: Apache-2.0
"""Where a process maps a RAM block, from the text of /proc/PID/maps. Pure functions, no I/O."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from parmig.errors import GuestRefusedError
from parmig.ram.blocks import PAGE_BYTES, Segment


class Vma(NamedTuple):
    """A mapping of a process: one line of /proc/PID/maps; addresses and the offset in bytes.

    Attributes:
        start: its first address.
        end: the address after its last one.
        writable: whether the process may read and write it.
        shared: whether writes go to the file; private otherwise.
        offset_bytes: where in the file it begins.
        device: major and minor number of the file's file system.
        inode: of the file; 0: anonymous memory.
        path: of the file, or a name in brackets, or empty.
    """

    start: int
    end: int
    writable: bool
    shared: bool
    offset_bytes: int
    device: tuple[int, int]
    inode: int
    path: str


class Extent(NamedTuple):
    """A block's place in the file behind it."""

    device: tuple[int, int]
    inode: int
    offset_bytes: int


class Place(NamedTuple):
    """What a process has at a block's address: memory that it shares, or its own.

    Attributes:
        shared: whether the mapping is shared.
        extent: the file that is mapped; None: anonymous memory.
    """

    shared: bool
    extent: Extent | None


def parse_maps(text: str) -> list[Vma]:
    """The mappings in the text of /proc/PID/maps, by address (Documentation/filesystems/proc.rst)."""
    vmas = []
    for line in text.splitlines():
        fields = line.split(maxsplit=5)
        start, end = (int(number, 16) for number in fields[0].split("-"))
        major, minor = (int(number, 16) for number in fields[3].split(":"))
        vmas.append(
            Vma(
                start=start,
                end=end,
                writable=fields[1].startswith("rw"),
                shared=fields[1][3] == "s",
                offset_bytes=int(fields[2], 16),
                device=(major, minor),
                inode=int(fields[4]),
                path=fields[5] if len(fields) > 5 else "",
            )
        )
    return vmas


def find_place(maps: Iterable[Vma], address: int, size_bytes: int) -> Place | None:
    """What the process has at ``[address, address + size_bytes)``.

    Args:
        maps: all its mappings, by address.
        address: where the block begins.
        size_bytes: what the block may grow to.

    Returns:
        the place; None when a part is not mapped, may not be written, or is of another kind or file than the rest.
    """
    place = None
    reached = address
    for vma in maps:
        if vma.end <= address or reached >= address + size_bytes:
            continue
        # Where the block would have to begin in the file, if this mapping is a part of it.
        offset_bytes = vma.offset_bytes + address - vma.start
        here = Place(vma.shared, Extent(vma.device, vma.inode, offset_bytes) if vma.inode else None)
        if vma.start > reached or not vma.writable or place not in (None, here):
            return None
        place, reached = here, vma.end
    return place if reached >= address + size_bytes else None


def find_segments(maps: Iterable[Vma], extent: Extent, size_bytes: int) -> tuple[Segment, ...]:
    """Where the process maps a block of a shared file: runs of pages, by page number; neighbours are joined.

    Raises:
        GuestRefusedError: it does not map all of it, or a part of it twice: writes through the second
            mapping would be seen nowhere in the first.
    """
    parts: list[Segment] = []
    for vma in maps:
        if (vma.device, vma.inode) != (extent.device, extent.inode) or not vma.shared:
            continue
        low = max(vma.offset_bytes, extent.offset_bytes)
        high = min(vma.offset_bytes + vma.end - vma.start, extent.offset_bytes + size_bytes)
        if low < high:
            first_page = (low - extent.offset_bytes) // PAGE_BYTES
            parts.append(Segment(first_page, (high - low) // PAGE_BYTES, vma.start + low - vma.offset_bytes))
    joined: list[Segment] = []
    for segment in sorted(parts, key=lambda item: item.first_page):
        expected = joined[-1].first_page + joined[-1].pages if joined else 0
        if segment.first_page != expected:
            raise GuestRefusedError(
                f"QEMU maps page {min(expected, segment.first_page)} of a RAM block "
                f"{'twice' if segment.first_page < expected else 'nowhere'}, expected once; "
                "give each backend its own file"
            )
        last = joined[-1] if joined else None
        if last and last.address + last.pages * PAGE_BYTES == segment.address:
            joined[-1] = Segment(last.first_page, last.pages + segment.pages, last.address)
        else:
            joined.append(segment)
    if sum(segment.pages for segment in joined) * PAGE_BYTES != size_bytes:
        raise GuestRefusedError("QEMU does not map the whole of a RAM block, expected a plain memory-backend-file")
    return tuple(joined)
