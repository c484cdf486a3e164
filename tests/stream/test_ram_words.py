# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest

from parmig.errors import StreamDataError, StreamError, StreamTruncatedError
from parmig.stream import MigrationDataFile
from parmig.stream.ram_blocks import BlockEntry
from parmig.stream.ram_encode import encode_page_words, encode_zero_words, page_words_bytes
from parmig.stream.ram_words import EncodedPage, Encoding, PageRun, RamWordReader, ZeroRun
from parmig.stream.xbzrle import encode as encode_xbzrle
from tests.stream.streams import each_page, reading
from tests.support import content, index_of

ZERO, PAGE, EOS, CONTINUE, XBZRLE, HOOK, COMPRESS, FLUSH = 2, 8, 0x10, 0x20, 0x40, 0x80, 0x100, 0x200
BLOCKS = [BlockEntry("mem0", 1000 * 4096), BlockEntry("rom", 4096 + 1)]


def word(page: int, flags: int, name: bytes = b"") -> bytes:
    return struct.pack(">Q", page << 12 | flags) + (bytes((len(name),)) + name if name else b"")


END = word(0, EOS)


def pages_of(data: MigrationDataFile, reader: RamWordReader | None = None) -> list[tuple[str, int, bytes | None]]:
    reader = reader or RamWordReader(data, BLOCKS)
    return [page for run in reader.read_section() for page in each_page(run)]


def page_words(first: int, pages: np.ndarray, block: str = "mem0") -> bytes:
    out = bytearray(page_words_bytes(block, len(pages)))
    return bytes(encode_page_words(out, block, np.arange(first, first + len(pages)), pages))


def test_runs_come_out_as_arrays() -> None:
    data = reading(page_words(10, content(1, 300)) + encode_zero_words("mem0", np.arange(600, 900)) + END)
    runs = list(RamWordReader(data, BLOCKS).read_section())
    kinds = [type(run) for run in runs]
    assert kinds == sorted(kinds, key=[PageRun, ZeroRun].index)
    assert len(runs) < 20  # not one for each page
    assert sum(len(run.index) for run in runs if not isinstance(run, EncodedPage)) == 600
    assert data.at_end()


@pytest.mark.parametrize("cut", [1, 8, 13, 14, 20, 4109, 4110, 8213, 8214, 8222])
def test_pages_arrive_whole_however_the_bytes_do(cut: int) -> None:
    stream = (
        page_words(1, content(2, 5)) + encode_zero_words("mem0", index_of([3, 9])) + page_words(0, content(3), "rom")
    )
    found = pages_of(reading(stream + END, *range(cut, len(stream), 4000), cut))
    data = [("mem0", 1 + number, page.tobytes()) for number, page in enumerate(content(2, 5))]
    assert found == [*data, ("mem0", 3, None), ("mem0", 9, None), ("rom", 0, content(3)[0].tobytes())]


def test_a_section_may_continue_the_block_of_the_one_before() -> None:
    data = reading(word(1, ZERO, b"mem0") + b"\0" + END + word(2, ZERO | CONTINUE) + b"\0" + END)
    reader = RamWordReader(data, BLOCKS)
    assert pages_of(data, reader) == [("mem0", 1, None)]
    assert pages_of(data, reader) == [("mem0", 2, None)]


def test_words_without_continue_are_as_good() -> None:
    stream = b"".join(word(page, ZERO, b"mem0") + b"\0" for page in range(5)) + page_words(7, content(1))
    assert [page for _, page, _ in pages_of(reading(stream + END))] == [0, 1, 2, 3, 4, 7]


def test_barriers_of_multifd_are_passed_over() -> None:
    assert pages_of(reading(word(0, FLUSH) + word(4, ZERO, b"mem0") + b"\0" + word(0, FLUSH) + END)) == [
        ("mem0", 4, None)
    ]


