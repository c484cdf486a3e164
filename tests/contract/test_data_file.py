# SPDX-License-Identifier: Apache-2.0
"""MigrationDataFile over every stream of bytes: what was put is got."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from parmig.errors import StreamTruncatedError
from parmig.stream import MigrationDataFile
from parmig.stream.ram_encode import encode_page_words, page_words_bytes
from parmig.stream.ram_words import RamWordReader
from parmig.stream.sections import SectionReader
from parmig.transport.byte_stream import ByteStream
from parmig.transport.file import FileStream
from parmig.transport.memory import MemoryStream
from tests.stream.streams import BLOCKS, each_page, read_whole, whole_stream
from tests.stream.test_sections import DESCRIPTION
from tests.support import content

Pair = tuple[ByteStream, Callable[[], ByteStream]]


@pytest.fixture(params=["file", "memory"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """A stream to write to, and what makes one that reads what was written."""
    if request.param == "memory":
        written = MemoryStream()
        yield written, lambda: MemoryStream(written.written)
        return
    fd = os.memfd_create("stream", os.MFD_CLOEXEC)
    yield FileStream(fd, "x"), lambda: FileStream(fd, "x")
    os.close(fd)


def test_a_whole_stream_passes(pair: Pair) -> None:
    source, destination = pair
    writing = MigrationDataFile(source, "source")
    for byte in whole_stream():
        writing.put_byte(byte)
    writing.flush_data()
    reading = MigrationDataFile(destination(), "destination")
    found = read_whole(reading, DESCRIPTION)
    assert found[-1] == DESCRIPTION
    assert reading.at_end()


def test_pages_pass_by_reference_in_messages_of_many_vectors(
    pair: Pair,
) -> None:
    source, destination = pair
    writing = MigrationDataFile(source, "source")
    pages = content(1, 200)
    pieces = []
    for first in range(0, 60, 3):
        out = bytearray(page_words_bytes("mem0", 3))
        pieces.append(out)
        writing.put_buffer(encode_page_words(out, "mem0", np.arange(first, first + 3), pages[first : first + 3]))
        writing.put_be64(0x10)
    writing.flush_data()
    assert writing.position_bytes == sum(len(piece) + 8 for piece in pieces)
    reading = MigrationDataFile(destination(), "destination")
    words = RamWordReader(reading, BLOCKS)
    for first in range(0, 60, 3):
        found = [page for run in words.read_section() for page in each_page(run)]
        assert found == [("mem0", number, pages[number].tobytes()) for number in range(first, first + 3)]
    assert reading.at_end()


def test_an_early_end_is_told(pair: Pair) -> None:
    source, destination = pair
    writing = MigrationDataFile(source, "source")
    writing.put_buffer(whole_stream()[:7])
    writing.flush_data()
    reader = SectionReader(MigrationDataFile(destination(), "destination"))
    with pytest.raises(StreamTruncatedError) as caught:
        reader.read_header()
    assert caught.value.offset_bytes == 4
