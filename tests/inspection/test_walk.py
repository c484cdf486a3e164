# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parmig.inspection import inspect_file
from parmig.stream import MigrationDataFile, mapped_ram, trailer
from parmig.stream.flags import MIGRATION_RAM_SAVE_FLAG_MEM_SIZE
from parmig.stream.ram_blocks import BlockEntry
from parmig.stream.ram_encode import encode_zero_words
from parmig.stream.section_writer import SectionWriter
from parmig.stream.vmdescription import DeviceDescription, FieldDescription
from tests.inspection.files import described, description, device_section, mapped_file, piped, stream
from tests.stream.streams import DEVICE, DEVICE_BYTES, RAM, put, whole_stream
from tests.support import index_of

MIB = 1 << 20
WHOLE = whole_stream()
JSON_BYTES = len(description(DEVICE))
END_OF_SECTIONS = len(WHOLE) - 5 - JSON_BYTES


def test_a_whole_stream_is_told(tmp_path: Path) -> None:
    found = described(tmp_path, WHOLE)
    assert (found.complete, found.error, found.format, found.version) == (True, None, "qemu-stream", 3)
    assert (found.machine, found.capabilities) == ("pc-test", ["x-ignore-shared"])
    assert found.uuid == "00010203-0405-0607-0809-0a0b0c0d0e0f"
    assert [
        (one.name, one.bytes, one.gpa, one.pages_normal, one.pages_zero, one.pages_distinct) for one in found.blocks
    ] == [("mem0", 64 * 4096, 0x1000, 3, 12, 15), ("rom", 2 * 4096, 0x1000, 0, 1, 1)]
    (clock,) = found.devices
    assert (clock.idstr, clock.instance_id, clock.version, clock.bytes) == ("clock", 1, 3, len(DEVICE_BYTES))
    assert clock.fields == {
        "ticks": 99,
        "armed": True,
        "lines": [1, 2, 3],
        "wheel": [{"at": -7}, {"at": 8}],
        "clock/alarm": {"text": b"hello".hex()},
    }
    assert found.commands == {"PING": 1}
    assert (found.vmdescription_bytes, found.trailing_bytes, found.total_bytes) == (JSON_BYTES, 0, len(WHOLE))


def test_sections_add_up_to_the_stream(tmp_path: Path) -> None:
    found = described(tmp_path, WHOLE)
    ram, clock = found.sections
    assert (ram.kind, ram.idstr, ram.section_id, ram.version, ram.parts) == ("live", "ram", RAM, 4, 3)
    assert (clock.kind, clock.idstr, clock.section_id, clock.parts) == ("full", "clock", 5, 1)
    ping_bytes, eof_bytes = 9, 1
    assert clock.offset_bytes == ram.offset_bytes + ram.bytes + ping_bytes
    assert clock.offset_bytes + clock.bytes + eof_bytes == END_OF_SECTIONS
    assert found.device_state_bytes == clock.bytes


# -- odd streams --------------------------------------------------------------------------------


def test_shared_memory_that_was_left_out_is_named(tmp_path: Path) -> None:
    entries = (BlockEntry("mem0", 4096, gpa=0), BlockEntry("rom", 4096, gpa=0x1000))
    found = described(
        tmp_path,
        stream(encode_zero_words("rom", index_of([0])), entries=entries, capabilities=("x-ignore-shared",)),
    )
    assert [note for note in found.notes if note.startswith("without the pages of mem0:")]


@pytest.mark.parametrize("huge", [0, 1, 2])
def test_the_size_of_huge_pages_is_found_in_the_list_of_blocks(tmp_path: Path, huge: int) -> None:
    names = ["mem0", "mem1", "rom"]
    entries = [
        BlockEntry(name, 4 * MIB, page_size_bytes=2 * MIB if at == huge else None) for at, name in enumerate(names)
    ]
    found = described(tmp_path, stream(entries=tuple(entries)))
    assert found.complete
    assert [one.page_size_bytes for one in found.blocks] == [one.page_size_bytes for one in entries]
    assert any("postcopy-ram" in note for note in found.notes)


