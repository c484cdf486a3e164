# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from parmig.stream.mapped_ram import MappedRamHeader, bitmap_bytes, layout

MIB = 1 << 20


@pytest.mark.parametrize(
    ("size", "expected"), [(0, 0), (1, 8), (64 * 4096, 8), (64 * 4096 + 1, 16), (1 << 30, (1 << 30) // 4096 // 8)]
)
def test_a_bitmap_is_whole_words(size: int, expected: int) -> None:
    assert bitmap_bytes(size) == expected


@pytest.mark.parametrize(
    ("at", "size", "bitmap", "pages"),
    [
        (114, 32 * MIB, 142, MIB),  # as QEMU 10.0 laid out a guest of 32 MiB
        (34603037, 128 << 10, 34603065, 35651584),
        (MIB - 28 - 8, 4096, MIB - 8, MIB),
        (MIB - 27 - 8, 4096, MIB - 7, 2 * MIB),
    ],
)
def test_the_layout_is_qemu_s(at: int, size: int, bitmap: int, pages: int) -> None:
    assert layout(at, size) == MappedRamHeader(1, 4096, bitmap, pages)


def test_a_header_has_28_bytes_and_is_read_as_it_was_written() -> None:
    header = layout(1000, MIB)
    assert len(header.encode()) == 28
    assert MappedRamHeader.decode(header.encode()) == header
