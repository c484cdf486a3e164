# SPDX-License-Identifier: Apache-2.0
"""Where QEMU's RAM is: what the monitor and /proc say, turned into blocks. Pure functions, no I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from parmig.errors import GuestRefusedError
from parmig.guests.guest import Segment
from parmig.ram.blocks import PAGE_BYTES, GuestRange

SHARED_MEMORY_HINT = (
    "start QEMU with -object memory-backend-file,id=ram0,size=SIZE,mem-path=/dev/shm/NAME,share=on "
    "-machine TYPE,memory-backend=ram0"
)
"""The options that make RAM reachable from outside."""

NAMED_FILES_ONLY = (8, 1)
"""From this QEMU on, x-ignore-shared leaves out only RAM in named files (migration/ram.c)."""


class Backend(NamedTuple):
    """A memory backend, as ``query-memdev`` and ``qom-list /objects`` report it.

    Attributes:
        name: its id.
        kind: its QOM type, such as ``memory-backend-file``.
        size_bytes: its size.
        share: whether ``share=on``.
    """

    name: str
    kind: str
    size_bytes: int
    share: bool


class Piece(NamedTuple):
    """A run of a memory region in the guest's physical address space; sizes and offsets in bytes."""

    gpa: int
    offset_bytes: int
    size_bytes: int


class Vma(NamedTuple):
    """A mapping of a process: one line of /proc/PID/maps."""

    start: int
    end: int
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


def backends(memdevs: Iterable[Mapping[str, Any]], objects: Iterable[Mapping[str, str]]) -> list[Backend]:
    """The memory backends, by name.

    Args:
        memdevs: the answer of ``query-memdev``.
        objects: the answer of ``qom-list`` on ``/objects``.
    """
    kinds = {item["name"]: item["type"].removeprefix("child<").removesuffix(">") for item in objects}
    found = [
        Backend(str(dev["id"]), kinds.get(str(dev["id"]), ""), int(dev["size"]), bool(dev["share"]))
        for dev in memdevs
        if "id" in dev
    ]
    return sorted(found)


def ram_names(ramblocks: str) -> dict[str, str]:
    """Backend name to block name, for the blocks that ``info ramblock`` lists.

    Machine types up to 4.0 call a backend's block by its QOM path, ``/objects/NAME`` (hw/core/machine.c,
    x-use-canonical-path-for-ramblock-id); backends that no device uses are not listed by their name.
    """
    return {name.removeprefix("/objects/"): name for name in block_sizes(ramblocks)}


def block_sizes(ramblocks: str) -> dict[str, int]:
    """Name and size in bytes of the blocks that ``info ramblock`` lists: those with a name are in QEMU's stream.

    The size is what the guest uses of a block now; ROMs may have room for more.
    """
    rows = (re.match(r" *(\S.*?) +\d+ [KMGT]iB +0x[0-9a-f]+ +0x([0-9a-f]+) ", line) for line in ramblocks.splitlines())
    return {row[1]: int(row[2], 16) for row in rows if row}


def check_backends(found: Sequence[Backend], version: tuple[int, int, int]) -> None:
    """See whether every one can be moved from outside.

    Raises:
        GuestRefusedError: one cannot; the message has the options that help.
    """
    if not found:
        raise GuestRefusedError(f"QEMU has no memory backend; {SHARED_MEMORY_HINT}")
    for backend in found:
        label = f"RAM of QEMU, {backend.kind or 'memory backend'} {backend.name!r}"
        if not backend.share:
            raise GuestRefusedError(f"{label}, is not shared (share=off); {SHARED_MEMORY_HINT}")
        if backend.kind == "memory-backend-memfd" and version[:2] < NAMED_FILES_ONLY:
            continue
        if backend.kind != "memory-backend-file":
            raise GuestRefusedError(
                f"{label}, has no named file, and QEMU {version[0]}.{version[1]} would send all of it with the "
                f"device state; {SHARED_MEMORY_HINT}"
            )


_MTREE_LINE = re.compile(
    r" +(?P<first>[0-9a-f]{16})-(?P<last>[0-9a-f]{16}) \(prio -?\d+, (?P<type>[^)]+)\): "
    r"(?P<name>.+?)(?: @(?P<offset>[0-9a-f]{16}))?(?: KVM)?"
)
"""One range of ``info mtree -f``, as softmmu/memory.c prints it."""


_MEMORY_TYPES = frozenset({"ram", "rom", "romd", "nv-ram"})
"""rom: RAM that the guest has locked against writes for now (the BIOS shadow); nv-ram: an nvdimm."""


