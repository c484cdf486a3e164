# SPDX-License-Identifier: Apache-2.0
"""QEMU's memory backends, and where the guest sees them, from the answers of QMP. Pure functions, no I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from parmig.errors import GuestRefusedError
from parmig.guests.qemu.ram_list import MAX_LINE
from parmig.ram.blocks import GuestRange

SHARED_MEMORY_HINT = (
    "use state=devices, or start QEMU with -object memory-backend-file,id=ram0,size=SIZE,mem-path=/dev/shm/NAME,"
    "share=on -machine TYPE,memory-backend=ram0"
)
"""The options that ``state=migrate`` needs: QEMU leaves such RAM to parmig."""

NAMED_FILES_ONLY = (8, 1)
"""From this QEMU on, x-ignore-shared leaves out only RAM in named files (migration/ram.c)."""

_UNMOVED_DEVICES = {
    "virtio-mem": "whose plugged parts parmig does not follow",
    "hv-balloon": "whose plugged parts parmig does not follow",
    "sgx-epc": "whose memory the processor encrypts",
}


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


def backends(memdevs: Iterable[Mapping[str, Any]], objects: Iterable[Mapping[str, str]]) -> list[Backend]:
    """The memory backends, by name.

    Args:
        memdevs: the answer of ``query-memdev``.
        objects: the answer of ``qom-list`` on ``/objects``.
    """
    kinds = {item["name"]: item["type"].removeprefix("child<").removesuffix(">") for item in objects}
    result = [
        Backend(str(dev["id"]), kinds.get(str(dev["id"]), ""), int(dev["size"]), bool(dev["share"]))
        for dev in memdevs
        if "id" in dev
    ]
    return sorted(result)


def check_moved(protection: str, memory_devices: Iterable[Mapping[str, Any]]) -> None:
    """Check that the guest has no memory that cannot be moved from outside.

    Args:
        protection: the machine's property ``confidential-guest-support``; empty where there is none.
        memory_devices: the answer of ``query-memory-devices``.

    Raises:
        GuestRefusedError: it has such memory; the message names it.
    """
    if protection:
        raise GuestRefusedError(
            f"the guest's memory is confidential ({protection}), expected memory that the host can read; "
            "such a guest cannot be migrated by parmig, so start it without confidential-guest-support"
        )
    for device in memory_devices:
        if reason := _UNMOVED_DEVICES.get(device["type"]):
            raise GuestRefusedError(
                f"the guest has the memory device {device['type']} {device['data'].get('id', '')!r}, {reason}; "
                "remove it, and give the guest that memory by pc-dimm or -m"
            )


def check_backends(used: Sequence[Backend], version: tuple[int, int, int]) -> None:
    """Check, for ``state=migrate``, that QEMU's own migration leaves out every backend of *used*.

    Raises:
        GuestRefusedError: it does not; the message has the options that help.
    """
    if not used:
        raise GuestRefusedError(f"QEMU has no memory backend; {SHARED_MEMORY_HINT}")
    for backend in used:
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
        if len(line) > MAX_LINE:
            continue
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
