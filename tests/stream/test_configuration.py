# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import struct

import pytest

from parmig.errors import (
    StreamDataError,
    StreamError,
    StreamSectionError,
    StreamTooLongError,
    StreamTruncatedError,
    StreamVersionError,
)
from parmig.stream.configuration import Configuration, read_configuration, write_configuration
from tests.stream.streams import put, reading

FULL = Configuration("pc-i440fx-7.2", ("x-ignore-shared", "mapped-ram"), bytes(range(16)), 12)


def part(name: str, body: bytes, version: int = 1) -> bytes:
    return b"\5" + bytes((len(name),)) + name.encode() + struct.pack(">I", version) + body


@pytest.mark.parametrize("written", [FULL, Configuration("none"), Configuration("x", uuid=bytes(16))])
def test_a_configuration_is_read_as_it_was_written(written: Configuration) -> None:
    content = put(lambda data: write_configuration(data, written))
    assert content[0] == 7
    for cut in range(1, len(content), 11):
        data = reading(content[1:] + b"\1", cut)
        assert read_configuration(data) == written
        assert data.get_byte() == 1


def test_it_may_be_the_last_thing_in_a_stream() -> None:
    assert read_configuration(reading(b"\0\0\0\2pc")) == Configuration("pc")


def test_it_is_what_qemu_writes() -> None:
    caps = part("configuration/capabilities", b"\0\0\0\1\x0fx-ignore-shared")
    stream = b"\7\0\0\0\x0dpc-i440fx-7.2" + caps
    assert put(lambda data: write_configuration(data, Configuration("pc-i440fx-7.2", ("x-ignore-shared",)))) == stream


@pytest.mark.parametrize(
    ("content", "kind", "words"),
    [
        (struct.pack(">I", 256), StreamTooLongError, "a machine type of 256 bytes"),
        (b"\0\0\0\2\xc3\x84", StreamDataError, "expected a machine type"),
        (
            b"\0\0\0\0" + part("configuration/tea", b""),
            StreamSectionError,
            "has 'configuration/tea', expected one each of",
        ),
        (b"\0\0\0\0" + 2 * part("configuration/uuid", bytes(16)), StreamSectionError, "one each of"),
        (b"\0\0\0\0" + part("configuration/uuid", bytes(16), 2), StreamVersionError, "has version 2, expected 1"),
        (b"\0\0\0\0" + part("configuration/uuid", bytes(15)), StreamTruncatedError, "found 15"),
        (b"\0\0\0\0" + part("configuration/target-page-bits", b"\0\0\0\x0e"), StreamDataError, r"2\^14"),
        (b"\0\0\0\0" + part("configuration/capabilities", b"\xff" * 4), StreamTooLongError, "list of capabilities"),
    ],
)
def test_damage_is_told(content: bytes, kind: type[StreamError], words: str) -> None:
    with pytest.raises(kind, match=words) as caught:
        read_configuration(reading(content))
    assert caught.value.offset_bytes is not None


@pytest.mark.parametrize(
    ("configuration", "kind"),
    [
        (Configuration("Ä"), StreamDataError),
        (Configuration("x" * 256), StreamTooLongError),
        (Configuration("x", ("c",) * 65), StreamTooLongError),
        (Configuration("x", uuid=b"short"), StreamDataError),
    ],
)
def test_what_could_not_be_read_is_not_written(configuration: Configuration, kind: type[StreamError]) -> None:
    with pytest.raises(kind):
        put(lambda data: write_configuration(data, configuration))