def parse_mtree(text: str) -> dict[str, list[Piece]]:
    """Memory region name to its pieces in the address space ``memory``, by guest physical address.

    Args:
        text: what HMP ``info mtree -f`` printed.
    """
    pieces: dict[str, list[Piece]] = {}
    wanted = False
    for line in text.splitlines():
        if line.startswith("FlatView"):
            wanted = False
        elif line.lstrip().startswith('AS "memory"'):
            wanted = True
        elif wanted and (match := _MTREE_LINE.fullmatch(line.rstrip())) and match["type"] in _MEMORY_TYPES:
            first, last = int(match["first"], 16), int(match["last"], 16)
            pieces.setdefault(match["name"], []).append(Piece(first, int(match["offset"] or "0", 16), last + 1 - first))
    return pieces


def guest_ranges(pieces: Iterable[Piece], size_bytes: int) -> tuple[GuestRange, ...]:
    """Where the guest sees a block, in a form that is the same before and after its BIOS ran.

    What ``info mtree`` shows below 1 MiB, and at the top of low memory, changes as the BIOS opens and locks
    shadow RAM and SMRAM. Pieces with the same distance between address and offset are therefore one range,
    and a range reaches to where in the block the next begins.
    """
    starts: dict[int, int] = {}
    for piece in pieces:
        distance = piece.gpa - piece.offset_bytes
        starts[distance] = min(piece.offset_bytes, starts.get(distance, piece.offset_bytes))
    runs = sorted((offset, distance) for distance, offset in starts.items())
    ends = [offset for offset, _ in runs[1:]] + [size_bytes]
    ranges = []
    for index, ((offset, distance), end) in enumerate(zip(runs, ends, strict=True)):
        # The first piece may begin late for the same reason, unless that would put it below address 0.
        start = offset if index or distance < 0 else 0
        ranges.append(GuestRange(gpa=distance + start, offset_bytes=start, size_bytes=end - start))
    return tuple(sorted(ranges, key=lambda item: item.gpa))


def parse_host_address(answer: str) -> int | None:
    """The address in QEMU's process that HMP ``gpa2hva`` returned, or None if it reported none."""
    match = re.search(r"Host virtual address for \S+ \(.*\) is (0x[0-9a-f]+)", answer)
    return int(match[1], 16) if match else None


def parse_maps(text: str) -> list[Vma]:
    """The mappings in the text of /proc/PID/maps, by address (Documentation/filesystems/proc.rst)."""
    found = []
    for line in text.splitlines():
        fields = line.split(maxsplit=5)
        start, end = (int(number, 16) for number in fields[0].split("-"))
        major, minor = (int(number, 16) for number in fields[3].split(":"))
        path = fields[5] if len(fields) > 5 else ""
        found.append(
            Vma(start, end, fields[1][3] == "s", int(fields[2], 16), (major, minor), int(fields[4]), path),
        )
    return found


def find_extent(maps: Iterable[Vma], address: int) -> Extent | None:
    """The file that is mapped at *address* of the process, and where in it; None when there is none."""
    for vma in maps:
        if vma.start <= address < vma.end and vma.shared and vma.inode:
            return Extent(vma.device, vma.inode, vma.offset_bytes + address - vma.start)
    return None


def find_segments(maps: Iterable[Vma], extent: Extent, size_bytes: int) -> tuple[Segment, ...]:
    """Where the process maps a block: runs of pages, by page number; neighbours are joined.

    Raises:
        GuestRefusedError: it does not map all of it, or a part of it twice: writes through the second
            mapping would be seen nowhere in the first.
    """
    found: list[Segment] = []
    for vma in maps:
        if (vma.device, vma.inode) != (extent.device, extent.inode) or not vma.shared:
            continue
        low = max(vma.offset_bytes, extent.offset_bytes)
        high = min(vma.offset_bytes + vma.end - vma.start, extent.offset_bytes + size_bytes)
        if low < high:
            first_page = (low - extent.offset_bytes) // PAGE_BYTES
            found.append(Segment(first_page, (high - low) // PAGE_BYTES, vma.start + low - vma.offset_bytes))
    joined: list[Segment] = []
    for segment in sorted(found, key=lambda item: item.first_page):
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
        raise GuestRefusedError(
            "QEMU does not map the whole of a RAM block, expected a plain memory-backend-file; " + SHARED_MEMORY_HINT
        )
    return tuple(joined)
