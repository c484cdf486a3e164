# SPDX-License-Identifier: Apache-2.0
"""No input makes a reader take more than 64 MiB; the worst that the limits allow, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from parmig.errors import StreamError
from parmig.stream import MigrationDataFile
from parmig.stream.ram_blocks import BlockEntry, read_setup
from parmig.stream.ram_words import RamWordReader
from parmig.stream.sections import EndOfStream, SectionHead, SectionReader
from parmig.stream.vmdescription import decode, device_bytes, parse
from parmig.transport.file import FileStream
from tools.fuzzing import peak_bytes

LIMIT_BYTES = 64 << 20
FILE_BYTES = 200 << 20


def name(number: int) -> bytes:
    return b"\xff" + b"%0255d" % number


def many_sections() -> Iterator[bytes]:
    for number in range(100_000):
        yield b"\4" + number.to_bytes(4, "big") + name(number) + bytes(8) + b"\x7e" + number.to_bytes(4, "big")


def read_sections(data: MigrationDataFile) -> None:
    reader = SectionReader(data)
    while not isinstance(item := reader.next(), EndOfStream):
        if isinstance(item, SectionHead):
            reader.footer(item)
    reader.vmdescription()


def many_blocks() -> Iterator[bytes]:
    yield (1 << 62 | 4).to_bytes(8, "big")
    for number in range(100_000):
        yield name(number) + (4096).to_bytes(8, "big")


def zero_pages() -> Iterator[bytes]:
    word = b"\0\0\0\0\0\0\0\x22\0"
    yield b"\0\0\0\0\0\0\0\x02\4mem0\0"
    while True:
        yield word * 100_000


def data_pages() -> Iterator[bytes]:
    yield b"\0\0\0\0\0\0\0\x08\4mem0" + bytes(4096)
    while True:
        yield (b"\0\0\0\0\0\0\0\x28" + bytes(4096)) * 100


def read_words(data: MigrationDataFile) -> None:
    words = RamWordReader(data, [BlockEntry("mem0", 1 << 62)])
    held = []
    for run in words.read_section():
        held = [run, *held[:1]]


def long_value() -> Iterator[bytes]:
    yield b"\0\x06\xff\xff\xff\xff"
    while True:
        yield bytes(1 << 20)


def described(fields: bytes, state: bytes) -> Iterator[bytes]:
    json = b'{"page_size":4096,"devices":[{"name":"d","instance_id":0,"fields":[' + fields + b"]}]}"
    yield b"\0\x06" + len(json).to_bytes(4, "big") + json
    for _ in range(4):
        yield state * ((1 << 20) // len(state))


def worst_description() -> Iterator[bytes]:
    """As many fields as are allowed, their names as wide as the length allows, over a device of 4 MiB."""
    text = "x" * 25 + "\U0001f600"
    first = b'{"name":"a","array_len":30000,"type":"struct","size":8,"struct":{"fields":['
    struct = first + b'{"name":"a","type":"uint64","size":8}]}},{"name":"b","type":"buffer","size":3954304},'
    empty = f'{{"name":"{text}","type":"x","size":0}}'.encode()
    yield from described(struct + b",".join([empty] * 60_000), b"\xff")


def read_description(data: MigrationDataFile) -> None:
    reader = SectionReader(data)
    reader.next()
    json = reader.vmdescription()
    assert json is not None
    description = parse(json)
    device = description.devices[0]
    decode(device, data.get_buffer(device_bytes(device), 4 << 20))


CASES: dict[str, tuple[Callable[[], Iterator[bytes]], Callable[[MigrationDataFile], object]]] = {
    "sections": (many_sections, read_sections),
    "blocks": (many_blocks, read_setup),
    "zero pages": (zero_pages, read_words),
    "data pages": (data_pages, read_words),
    "a long value": (long_value, read_sections),
    "a description": (worst_description, read_description),
}


ENDS = {
    "sections": "more than 16384 sections",
    "blocks": "more than 4096 blocks",
    "zero pages": r"found 0 and the end \(at byte 2\d{8} ",
    "data pages": r"found 0 and the end \(at byte 2\d{8} ",
    "a long value": "4294967295 bytes, allowed are 8388608",
    "a description": "more than 131072 values",
}
"""How reading ends: at a limit, or with the file. Anything sooner would not be the worst case."""


def grown_bytes(case: str) -> int:
    """By how much this process grows at most while it reads *case* from a file."""
    make, read = CASES[case]
    fd = os.memfd_create("test", os.MFD_CLOEXEC)
    size = 0
    for piece in make():
        size += os.write(fd, piece)
        if size > FILE_BYTES:
            break
    data = MigrationDataFile(FileStream(fd, "test"), "test")
    before = peak_bytes()
    with pytest.raises(StreamError, match=ENDS[case]):
        read(data)
    return peak_bytes() - before


@pytest.mark.parametrize("case", CASES)
def test_a_reader_stays_small(case: str) -> None:
    program = f"from tests.stream.test_memory import grown_bytes; print(grown_bytes({case!r}))"
    found = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True, timeout=200)
    print(case, int(found.stdout) >> 20, "MiB")
    assert int(found.stdout) < LIMIT_BYTES


def test_the_worst_description_is_one_that_is_read() -> None:
    for size in worst_description():
        json = bytes(size[6:])
        break
    assert len(json) > 3 << 20
    assert parse(json).devices[0].fields[0].array_len == 30_000
