# SPDX-License-Identifier: Apache-2.0
"""Makes the stream that a guest loads as its state from a snapshot's devices and small blocks."""

from __future__ import annotations

import os
from collections.abc import Sequence

from parmig.guests.guest import Guest
from parmig.ram.bits import Bits
from parmig.snapshot.compose import pieces, put_block, put_head, put_rest
from parmig.snapshot.images import BlockImages
from parmig.snapshot.opened import QEMU, OpenSnapshot
from parmig.snapshot.state import GuestState
from parmig.stream.data_file import MigrationDataFile
from parmig.stream.device_part import find_opaque
from parmig.stream.ram_blocks import BlockEntry
from parmig.stream.section_writer import SectionWriter
from parmig.transport.file import FileStream


def give_state(guest: Guest, snapshot: OpenSnapshot, images: BlockImages, existing: Sequence[Bits]) -> int:
    """Give *guest* its state; its own memory is in place already.

    Args:
        images: the blocks that travel in its state, with their pages.
        existing: for each of them, which pages exist.

    Returns:
        how many bytes it was given.

    Raises:
        ParmigError: the guest refuses it.
    """
    opaque = None if snapshot.trailer is None else find_opaque(snapshot.fd, snapshot.devices)
    if opaque is not None:
        return _write(guest, snapshot.fd, opaque)
    fd = os.memfd_create("parmig-state", os.MFD_CLOEXEC)
    try:
        return _write(guest, fd, range(_compose(fd, snapshot, images, existing)))
    finally:
        os.close(fd)


def _write(guest: Guest, fd: int, where: range) -> int:
    for piece in pieces(fd, where):
        guest.write_state(memoryview(piece))
    return len(where)


def _compose(fd: int, snapshot: OpenSnapshot, images: BlockImages, existing: Sequence[Bits]) -> int:
    """Write the stream to *fd*; returns its size in bytes."""
    data = MigrationDataFile(FileStream(fd, "device state"), "device state")
    machine = snapshot.head.configuration.machine
    has_ram = bool(images.memory) or snapshot.kind == QEMU
    if has_ram:
        entries = [BlockEntry(part.block.name, part.block.size_bytes) for part in images.memory]
        put_head(data, machine, (), entries)
        for entry, mapping, bits in zip(entries, images.mappings, existing, strict=True):
            put_block(data, entry, mapping, bits)
    else:
        sections = SectionWriter(data)
        sections.header()
        sections.configuration(machine)
    state = GuestState(snapshot.fd, snapshot.devices, is_stream=True, description=snapshot.description)
    put_rest(data, machine, (), state, with_ram=has_ram)
    return data.position_bytes
