# SPDX-License-Identifier: Apache-2.0
"""Writes everything of a snapshot file except the pages of the guest's ``memory()``.

The part before the pages is written first, so that the places of all pages are known. The part after them is written
once the guest runs again. ``docs/format.md`` specifies the file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence

import msgspec
import numpy as np

from parmig.errors import SnapshotError
from parmig.ram.bits import Bits, runs_of_index, set_bits
from parmig.ram.blocks import PAGE_BYTES, RamBlock
from parmig.ram.reach.mapped import BlockMapping
from parmig.ram.shared import SharedArea
from parmig.snapshot.images import data_pages
from parmig.snapshot.state import GuestState
from parmig.state.state_saver import describe_configuration
from parmig.stream.configuration import MAPPED_RAM
from parmig.stream.data_file import MigrationDataFile
from parmig.stream.device_part import FILLING, OPAQUE_IDSTR, Description
from parmig.stream.flags import MIGRATION_RAM_SAVE_FLAG_EOS, TARGET_PAGE_BYTES
from parmig.stream.mapped_ram import MappedRamHeader
from parmig.stream.ram_blocks import RAM_IDSTR, RAM_VERSION, BlockEntry, write_block_list
from parmig.stream.ram_encode import encode_page_words, encode_zero_words, page_words_bytes, part_section
from parmig.stream.section_writer import SectionWriter
from parmig.stream.trailer import MARKED_SECTION_ID
from parmig.stream.vmdescription import DeviceDescription, FieldDescription, VmDescription
from parmig.transport.file import FileStream
from parmig.transport.transport import Buffer
from parmig.units import MIB

_PIECE_BYTES = MIB
_PIECE_PAGES = 512  # 2 MiB: they fit into the cache


class SnapshotWriter:
    """Writes one file.

    Args:
        fd: of the file, empty; used, not owned.
        name: of the file, for errors.
        machine: the guest's machine type.
        blocks: the guest's ``memory()``, whose pages workers write.
        state_blocks: blocks that travel in the guest's state, with their sizes in bytes; their pages are written last.
        mapped: whether pages have fixed places (``mapped-ram``); else the file is one sequential stream.

    Attributes:
        pages_offsets_bytes: (mapped) where page 0 of each of *blocks* is.
        parts_offset_bytes: (sequential) where sections with pages begin.

    Raises:
        SnapshotError: the file system is full or failed.
        StreamError: a name that cannot be written.
    """

    def __init__(
        self,
        fd: int,
        name: str,
        machine: str,
        blocks: Sequence[RamBlock],
        state_blocks: Mapping[str, int],
        *,
        mapped: bool,
    ) -> None:
        self._fd = fd
        self._name = name
        self._machine = machine
        self._capabilities = (MAPPED_RAM,) if mapped else ()
        listed = {block.name: block.size_bytes for block in blocks} | dict(state_blocks)
        data = self._open(0)
        entries = put_head(
            data, machine, self._capabilities, [BlockEntry(name, size_bytes) for name, size_bytes in listed.items()]
        )
        data.flush_data()
        self._of_guest, self._of_state = entries[: len(blocks)], entries[len(blocks) :]
        self.pages_offsets_bytes = [
            entry.mapped.pages_offset_bytes for entry in self._of_guest if entry.mapped is not None
        ]
        self.parts_offset_bytes = data.position_bytes

    def finish(self, state: GuestState, shared: SharedArea) -> int:
        """Write all that is left, and return the size of the file: whole pages.

        Args:
            state: of the guest.
            shared: the workers' area: which pages are stored, and how far the file was written.

        Raises:
            SnapshotError: the file system is full or failed, or the state has other blocks than expected.
        """
        data = self._open(self.parts_offset_bytes if self.pages_offsets_bytes else shared.file_end_bytes)
        self._check_blocks(state)
        places = {entry.name: entry.mapped for entry in self._of_state}
        for entry, mapping, existing in state.small_blocks():
            place = places[entry.name]
            if place is None:
                put_block(data, entry, mapping, existing)
            else:
                self._write_block(place, mapping, existing)
        for entry, bits in zip(self._of_guest, shared.bits, strict=True):
            if entry.mapped is not None:
                self._write(entry.mapped.bitmap_offset_bytes, bits.tobytes())
        put_rest(data, self._machine, self._capabilities, state, with_ram=True)
        data.put_buffer(FILLING * (-data.position_bytes % TARGET_PAGE_BYTES))
        data.flush_data()
        return data.position_bytes

    def _check_blocks(self, state: GuestState) -> None:
        expected = {entry.name: entry.size_bytes for entry in self._of_state}
        actual = {entry.name: entry.size_bytes for entry in state.blocks}
        if actual != expected:
            changed = sorted({name for name, _ in expected.items() ^ actual.items()})
            raise SnapshotError(f"the guest changed its blocks {', '.join(changed)} while it was saved; save it again")

    def _open(self, offset_bytes: int) -> MigrationDataFile:
        transport = FileStream(self._fd, self._name, offset_bytes=offset_bytes)
        return MigrationDataFile(transport, self._name, start_bytes=offset_bytes)

    def _write_block(self, place: MappedRamHeader, mapping: BlockMapping, existing: Bits) -> None:
        index = data_pages(mapping, existing)
        bits: Bits = np.zeros_like(existing)
        set_bits(bits, index)
        self._write(place.bitmap_offset_bytes, bits.tobytes())
        for first, end in runs_of_index(index).tolist():
            at = place.pages_offset_bytes + first * PAGE_BYTES
            self._write(at, mapping.buffer[first * PAGE_BYTES : end * PAGE_BYTES])

    def _write(self, offset_bytes: int, content: Buffer) -> None:
        FileStream(self._fd, self._name, offset_bytes=offset_bytes).write([content])


def put_head(
    data: MigrationDataFile, machine: str, capabilities: Sequence[str], blocks: Sequence[BlockEntry]
) -> list[BlockEntry]:
    """Write everything before the first section with pages; returns the blocks, with their places in a mapped file."""
    sections = SectionWriter(data)
    sections.header()
    sections.configuration(machine, capabilities)
    sections.start(MARKED_SECTION_ID, RAM_IDSTR, 0, RAM_VERSION)
    entries = write_block_list(data, blocks, mapped_ram=MAPPED_RAM in capabilities)
    _put_end_of_section(data)
    return entries


def put_block(data: MigrationDataFile, entry: BlockEntry, mapping: BlockMapping, existing: Bits) -> None:
    """Write all pages of a block as sections of a sequential stream: those with data, and the numbers of the others."""
    index = data_pages(mapping, existing)
    out = bytearray(page_words_bytes(entry.name, _PIECE_PAGES))
    zero = np.setdiff1d(np.arange(entry.pages), index, assume_unique=True)
    for first in range(0, len(zero), 64 * _PIECE_PAGES):
        _put_part(data, encode_zero_words(entry.name, zero[first : first + 64 * _PIECE_PAGES]))
    for first in range(0, len(index), _PIECE_PAGES):
        part = index[first : first + _PIECE_PAGES]
        _put_part(data, encode_page_words(out, entry.name, part, mapping.pages[part]))


def put_rest(
    data: MigrationDataFile, machine: str, capabilities: Sequence[str], state: GuestState, *, with_ram: bool
) -> None:
    """Write everything after the last section with pages: devices, the end, the description. Flushes.

    Args:
        with_ram: whether there was a section of RAM that must be ended.
    """
    sections = SectionWriter(data)
    if with_ram:
        sections.end(MARKED_SECTION_ID)
        _put_end_of_section(data)
    if state.is_stream:
        for piece in pieces(state.fd, state.devices):
            data.put_buffer(piece)
        description = state.description
    else:
        description = _put_opaque(data, sections, state)
    sections.eof()
    if description is not None:
        sections.vmdescription(_describe(description, machine, capabilities))
    data.flush_data()


def pieces(fd: int, where: range) -> Iterator[bytes]:
    """The bytes *where* of a file, a MiB at a time."""
    for at in range(where.start, where.stop, _PIECE_BYTES):
        yield os.pread(fd, min(_PIECE_BYTES, where.stop - at), at)


def _put_end_of_section(data: MigrationDataFile) -> None:
    data.put_be64(MIGRATION_RAM_SAVE_FLAG_EOS)
    SectionWriter(data).footer(MARKED_SECTION_ID)


def _put_part(data: MigrationDataFile, words: Buffer) -> None:
    for frame in part_section(MARKED_SECTION_ID, [words]):
        data.put_buffer(frame)
    data.flush_data()  # the words may lie in a buffer that is used again


def _put_opaque(data: MigrationDataFile, sections: SectionWriter, state: GuestState) -> Description:
    """Write the state of a guest that writes no stream, as one device; returns its description."""
    size_bytes = len(state.devices)
    if size_bytes >= 1 << 32:
        raise SnapshotError(f"the device state has {size_bytes} bytes, expected at most 4 GiB for one device")
    sections.full(0, OPAQUE_IDSTR, 0, 1)
    data.put_be32(size_bytes)
    for piece in pieces(state.fd, state.devices):
        data.put_buffer(piece)
    sections.footer(0)
    fields = [
        FieldDescription(name="size", type="uint32", size=4),
        FieldDescription(name="state", type="buffer", size=size_bytes),
    ]
    device = DeviceDescription(name=OPAQUE_IDSTR, instance_id=0, vmsd_name=OPAQUE_IDSTR, version=1, fields=fields)
    described: Description = msgspec.to_builtins(VmDescription(page_size=TARGET_PAGE_BYTES, devices=[device]))
    return described


def _describe(description: Description, machine: str, capabilities: Sequence[str]) -> bytes:
    """The JSON: of the configuration as it is in this stream, and of the devices as their monitor described them."""
    configuration = msgspec.to_builtins(describe_configuration(machine, capabilities))
    content = msgspec.json.encode({"configuration": configuration} | description | {"configuration": configuration})
    # analyze-migration.py takes the first brace after the last NUL, so the length before the JSON must have none.
    while b"{" in len(content).to_bytes(4, "big"):
        content += b" "
    return content