def test_encoded_pages_are_decoded() -> None:
    old, new = content(1)[0].tobytes(), bytearray(content(1)[0].tobytes())
    new[100:110] = bytes(10)
    delta = encode_xbzrle(old, new)
    assert delta is not None
    packed = zlib.compress(new)
    stream = word(3, XBZRLE, b"mem0") + b"\1" + struct.pack(">H", len(delta)) + delta
    stream += word(4, COMPRESS | CONTINUE) + struct.pack(">I", len(packed)) + packed
    found = list(RamWordReader(reading(stream + END), BLOCKS).read_section())
    assert [(one.page, one.kind, one.offset_bytes) for one in found if isinstance(one, EncodedPage)] == [
        (3, Encoding.XBZRLE, 0),
        (4, Encoding.COMPRESS, len(word(3, XBZRLE, b"mem0")) + 3 + len(delta)),
    ]
    assert [one.decode(old) for one in found if isinstance(one, EncodedPage)] == [new, new]


ZERO_PAGE = word(0, ZERO, b"mem0") + b"\0"


@pytest.mark.parametrize(
    ("stream", "offset", "words"),
    [
        (word(1, ZERO | CONTINUE) + b"\0", 0, "expected the name of a block first"),
        (word(1, ZERO, b"ram"), 0, "block 'ram', expected one from the list"),
        (word(1000, ZERO, b"mem0"), 0, "page 1000 of block 'mem0', expected a page below 1000"),
        (word(2, PAGE, b"rom"), 0, "page 2 of block 'rom', expected a page below 2"),
        (ZERO_PAGE + word(1000, PAGE | CONTINUE) + bytes(4096), 14, "page 1000 of block"),
        (ZERO_PAGE + word(7, ZERO | CONTINUE) + b"\0" + word(1 << 51, ZERO | CONTINUE) + b"\0", 23, "of block 'mem0'"),
        (ZERO_PAGE + word(7, ZERO | CONTINUE) + b"\7", 22, "page 7 of block 'mem0' is filled with 0x07"),
        (word(5, ZERO, b"mem0") + b"\1", 13, "page 5 of block 'mem0' is filled with 0x01"),
        (ZERO_PAGE + word(0, HOOK), 14, "is for RDMA only"),
        (word(0, 1), 0, "is not known"),
        (word(0, 4), 0, "is not known"),
        (word(0, 0), 0, "is not known"),
        (word(0, PAGE | ZERO, b"mem0"), 0, "is not known"),
        (word(0, EOS | CONTINUE), 0, "is not known"),
        (word(1, 0x400), 0, "is not known"),
        (word(1, XBZRLE, b"mem0") + b"\2\0\1x", 13, "XBZRLE page begins with 0x2, expected 0x1"),
        (word(1, XBZRLE, b"mem0") + b"\1\x10\1", 13, "encoded page has 4097 bytes, expected 1 to 4096"),
        (word(1, XBZRLE, b"mem0") + b"\1\0\0", 13, "encoded page has 0 bytes"),
        (word(1, COMPRESS, b"mem0") + b"\0\0\x10\x0f", 13, "encoded page has 4111 bytes, expected 1 to 4110"),
        (word(1, COMPRESS, b"mem0") + b"\xff\xff\xff\xff", 13, "encoded page has 4294967295 bytes"),
    ],
)
def test_what_makes_no_sense_is_told_with_its_place(stream: bytes, offset: int, words: str) -> None:
    with pytest.raises(StreamDataError, match=words) as caught:
        pages_of(reading(stream + END))
    assert caught.value.offset_bytes == offset


@pytest.mark.parametrize("length", range(0, 4110 + 4104 + 9 + 8, 379))
def test_a_section_that_is_cut_off_is_told(length: int) -> None:
    stream = page_words(1, content(2, 2)) + encode_zero_words("mem0", index_of([3]))
    with pytest.raises(StreamTruncatedError):
        pages_of(reading(stream[:length]))


def test_pages_are_not_copied_and_cannot_be_written() -> None:
    stream = page_words(0, content(1, 20)) + END
    run = next(iter(RamWordReader(reading(stream), BLOCKS).read_section()))
    assert isinstance(run, PageRun)
    assert not run.pages.flags.writeable
    assert run.pages.__array_interface__["data"][0] == np.frombuffer(stream, np.uint8).ctypes.data + 8 + 5


def test_a_failure_of_decoding_names_the_page_s_place() -> None:
    for kind in Encoding:
        with pytest.raises(StreamError) as caught:
            EncodedPage("mem0", 1, kind, b"\xff\xff\xff", 77).decode(bytes(4096))
        assert caught.value.offset_bytes == 77
