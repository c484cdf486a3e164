# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import struct

import pytest

from parmig.stream.ram_encode import (
    PART_OVERHEAD_BYTES,
    encode_page_words,
    encode_zero_words,
    page_words_bytes,
    part_section,
)
from tests.support import content, index_of


@pytest.mark.parametrize("pages", [1, 2, 5])
def test_the_first_word_names_the_block_and_the_others_continue(pages: int) -> None:
    out = bytearray(b"\xee" * (page_words_bytes("rämle", pages) + 3))
    index = index_of(range(7, 7 + 2 * pages, 2))
    found = encode_page_words(out, "rämle", index, content(1, pages))
    expected = struct.pack(">Q", 7 << 12 | 8) + b"\6" + "rämle".encode() + content(1, pages)[0].tobytes()
    for page, bytes_of_page in zip(index[1:].tolist(), content(1, pages)[1:], strict=True):
        expected += struct.pack(">Q", page << 12 | 0x28) + bytes_of_page.tobytes()
    assert found == expected
    assert out == expected + b"\xee" * 3


def test_zero_pages_take_nine_bytes_each() -> None:
    expected = struct.pack(">QB4sB", 3 << 12 | 2, 4, b"mem0", 0) + struct.pack(">QB", 1 << 52 | 0x22, 0)
    assert encode_zero_words("mem0", index_of([3, 1 << 40])) == expected


def test_a_target_that_is_too_small_is_not_written() -> None:
    out = bytearray(page_words_bytes("mem0", 2) - 1)
    with pytest.raises(ValueError):
        encode_page_words(out, "mem0", index_of([1, 2]), content(1, 2))
    assert not any(out)


def test_a_part_section_is_complete_and_of_known_length() -> None:
    pieces = [b"words", b"more"]
    section = b"".join(part_section(2, pieces))
    assert section == b"\2\0\0\0\2" + b"wordsmore" + (0x10).to_bytes(8, "big") + b"\x7e\0\0\0\2"
    assert len(section) == 9 + PART_OVERHEAD_BYTES
