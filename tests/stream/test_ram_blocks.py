# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import struct

import pytest

from parmig.errors import (
    StreamDataError,
    StreamError,
    StreamTooLongError,
    StreamTruncatedError,
    StreamVersionError,
)
from parmig.stream import MigrationDataFile, ram_blocks
from parmig.stream.ram_blocks import BlockEntry, read_setup, write_block_list
from parmig.transport.file import FileStream
from tests.stream.streams import put, reading

MIB = 1 << 20


def entry(name: bytes, size: int, *more: int) -> bytes:
    return bytes((len(name),)) + name + b"".join(struct.pack(">Q", value) for value in (size, *more))


def setup(total: int, *entries: bytes) -> bytes:
    return struct.pack(">Q", total | 4) + b"".join(entries)


def test_the_list_is_what_qemu_writes() -> None:
    entries = [BlockEntry("pc.ram", MIB), BlockEntry("pc.rom", 4096)]
    stream = setup(MIB + 4096, entry(b"pc.ram", MIB), entry(b"pc.rom", 4096))
    assert put(lambda data: write_block_list(data, entries)) == stream
    assert read_setup(reading(stream, 9, 20)) == entries


def test_ignored_blocks_tell_their_address() -> None:
    entries = [BlockEntry("pc.ram", MIB, gpa=0), BlockEntry("bios", 4096, gpa=0xFFFC0000)]
    stream = setup(MIB + 4096, entry(b"pc.ram", MIB, 0), entry(b"bios", 4096, 0xFFFC0000))
    assert put(lambda data: write_block_list(data, entries)) == stream
    assert read_setup(reading(stream), ignore_shared=True) == entries


def test_a_page_size_comes_before_the_address_and_only_where_it_is_said_to() -> None:
    entries = [BlockEntry("huge", MIB, 7, 2 * MIB), BlockEntry("bios", 4096, 8)]
    stream = setup(MIB + 4096, entry(b"huge", MIB, 2 * MIB, 7), entry(b"bios", 4096, 8))
    assert put(lambda data: write_block_list(data, entries)) == stream
    assert read_setup(reading(stream), ignore_shared=True, with_page_size={"huge"}) == entries


def test_a_mapped_list_leaves_room_for_bitmaps_and_pages_and_the_stream_goes_on_behind() -> None:
    fd = os.memfd_create("test", os.MFD_CLOEXEC)
    try:
        data = MigrationDataFile(FileStream(fd, "test"), "test")
        data.put_buffer(bytes(100))
        written = write_block_list(data, [BlockEntry("a", 5 * MIB), BlockEntry("b", 4096)], mapped_ram=True)
        data.put_byte(9)
        data.flush_data()
        assert [one.mapped and one.mapped.pages_offset_bytes for one in written] == [MIB, 7 * MIB]
        assert os.fstat(fd).st_size == 7 * MIB + 4096 + 1
        data = MigrationDataFile(FileStream(fd, "test", offset_bytes=100), "test", start_bytes=100)
        assert read_setup(data, mapped_ram=True) == written
        assert data.get_byte() == 9
        assert data.at_end()
    finally:
        os.close(fd)


def mapped(version: int = 1, page: int = 4096, bitmap: int = 48, pages: int = MIB) -> bytes:
    return entry(b"a", MIB) + struct.pack(">IQQQ", version, page, bitmap, pages)


def test_a_block_without_pages_of_its_own_has_an_empty_header() -> None:
    stream = setup(MIB, entry(b"a", MIB, 7) + struct.pack(">IQQQ", 1, 4096, 0, 0)) + b"\5"
    data = reading(stream)
    assert read_setup(data, ignore_shared=True, mapped_ram=True) == [BlockEntry("a", MIB, 7)]
    assert data.get_byte() == 5


@pytest.mark.parametrize(
    ("stream", "how", "kind", "words"),
    [
        (struct.pack(">Q", 0x1008), {}, StreamDataError, "word 0x1008, expected the list of blocks"),
        (
            setup(4096, entry(b"a", 8192)),
            {},
            StreamDataError,
            "block 'a' has 8192 bytes, expected a new block of at most 4096",
        ),
        (setup(8192, entry(b"a", 4096), entry(b"a", 4096)), {}, StreamDataError, "a new block"),
        (setup(4096, entry(b"", 4096)), {}, StreamDataError, "block '' has 4096"),
        (setup(3 << 62, entry(b"a", 3 << 62)), {}, StreamDataError, "block 'a' has"),
        (setup(8192, entry(b"a", 4096)), {}, StreamTruncatedError, "found 0"),
        (setup(MIB, mapped(version=2)), {"mapped_ram": True}, StreamVersionError, "version 2, expected 1"),
        (setup(MIB, mapped(page=65536)), {"mapped_ram": True}, StreamDataError, "pages of 65536"),
        (setup(MIB, mapped(pages=MIB + 1)), {"mapped_ram": True}, StreamDataError, "on page borders"),
        (setup(MIB, mapped(bitmap=45)), {"mapped_ram": True}, StreamDataError, "in this order"),
        (setup(MIB, mapped(bitmap=MIB)), {"mapped_ram": True}, StreamDataError, "in this order"),
        (setup(MIB, mapped(pages=1 << 63)), {"mapped_ram": True}, StreamDataError, "of the file"),
        (setup(MIB, mapped()), {"mapped_ram": True}, StreamTruncatedError, "found 0"),
    ],
)
def test_damage_is_told(stream: bytes, how: dict[str, bool], kind: type[StreamError], words: str) -> None:
    with pytest.raises(kind, match=words) as caught:
        read_setup(reading(stream), **how)  # type: ignore[arg-type]
    assert caught.value.offset_bytes is not None


def test_the_number_of_blocks_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ram_blocks, "MAX_BLOCKS", 2)
    empty = [entry(b"%d" % number, 0) for number in range(3)]
    with pytest.raises(StreamTooLongError, match="more than 2 blocks"):
        read_setup(reading(setup(4096, *empty)))


@pytest.mark.parametrize("size", [100, 1 << 64])
def test_what_does_not_fit_is_not_written(size: int) -> None:
    with pytest.raises(StreamDataError, match="whole pages"):
        put(lambda data: write_block_list(data, [BlockEntry("a", size)]))
