# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from parmig.errors import (
    StreamError,
    StreamFooterError,
    StreamMagicError,
    StreamSectionError,
    StreamTooLongError,
    StreamTruncatedError,
    StreamVersionError,
)
from parmig.stream import sections
from parmig.stream.configuration import Configuration
from parmig.stream.flags import MigrationCommand
from parmig.stream.section_writer import SectionWriter
from parmig.stream.sections import Command, EndOfStream, SectionHead, SectionKind, SectionReader
from parmig.stream.vmdescription import VmDescription, parse
from tests.stream.streams import (
    BLOCKS,
    DEVICE,
    DEVICE_VALUES,
    put,
    read_whole,
    reading,
    whole_stream,
)
from tests.support import content

DESCRIPTION = VmDescription(page_size=4096, devices=[DEVICE])


def head(kind: int, section_id: int = 1, name: bytes = b"x", instance: int = 0, version: int = 1) -> bytes:
    return struct.pack(">BI", kind, section_id) + bytes((len(name),)) + name + struct.pack(">II", instance, version)


def footer(section_id: int = 1) -> bytes:
    return struct.pack(">BI", 0x7E, section_id)


HEADER = struct.pack(">II", 0x5145564D, 3)


def test_a_whole_stream_is_read_as_it_was_written() -> None:
    found = read_whole(reading(whole_stream(), 5, 100, 4000, 4111), DESCRIPTION)
    heads = [item for item in found if isinstance(item, SectionHead)]
    assert [(one.kind.name, one.section_id, one.idstr, one.instance_id, one.version_id) for one in heads] == [
        ("START", 2, "ram", 0, 4),
        ("PART", 2, "ram", 0, 4),
        ("END", 2, "ram", 0, 4),
        ("FULL", 5, "clock", 1, 3),
    ]
    assert found[0] == Configuration("pc-test", ("x-ignore-shared",), bytes(range(16)))
    assert [item for item in found if isinstance(item, type(BLOCKS[0]))][1].gpa == 0x1000
    assert next(item for item in found if isinstance(item, Command)).payload == b"\0\0\0\1"
    assert [item for item in found if isinstance(item, tuple)] == [
        *[
            ("mem0", page, bytes_of_page.tobytes())
            for page, bytes_of_page in zip([1, 2, 5], content(7, 3), strict=True)
        ],
        *[("mem0", page, None) for page in range(8, 20)],
        ("rom", 0, None),
    ]
    assert DEVICE_VALUES in found
    assert found[-1] == DESCRIPTION


def test_offsets_are_those_of_the_type_bytes() -> None:
    stream = whole_stream()
    for item in read_whole(reading(stream), DESCRIPTION):
        if isinstance(item, SectionHead | Command):
            expected = item.kind if isinstance(item, SectionHead) else 8
            assert stream[item.offset_bytes] == expected


