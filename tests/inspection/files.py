# SPDX-License-Identifier: Apache-2.0
"""Files and pipes with streams, for tests of what is told of them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from parmig.inspection import Inspection, inspect_file
from parmig.stream import MigrationDataFile, mapped_ram
from parmig.stream.flags import MIGRATION_RAM_SAVE_FLAG_EOS
from parmig.stream.ram_blocks import BlockEntry, write_block_list
from parmig.stream.ram_encode import part_section
from parmig.stream.section_writer import SectionWriter
from parmig.stream.vmdescription import DeviceDescription, VmDescription, build
from parmig.transport.file import FileStream
from parmig.transport.transport import Buffer
from tests.stream.streams import DEVICE_BYTES, RAM, put


def described(tmp_path: Path, content: bytes) -> Inspection:
    path = tmp_path / "stream"
    path.write_bytes(content)
    return inspect_file(str(path))


def stream(
    *pieces: Buffer,
    state: bytes = b"",
    describe: bytes = b"",
    entries: tuple[BlockEntry, ...] = (BlockEntry("mem0", 64 * 4096),),
    capabilities: tuple[str, ...] = (),
    between: bytes = b"",
    section: int = RAM,
) -> bytes:
    """A stream with *pieces* of words in its RAM, whose END follows *between*; then *state* and a description."""

    def write(data: MigrationDataFile) -> None:
        writer = SectionWriter(data)
        writer.header()
        writer.configuration("pc-test", capabilities)
        writer.start(section, "ram", 0, 4)
        write_block_list(data, entries)
        data.put_be64(MIGRATION_RAM_SAVE_FLAG_EOS)
        writer.footer(section)
        for part in part_section(section, pieces):
            data.put_buffer(part)
        data.put_buffer(between)
        writer.end(section)
        data.put_be64(MIGRATION_RAM_SAVE_FLAG_EOS)
        writer.footer(section)
        data.put_buffer(state)
        writer.eof()
        if describe:
            writer.vmdescription(describe)

    return put(write)


def device_section(name: str = "clock", body: bytes = DEVICE_BYTES, instance: int = 1, section: int = 5) -> bytes:
    def write(data: MigrationDataFile) -> None:
        writer = SectionWriter(data)
        writer.full(section, name, instance, 3)
        data.put_buffer(body)
        writer.footer(section)

    return put(write)


def description(*entries: DeviceDescription) -> bytes:
    return build(VmDescription(page_size=4096, devices=list(entries)))


def mapped_file(path: Path, sizes: dict[str, int], stored: dict[str, list[int]]) -> None:
    """A mapped-ram file whose bitmaps have the pages of *stored*, and no bytes of pages."""
    with path.open("w+b") as file:
        data = MigrationDataFile(FileStream(file.fileno(), "mapped"), "mapped")
        writer = SectionWriter(data)
        writer.header()
        writer.configuration("pc-test", ["mapped-ram"])
        writer.start(RAM, "ram", 0, 4)
        blocks = write_block_list(data, [BlockEntry(name, size) for name, size in sizes.items()], mapped_ram=True)
        data.put_be64(MIGRATION_RAM_SAVE_FLAG_EOS)
        writer.footer(RAM)
        writer.end(RAM)
        data.put_be64(MIGRATION_RAM_SAVE_FLAG_EOS)
        writer.footer(RAM)
        writer.eof()
        data.flush_data()
        for block in blocks:
            assert block.mapped is not None
            if pages := stored.get(block.name):
                mask = np.zeros(mapped_ram.bitmap_bytes(block.size_bytes) * 8, bool)
                mask[pages] = True
                os.pwrite(file.fileno(), np.packbits(mask, bitorder="little"), block.mapped.bitmap_offset_bytes)


@contextmanager
def piped(content: bytes, step: int = 1 << 16) -> Iterator[str]:
    """The path of a pipe in which *content* arrives, at most *step* bytes at a time."""
    reading, writing = os.pipe()

    def write() -> None:
        try:
            for at in range(0, len(content), step):
                os.write(writing, content[at : at + step])
        except BrokenPipeError:
            pass
        finally:
            os.close(writing)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield f"/proc/self/fd/{reading}"
    finally:
        os.close(reading)
        thread.join()
