# SPDX-License-Identifier: Apache-2.0
"""Write the golden files, which guard what parmig writes: ``python -m tools.make_golden [--check]``.

They change only when the format does, and then on purpose: streams that were written before must still be read.

sequential.stream  the sequential form: configuration, list of blocks, pages, a command, a device, its description
devices.stream     devices as QEMU's xen-save-devices-state writes them, made into a stream
mapped-ram.txt     the mapped-ram form, whose pages are a MiB apart: a line for each stretch that is not all zero
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from parmig.stream import TARGET_PAGE_BYTES, MigrationDataFile
from parmig.stream.device_stream import compose
from parmig.stream.flags import MIGRATION_RAM_SAVE_FLAG_EOS, MigrationCommand
from parmig.stream.ram_blocks import BlockEntry, write_block_list
from parmig.stream.ram_encode import Pages, encode_page_words, encode_zero_words, page_words_bytes, part_section
from parmig.stream.section_writer import SectionWriter
from parmig.stream.vmdescription import (
    DeviceDescription,
    FieldDescription,
    StructDescription,
    VmDescription,
    build,
)
from parmig.transport.file import FileStream

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden"
RAM, CLOCK = 2, 5
BLOCKS = [BlockEntry("mem0", 16 * TARGET_PAGE_BYTES), BlockEntry("pc.rom", TARGET_PAGE_BYTES)]
DEVICE = DeviceDescription(
    name="clock",
    instance_id=1,
    vmsd_name="clock",
    version=3,
    fields=[
        FieldDescription(name="ticks", type="uint64", size=8),
        FieldDescription(name="lines", array_len=2, type="uint16", size=2),
    ],
    subsections=[
        StructDescription(
            vmsd_name="clock/alarm", version=2, fields=[FieldDescription(name="text", type="buffer", size=5)]
        )
    ],
)
DEVICE_BYTES = bytes((0, 0, 0, 0, 0, 0, 0, 99, 0, 1, 0, 2)) + b"\5\x0bclock/alarm\0\0\0\2hello"


def pages(*numbers: int) -> Pages:
    """Pages that hold their number in every byte but the first."""
    content = np.repeat(np.array(numbers, dtype=np.uint8), TARGET_PAGE_BYTES).reshape(-1, TARGET_PAGE_BYTES)
    content[:, 0] = 0xFF
    return content


def _begin(writer: SectionWriter, capability: str) -> None:
    writer.header()
    writer.configuration("pc-i440fx-7.2", [capability], bytes(range(16)))
    writer.start(RAM, "ram", 0, 4)


def _end_ram(data: MigrationDataFile, writer: SectionWriter) -> None:
    data.put_be64(MIGRATION_RAM_SAVE_FLAG_EOS)
    writer.footer(RAM)


def _finish(data: MigrationDataFile, writer: SectionWriter) -> None:
    writer.end(RAM)
    _end_ram(data, writer)
    writer.full(CLOCK, DEVICE.name, DEVICE.instance_id, DEVICE.version)
    data.put_buffer(DEVICE_BYTES)
    writer.footer(CLOCK)
    writer.eof()
    writer.vmdescription(build(VmDescription(page_size=TARGET_PAGE_BYTES, devices=[DEVICE])))
    data.flush_data()


def sequential(data: MigrationDataFile) -> None:
    """A stream with x-ignore-shared and one PART."""
    writer = SectionWriter(data)
    _begin(writer, "x-ignore-shared")
    write_block_list(
        data, [BlockEntry(block.name, block.size_bytes, gpa=0x1000 * at) for at, block in enumerate(BLOCKS)]
    )
    _end_ram(data, writer)
    writer.command(MigrationCommand.PING, b"\0\0\0\1")
    words = encode_page_words(bytearray(page_words_bytes("mem0", 2)), "mem0", np.array([3, 7]), pages(3, 7))
    zeros = encode_zero_words("mem0", np.array([8, 9, 11]))
    for piece in part_section(RAM, [words, zeros, encode_zero_words("pc.rom", np.array([0]))]):
        data.put_buffer(piece)
    _finish(data, writer)


def mapped(data: MigrationDataFile) -> None:
    """The same with mapped-ram; bitmaps and pages are no part of the stream, so there are none."""
    writer = SectionWriter(data)
    _begin(writer, "mapped-ram")
    write_block_list(data, BLOCKS, mapped_ram=True)
    _end_ram(data, writer)
    _finish(data, writer)


def devices(data: MigrationDataFile) -> None:
    """Two devices, as ``xen-save-devices-state`` writes them."""
    writer = SectionWriter(data)
    writer.header()
    for number in (CLOCK, CLOCK + 1):
        writer.full(number, DEVICE.name, number, DEVICE.version)
        data.put_buffer(DEVICE_BYTES)
        writer.footer(number)
    writer.eof()
    data.flush_data()


def written(write: Callable[[MigrationDataFile], None]) -> bytes:
    """The file that *write* makes."""
    fd = os.memfd_create("golden", os.MFD_CLOEXEC)
    try:
        write(MigrationDataFile(FileStream(fd, "golden"), "golden"))
        return os.pread(fd, os.fstat(fd).st_size, 0)
    finally:
        os.close(fd)


def as_text(content: bytes) -> str:
    """Offset and bytes in hexadecimal, 32 a line, without the lines that are all zero."""
    lines = (
        f"{at:08x} {content[at : at + 32].hex()}\n" for at in range(0, len(content), 32) if any(content[at : at + 32])
    )
    return "".join(lines)


def golden_files() -> dict[str, bytes]:
    """Name to content."""
    return {
        "sequential.stream": written(sequential),
        "devices.stream": compose(written(devices), "pc-i440fx-7.2"),
        "mapped-ram.txt": as_text(written(mapped)).encode(),
    }


def main(arguments: list[str]) -> int:
    """Write the files, or with ``--check`` only name those that are not current and return 1."""
    stale = [
        name
        for name, content in golden_files().items()
        if not (GOLDEN / name).is_file() or (GOLDEN / name).read_bytes() != content
    ]
    for name in stale:
        print(f"tests/golden/{name} is not what parmig writes" if "--check" in arguments else f"wrote {name}")
        if "--check" not in arguments:
            (GOLDEN / name).write_bytes(golden_files()[name])
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
