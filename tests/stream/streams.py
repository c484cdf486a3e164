# SPDX-License-Identifier: Apache-2.0
"""What tests of streams share: bytes as a transport, and small valid streams."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise

import numpy as np

from parmig.stream import MigrationDataFile
from parmig.stream.flags import MIGRATION_RAM_SAVE_FLAG_EOS
from parmig.stream.ram_blocks import BlockEntry, read_setup, write_block_list
from parmig.stream.ram_encode import encode_page_words, encode_zero_words, page_words_bytes, part_section
from parmig.stream.ram_words import EncodedPage, PageRun, RamWordReader, ZeroRun
from parmig.stream.section_writer import SectionWriter
from parmig.stream.sections import Command, EndOfStream, SectionHead, SectionKind, SectionReader
from parmig.stream.vmdescription import (
    MAX_DEVICE_BYTES,
    DeviceDescription,
    FieldDescription,
    StructDescription,
    VmDescription,
    build,
    decode,
    device_bytes,
    parse,
)
from parmig.transport.byte_stream import ByteStream
from parmig.transport.transport import Buffer
from tests.support import content, index_of


class Pieces(ByteStream):
    """Pieces to be read; keeps what is written, call by call."""

    def __init__(self, pieces: Iterable[bytes] = ()) -> None:
        self._pieces = list(pieces)
        self.messages: list[list[bytes]] = []

    def write(self, pieces: Sequence[Buffer]) -> None:
        self.messages.append([bytes(piece) for piece in pieces])

    def read(self) -> memoryview | None:
        return memoryview(self._pieces.pop(0)) if self._pieces else None


def reading(content: bytes, *cuts: int) -> MigrationDataFile:
    """*content*, arriving in pieces that end at *cuts*."""
    borders = [0, *sorted(cut for cut in cuts if 0 < cut < len(content)), len(content)]
    return MigrationDataFile(Pieces(content[a:b] for a, b in pairwise(borders) if b > a), "test")


def put(*puts: Callable[[MigrationDataFile], object]) -> bytes:
    """What *puts* put, one after the other."""
    transport = Pieces()
    data = MigrationDataFile(transport, "test")
    for function in puts:
        function(data)
    data.flush_data()
    return b"".join(part for message in transport.messages for part in message)


BLOCKS = [BlockEntry("mem0", 64 * 4096), BlockEntry("rom", 2 * 4096)]
RAM = 2

DEVICE = DeviceDescription(
    name="clock",
    instance_id=1,
    vmsd_name="clock",
    version=3,
    fields=[
        FieldDescription(name="ticks", type="uint64", size=8),
        FieldDescription(name="armed", type="bool", size=1),
        FieldDescription(name="lines", array_len=3, type="uint16", size=2),
        FieldDescription(
            name="wheel",
            array_len=2,
            type="struct",
            struct=StructDescription(
                vmsd_name="wheel", version=1, fields=[FieldDescription(name="at", type="int32", size=4)]
            ),
            size=4,
        ),
    ],
    subsections=[
        StructDescription(
            vmsd_name="clock/alarm", version=2, fields=[FieldDescription(name="text", type="buffer", size=5)]
        )
    ],
)
DEVICE_BYTES = (
    (99).to_bytes(8, "big")
    + b"\1"
    + bytes((0, 1, 0, 2, 0, 3))
    + (-7).to_bytes(4, "big", signed=True)
    + (8).to_bytes(4, "big")
    + b"\5\x0bclock/alarm\0\0\0\2hello"
)
DEVICE_VALUES = {
    "ticks": 99,
    "armed": True,
    "lines": [1, 2, 3],
    "wheel": [{"at": -7}, {"at": 8}],
    "clock/alarm": {"text": b"hello"},
}


def whole_stream() -> bytes:
    """A small stream with everything in it that is written sequentially."""

    def write(data: MigrationDataFile) -> None:
        writer = SectionWriter(data)
        writer.header()
        writer.configuration("pc-test", ["x-ignore-shared"], bytes(range(16)))
        writer.start(RAM, "ram", 0, 4)
        write_block_list(data, [BlockEntry(one.name, one.size_bytes, gpa=0x1000) for one in BLOCKS])
        data.put_be64(MIGRATION_RAM_SAVE_FLAG_EOS)
        writer.footer(RAM)
        some = index_of([1, 2, 5])
        words = encode_page_words(bytearray(page_words_bytes("mem0", 3)), "mem0", some, content(7, 3))
        zeros = encode_zero_words("mem0", np.arange(8, 20))
        for part in part_section(RAM, [words, zeros, encode_zero_words("rom", index_of([0]))]):
            data.put_buffer(part)
        writer.command(2, (1).to_bytes(4, "big"))
        writer.end(RAM)
        data.put_be64(MIGRATION_RAM_SAVE_FLAG_EOS)
        writer.footer(RAM)
        writer.full(5, DEVICE.name, DEVICE.instance_id, DEVICE.version)
        data.put_buffer(DEVICE_BYTES)
        writer.footer(5)
        writer.eof()
        writer.vmdescription(build(VmDescription(page_size=4096, devices=[DEVICE])))

    return put(write)


def read_whole(data: MigrationDataFile, description: VmDescription) -> list[object]:
    """Everything in a stream whose devices *description* tells; raises what the readers raise."""
    found: list[object] = []
    devices = {(one.name, one.instance_id): one for one in description.devices}
    reader, words = SectionReader(data), RamWordReader(data, [])
    reader.read_header()
    shared = mapped = False
    while not isinstance(item := reader.next(), EndOfStream):
        found.append(item)
        if not isinstance(item, SectionHead):
            if not isinstance(item, Command):
                shared, mapped = ("x-ignore-shared" in item.capabilities), ("mapped-ram" in item.capabilities)
            continue
        if (item.idstr, item.instance_id) in devices:
            device = devices[item.idstr, item.instance_id]
            found.append(decode(device, data.get_buffer(device_bytes(device), MAX_DEVICE_BYTES)))
        elif item.idstr == "ram":
            if item.kind is SectionKind.START:
                blocks = read_setup(data, ignore_shared=shared, mapped_ram=mapped)
                found += blocks
                words = RamWordReader(data, blocks)
            found += [page for run in words.read_section() for page in each_page(run)]
        reader.footer(item)
    json = reader.vmdescription()
    found.append(json and parse(json))
    return found


def each_page(run: PageRun | ZeroRun | EncodedPage) -> Iterator[tuple[str, int, bytes | None]]:
    """Block, number and bytes of each page; how pages come together in runs depends on how the bytes arrive."""
    if isinstance(run, EncodedPage):
        yield run.block, run.page, run.payload
    elif isinstance(run, PageRun):
        for page, bytes_of_page in zip(run.index.tolist(), run.pages, strict=True):
            yield run.block, page, bytes_of_page.tobytes()
    else:
        for page in run.index.tolist():
            yield run.block, page, None


def saved_devices(*devices: tuple[str, bytes]) -> bytes:
    """Devices by name and bytes, as QEMU's ``xen-save-devices-state`` writes them; their numbers count from 0."""

    def write(data: MigrationDataFile) -> None:
        sections = SectionWriter(data)
        sections.header()
        for number, (name, body) in enumerate(devices):
            sections.full(number, name, 3, 1)
            data.put_buffer(body)
            sections.footer(number)
        sections.eof()

    return put(write)