def test_bytes_after_the_end_are_counted(tmp_path: Path) -> None:
    found = described(tmp_path, WHOLE + b"more")
    assert (found.complete, found.trailing_bytes) == (True, 4)
    assert "4 bytes follow the end of the stream: b'more'" in found.notes


def test_a_device_may_stand_before_the_end_of_memory(tmp_path: Path) -> None:
    """As a virtio-mem device of QEMU 10 does."""
    found = described(tmp_path, stream(between=device_section(), describe=description(DEVICE)))
    assert found.complete
    assert [one.idstr for one in found.sections] == ["ram", "clock"]
    assert found.sections[0].parts == 3


def test_without_a_description_memory_behind_a_device_cannot_be_found(tmp_path: Path) -> None:
    found = described(tmp_path, stream(between=device_section()))
    assert found.error.type == "StreamSectionError"
    assert [one.idstr for one in found.devices] == ["clock"]


def with_trailer(content: bytes) -> bytes:
    body = content.ljust(-(-len(content) // 4096) * 4096, b"\n")
    return body + trailer.Trailer(parmig="1.2.3", guest="qemu", body_bytes=len(body), digest="0f" * 16).encode()


def test_the_trailer_of_a_snapshot_is_told(tmp_path: Path) -> None:
    content = with_trailer(WHOLE)
    found = described(tmp_path, content)
    assert found.complete
    assert msgspec.structs.asdict(found.trailer) == {
        "parmig": "1.2.3",
        "guest": "qemu",
        "body_bytes": -(-len(WHOLE) // 4096) * 4096,
        "digest": "0f" * 16,
    }
    assert found.trailing_bytes == len(content) - len(WHOLE)
    with piped(content, 1000) as path:
        assert inspect_file(path).trailer == found.trailer


def test_a_damaged_trailer_is_damage(tmp_path: Path) -> None:
    found = described(tmp_path, with_trailer(WHOLE).replace(b"0f0f", b"0f00"))
    assert (found.complete, found.error.type) == (False, "StreamDataError")


def test_a_snapshot_of_parmig_without_its_trailer_was_cut_off(tmp_path: Path) -> None:
    content = stream(section=trailer.MARKED_SECTION_ID)
    assert described(tmp_path, with_trailer(content)).complete
    assert described(tmp_path, content).error.type == "StreamTruncatedError"
    content = stream(state=device_section(), section=trailer.MARKED_SECTION_ID)  # cut off behind its EOF
    assert described(tmp_path, content).error.type == "StreamTruncatedError"


# -- damage -------------------------------------------------------------------------------------


def cases() -> Iterator[tuple[str, bytes, str]]:
    yield "nothing", b"", "StreamTruncatedError"
    yield "something else", b"\x7fELF" + bytes(100), "StreamMagicError"
    yield "an old version", WHOLE[:7] + b"\2" + WHOLE[8:], "StreamVersionError"
    other = put(lambda data: SectionWriter(data).start(9, "dirty-bitmap", 0, 1))
    yield "another live section", stream()[:-1] + other + bytes(64), "StreamSectionError"
    yield (
        "memory of another version",
        stream().replace(b"\3ram\0\0\0\0\0\0\0\4", b"\3ram\0\0\0\0\0\0\0\5"),
        ("StreamVersionError"),
    )
    yield (
        "memory without an end",
        stream().replace(b"\3\0\0\0\2" + (16).to_bytes(8, "big") + b"~\0\0\0\2", b""),
        ("StreamSectionError"),
    )
    again = put(lambda data: SectionWriter(data).start(9, "ram", 0, 4))
    yield "memory twice", stream()[:-1] + again + bytes(64), "StreamSectionError"
    yield "a page outside", stream(encode_zero_words("mem0", index_of([64]))), "StreamDataError"
    yield (
        "a device that nothing describes",
        stream(state=device_section("x"), describe=description(DEVICE)),
        ("StreamSectionError"),
    )
    yield (
        "a device of another length",
        stream(state=device_section(body=DEVICE_BYTES + b"1"), describe=description(DEVICE)),
        ("StreamFooterError"),
    )
    giant = DeviceDescription(
        name="clock", instance_id=1, fields=[FieldDescription(name="b", type="buffer", size=1 << 40, array_len=1 << 40)]
    )
    yield "a device of 2^80 bytes", stream(state=device_section(), describe=description(giant)), "StreamTooLongError"
    long = DeviceDescription(
        name="clock", instance_id=1, fields=[FieldDescription(name="b", type="buffer", size=1 << 40)]
    )
    yield "a device of 2^40 bytes", stream(state=device_section(), describe=description(long)), "StreamTruncatedError"
    yield "a description of something", stream(state=device_section(), describe=b'{"page_size":1}'), "StreamDataError"


@pytest.mark.parametrize(("content", "error"), [pytest.param(*case[1:], id=case[0]) for case in cases()])
def test_damage_is_told_by_its_documented_error(tmp_path: Path, content: bytes, error: str) -> None:
    found = described(tmp_path, content)
    assert not found.complete
    assert found.error.type == error
    assert found.error.message in found.notes
    assert found.total_bytes == len(content)


def test_what_is_no_stream_has_no_format(tmp_path: Path) -> None:
    found = described(tmp_path, bytes(100))
    assert (found.format, found.version, found.machine) == (None, None, None)


def test_positions_in_a_file_cannot_be_made_to_overflow(tmp_path: Path) -> None:
    def write(data: MigrationDataFile) -> None:
        writer = SectionWriter(data)
        writer.header()
        writer.configuration("pc-test", ["mapped-ram"])
        writer.start(RAM, "ram", 0, 4)
        size_bytes = 1 << 61
        data.put_be64(size_bytes | MIGRATION_RAM_SAVE_FLAG_MEM_SIZE)
        data.put_counted_string("mem0")
        data.put_be64(size_bytes)
        data.put_buffer(mapped_ram.MappedRamHeader(1, 4096, 4096, 1 << 61).encode())

    found = described(tmp_path, put(write))
    assert found.error.type == "StreamTruncatedError"


def test_a_cut_anywhere_is_noticed(tmp_path: Path) -> None:
    for cut in [*range(120), *range(120, END_OF_SECTIONS, 397), *range(END_OF_SECTIONS - 90, len(WHOLE))]:
        found = described(tmp_path, WHOLE[:cut])
        assert found.complete == (cut == END_OF_SECTIONS), cut
        assert (found.error is None) == found.complete


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """*whole* with a few bytes changed, taken out, put in or said twice."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content) - 1))
        size = draw(st.integers(0, 12))
        new = draw(st.one_of(st.binary(max_size=12), st.just(bytes(content[at : at + size]) * 2)))
        content[at : at + size] = new
    return bytes(content)


SMALL = stream(encode_zero_words("mem0", index_of([1, 2, 9])), state=device_section(), describe=description(DEVICE))


@settings(max_examples=400, deadline=None)
@given(content=st.one_of(damaged(WHOLE), damaged(SMALL)))
def test_nothing_but_what_is_documented_comes_of_damage(content: bytes) -> None:
    fd = os.memfd_create("damaged")
    try:
        os.write(fd, content)
        found = inspect_file(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
    assert found.complete == (found.error is None)
    assert found.total_bytes == len(content)
    msgspec.json.encode(found)
    with piped(content) as pipe:
        same = inspect_file(pipe)
    assert (same.complete, same.error and same.error.type) == (found.complete, found.error and found.error.type)
    assert same.devices == found.devices


@pytest.fixture(scope="module")
def mapped_content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("mapped") / "file"
    mapped_file(path, {"ram": 64 * 4096, "rom": 4096}, {"ram": [1, 2]})
    return path.read_bytes()


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_nothing_but_what_is_documented_comes_of_a_damaged_map(mapped_content: bytes, data: st.DataObject) -> None:
    head_bytes = 150
    head = data.draw(damaged(mapped_content[:head_bytes]))
    fd = os.memfd_create("damaged")
    try:
        os.writev(fd, [head, memoryview(mapped_content)[head_bytes:]])
        found = inspect_file(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
    assert found.complete == (found.error is None)
    msgspec.json.encode(found)