@pytest.mark.parametrize("length", range(0, len(whole_stream()), 97))
def test_a_stream_that_is_cut_off_anywhere_is_told(length: int) -> None:
    with pytest.raises(StreamTruncatedError) as caught:
        read_whole(reading(whole_stream()[:length], length // 2), DESCRIPTION)
    assert caught.value.offset_bytes is not None
    assert caught.value.offset_bytes <= length


def after_header(*parts: bytes) -> Callable[[], object]:
    """Read all sections, taking bodies to be empty."""

    def read() -> object:
        data = reading(HEADER + b"".join(parts))
        reader = SectionReader(data)
        reader.read_header()
        while not isinstance(item := reader.next(), EndOfStream):
            if isinstance(item, SectionHead):
                reader.footer(item)
        return reader.vmdescription()

    return read


@pytest.mark.parametrize(
    ("content", "kind", "offset", "words"),
    [
        (b"\x7fELF\0\0\0\3", StreamMagicError, 0, "begins with 0x7f454c46, expected 0x5145564d"),
        (struct.pack(">II", 0x5145564D, 2), StreamVersionError, 4, "the stream has version 2, expected 3"),
    ],
)
def test_what_is_no_such_stream_is_told_apart(content: bytes, kind: type[StreamError], offset: int, words: str) -> None:
    with pytest.raises(kind, match=words) as caught:
        SectionReader(reading(content)).read_header()
    assert caught.value.offset_bytes == offset
    assert f"(at byte {offset} of the stream)" in str(caught.value)


@pytest.mark.parametrize(
    ("parts", "kind", "offset", "words"),
    [
        ([b"\x09"], StreamSectionError, 8, "type 0x09"),
        ([b"\x06"], StreamSectionError, 8, "type 0x06"),
        ([head(4), footer(), b"\x07"], StreamSectionError, 28, "type 0x07"),
        ([b"\x02\0\0\0\1"], StreamSectionError, 8, "PART names section 1, expected one that has begun"),
        (
            [head(4), footer(), b"\x03\0\0\0\1"],
            StreamSectionError,
            28,
            "END names section 1, expected one that has begun",
        ),
        (
            [head(1), footer(), b"\x03\0\0\0\1", footer(), b"\x02\0\0\0\1"],
            StreamSectionError,
            38,
            "PART names section 1, expected one that has begun and not ended",
        ),
        ([head(4), footer(), head(4, name=b"y")], StreamSectionError, 28, "'y'. has the number of 'x' at byte 8"),
        ([head(1), footer(), head(4, instance=1)], StreamSectionError, 28, "has the number of 'x' at byte 8"),
        ([struct.pack(">BHH", 8, 12, 0)], StreamSectionError, 8, "command 12 is unknown"),
        ([head(4), footer(2)], StreamFooterError, 23, "0x7e 2 follows section 1 .'x'., expected its footer"),
        ([head(4), b"\x04\0\0\0\1"], StreamFooterError, 23, "longer or shorter"),
        ([b"\0\x04"], StreamTooLongError, 9, "0x04 follows the end"),
        (
            [b"\0\x06", struct.pack(">I", (8 << 20) + 1)],
            StreamTooLongError,
            14,
            "description of devices of 8388609 bytes, allowed are 8388608",
        ),
        ([b"\0\x06", struct.pack(">I", 8 << 20)], StreamTruncatedError, 14, "found 0"),
    ],
)
def test_each_damage_has_its_own_error_with_its_place(
    parts: list[bytes], kind: type[StreamError], offset: int, words: str
) -> None:
    with pytest.raises(kind, match=words) as caught:
        after_header(*parts)()
    assert type(caught.value) is kind
    assert caught.value.offset_bytes == offset


def test_a_device_may_have_both_live_data_and_plain_state() -> None:
    assert after_header(head(1), footer(), b"\x03\0\0\0\1", footer(), head(4), footer(), b"\0")() is None


def test_the_number_of_sections_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sections, "MAX_SECTIONS", 3)
    parts = [part for number in range(4) for part in (head(4, number), footer(number))]
    with pytest.raises(StreamSectionError, match="more than 3 sections") as caught:
        after_header(*parts)()
    assert caught.value.offset_bytes == len(HEADER) + 3 * len(parts[0] + parts[1])


def test_a_command_and_the_end_are_told_with_their_places() -> None:
    reader = SectionReader(reading(struct.pack(">BHH", 8, MigrationCommand.PING, 4) + b"\0\0\0\7" + b"\0"))
    assert reader.next() == Command(MigrationCommand.PING, b"\0\0\0\7", 0)
    assert reader.next() == EndOfStream(9)


def test_what_follows_the_description_is_left_for_others() -> None:
    data = reading(b"\0\x06\0\0\0\2{}trailer")
    reader = SectionReader(data)
    assert isinstance(reader.next(), EndOfStream)
    assert reader.vmdescription() == b"{}"
    assert data.get_buffer(7) == b"trailer"


def test_a_stream_without_header_can_be_read_from_its_sections_on() -> None:
    data = reading(head(4) + b"body" + footer())
    reader = SectionReader(data)
    item = reader.next()
    assert item == SectionHead(SectionKind.FULL, 1, "x", 0, 1, 0)
    assert data.get_buffer(4) == b"body"


def test_what_is_too_long_is_not_written() -> None:
    with pytest.raises(StreamTooLongError, match="65536 bytes, allowed are 65535"):
        put(lambda data: SectionWriter(data).command(MigrationCommand.PING, bytes(65536)))
    with pytest.raises(StreamTooLongError, match="description"):
        put(lambda data: SectionWriter(data).vmdescription(bytes((8 << 20) + 1)))


def test_the_written_description_is_the_one_that_is_parsed() -> None:
    stream = whole_stream()
    assert parse(stream[stream.rindex(b'{"page') :]) == DESCRIPTION
