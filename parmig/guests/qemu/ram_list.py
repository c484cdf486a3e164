# SPDX-License-Identifier: Apache-2.0
"""The RAM blocks that HMP ``info ramblock`` lists. Pure functions, no I/O."""

from __future__ import annotations

import re
from typing import NamedTuple

_UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}

_LINE = re.compile(
    r" *(?P<name>\S.*?|) +(?P<page>\d+) (?P<unit>[KMGT]iB) +0x(?P<offset>[0-9a-f]+) +0x(?P<used>[0-9a-f]+)"
    r" +0x(?P<total>[0-9a-f]+)(?: +0x(?P<address>[0-9a-f]+))?(?: +r[ow])? *"
)
"""One block, as system/physmem.c (ram_block_format) prints it; the last two columns came with QEMU 8.0."""


MAX_LINE = 1024
"""Longer lines are not QEMU's: a name has at most 255 characters. It bounds what the pattern costs."""


class RamEntry(NamedTuple):
    """A RAM block of QEMU, as ``info ramblock`` prints it.

    Attributes:
        name: its ``idstr``; empty for a block that is no part of a migration.
        page_size_bytes: of the backing memory.
        offset: where QEMU put it among its RAM addresses; no two blocks have the same.
        used_bytes: how much of it the guest uses now.
        total_bytes: how large it may become; equal to *used_bytes* except for ROMs.
        address: where it begins in QEMU's process; None before QEMU 8.0.
    """

    name: str
    page_size_bytes: int
    offset: int
    used_bytes: int
    total_bytes: int
    address: int | None


def parse_ram_list(text: str) -> list[RamEntry]:
    """All blocks in the text of ``info ramblock``, in QEMU's order, those without a name too."""
    matches = (_LINE.fullmatch(line.rstrip()) for line in text.splitlines() if len(line) <= MAX_LINE)
    return [
        RamEntry(
            name=match["name"],
            page_size_bytes=int(match["page"]) * _UNITS[match["unit"]],
            offset=int(match["offset"], 16),
            used_bytes=int(match["used"], 16),
            total_bytes=int(match["total"], 16),
            address=int(match["address"], 16) if match["address"] else None,
        )
        for match in matches
        if match
    ]


def block_sizes(text: str) -> dict[str, int]:
    """Name and used size in bytes of the blocks with a name: those are in QEMU's stream."""
    return {entry.name: entry.used_bytes for entry in parse_ram_list(text) if entry.name}


def backend_name(block_name: str) -> str:
    """The id of the memory backend whose block is called *block_name*.

    Machine types up to 4.0 call a backend's block by its QOM path, ``/objects/NAME`` (hw/core/machine.c,
    x-use-canonical-path-for-ramblock-id). The block of a backend that a PCI device uses has the device's path in
    front, so that this is no backend's id.
    """
    return block_name.removeprefix("/objects/")
