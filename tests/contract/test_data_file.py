# SPDX-License-Identifier: Apache-2.0
"""MigrationDataFile over every transport: what one side puts, the other gets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import zmq

from parmig.errors import StreamTruncatedError
from parmig.stream import MigrationDataFile
from parmig.stream.ram_encode import encode_page_words, page_words_bytes
from parmig.stream.ram_words import RamWordReader
from parmig.stream.sections import SectionReader
from parmig.transport.registry import open_transport
from parmig.transport.transport import Endpoint, MigrationTransport, parse_uri
from parmig.units import MIB, NS_PER_S
from tests.stream.streams import BLOCKS, each_page, read_whole, whole_stream
from tests.stream.test_sections import DESCRIPTION
from tests.support import PATIENCE_S, content

PATIENCE_MS = int(PATIENCE_S * 1000)


@pytest.fixture(params=["zmq+tcp", "file"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[MigrationTransport, MigrationTransport]]:
    """A source that has connected, and a destination that is bound."""
    with ExitStack() as stack:
        context = stack.enter_context(zmq.Context())

        def open_one(endpoint: Endpoint) -> MigrationTransport:
            one = open_transport(endpoint, context, "x", heartbeat=False, max_message_bytes=MIB, files=True)
            stack.callback(one.shutdown)
            return one

        if request.param == "file":
            endpoint = parse_uri(f"file://{tmp_path}/stream")
            source, destination = open_one(endpoint), open_one(endpoint)
            source.connect(endpoint, timeout_ns=0)
            destination.bind(endpoint)
        else:
            endpoint = parse_uri("zmq+tcp://127.0.0.1:0")
            source, destination = open_one(endpoint), open_one(endpoint)
            source.connect(destination.bind(endpoint), timeout_ns=10 * NS_PER_S)
        yield source, destination


def test_a_whole_stream_passes(pair: tuple[MigrationTransport, MigrationTransport]) -> None:
    source, destination = pair
    writing = MigrationDataFile(source, "source")
    for byte in whole_stream():
        writing.put_byte(byte)
    writing.finish()
    reading = MigrationDataFile(destination, "destination", timeout_ms=PATIENCE_MS)
    found = read_whole(reading, DESCRIPTION)
    assert found[-1] == DESCRIPTION
    assert reading.at_end()


def test_pages_pass_by_reference_in_messages_of_many_vectors(
    pair: tuple[MigrationTransport, MigrationTransport],
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
    writing.finish()
    assert writing.position_bytes == sum(len(piece) + 8 for piece in pieces)
    reading = MigrationDataFile(destination, "destination", timeout_ms=PATIENCE_MS)
    words = RamWordReader(reading, BLOCKS)
    for first in range(0, 60, 3):
        found = [page for run in words.read_section() for page in each_page(run)]
        assert found == [("mem0", number, pages[number].tobytes()) for number in range(first, first + 3)]
    assert reading.at_end()


def test_an_early_end_is_told(pair: tuple[MigrationTransport, MigrationTransport]) -> None:
    source, destination = pair
    writing = MigrationDataFile(source, "source")
    writing.put_buffer(whole_stream()[:7])
    writing.finish()
    reader = SectionReader(MigrationDataFile(destination, "destination", timeout_ms=PATIENCE_MS))
    with pytest.raises(StreamTruncatedError) as caught:
        reader.read_header()
    assert caught.value.offset_bytes == 4
