# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import struct
import tracemalloc
import zlib
from pathlib import Path

import pytest

from parmig.inspection import inspect_file
from parmig.inspection import memory_reader as memory
from parmig.inspection.inspection_report import BlockInspection
from parmig.stream.flags import (
    MIGRATION_RAM_SAVE_FLAG_COMPRESS_PAGE,
    MIGRATION_RAM_SAVE_FLAG_CONTINUE,
    MIGRATION_RAM_SAVE_FLAG_XBZRLE,
)
from parmig.stream.ram_encode import encode_zero_words, part_section
from tests.inspection.files import described, mapped_file, piped, stream
from tests.stream.streams import RAM
from tests.support import index_of

MIB = 1 << 20


def counts(block: BlockInspection) -> tuple[int | None, ...]:
    return (block.pages_normal, block.pages_zero, block.pages_xbzrle, block.pages_compressed, block.pages_distinct)


def test_every_page_is_counted_each_time_but_once_among_distinct_ones(tmp_path: Path) -> None:
    def word(page: int, flag: int) -> bytes:
        return (page << 12 | flag | MIGRATION_RAM_SAVE_FLAG_CONTINUE).to_bytes(8, "big")

    packed = zlib.compress(bytes(4096))
    xbzrle = word(3, MIGRATION_RAM_SAVE_FLAG_XBZRLE) + b"\1\0\4\0\2ab"
    compressed = word(9, MIGRATION_RAM_SAVE_FLAG_COMPRESS_PAGE) + struct.pack(">I", len(packed)) + packed
    zeros = encode_zero_words("mem0", index_of([3, 4, 5]))
    found = described(tmp_path, stream(zeros, xbzrle, xbzrle, compressed, zeros))
    assert found.complete
    assert counts(found.blocks[0]) == (0, 6, 2, 1, 4)


def test_of_more_memory_than_can_be_marked_repeated_pages_are_not_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "MOST_MARKED_PAGES", 63)
    found = described(tmp_path, stream(encode_zero_words("mem0", index_of([1, 2]))))
    assert counts(found.blocks[0]) == (0, 2, 0, 0, None)
    assert any("contains twice" in note for note in found.notes)


def test_a_map_of_pages_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "mapped"
    mapped_file(path, {"ram": 70 * 4096, "rom": 4096}, {"ram": [0, 8, 63, 64, 69]})
    found = inspect_file(str(path))
    assert (found.complete, found.format, found.error) == (True, "mapped-ram", None)
    assert [counts(block) for block in found.blocks] == [(5, 65, 0, 0, 70), (0, 1, 0, 0, 1)]
    assert all(block.pages_offset_bytes % MIB == 0 for block in found.blocks)
    assert any(note.startswith("sparse: ") for note in found.notes)


def test_a_map_with_pages_that_the_block_does_not_have_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "mapped"
    mapped_file(path, {"ram": 70 * 4096}, {"ram": [70]})
    found = inspect_file(str(path))
    assert not found.complete
    assert found.error.type == "StreamDataError"


def test_a_mapped_file_that_is_cut_off_tells_the_blocks_up_to_there(tmp_path: Path) -> None:
    path = tmp_path / "mapped"
    mapped_file(path, {"ram": 4 * MIB, "vga": 4 * MIB, "rom": 4096}, {"ram": [1, 2], "vga": [3]})
    os.truncate(path, 7 * MIB)
    found = inspect_file(str(path))
    assert found.error.type == "StreamTruncatedError"
    assert [(block.name, block.pages_normal) for block in found.blocks] == [("ram", 2), ("vga", 1)]


def test_pages_among_the_sections_of_a_mapped_file_are_damage(tmp_path: Path) -> None:
    path = tmp_path / "mapped"
    mapped_file(path, {"ram": 70 * 4096}, {"ram": [1]})
    before, end, after = path.read_bytes().rpartition(b"\3" + RAM.to_bytes(4, "big"))
    words = part_section(RAM, [encode_zero_words("ram", index_of([1]))])
    found = described(tmp_path, b"".join([before, *words, end, after]))
    assert found.error.type == "StreamDataError"
    assert "expected none in mapped-ram" in found.error.message


def test_of_a_pipe_maps_are_not_counted_and_that_is_said(tmp_path: Path) -> None:
    path = tmp_path / "mapped"
    mapped_file(path, {"ram": 70 * 4096}, {"ram": [1]})
    with piped(path.read_bytes()) as pipe:
        found = inspect_file(pipe)
    assert found.complete
    assert counts(found.blocks[0])[:2] == (None, None)
    assert any("only be looked at in a file" in note for note in found.notes)


def test_a_file_of_a_tebibyte_is_told_within_little_memory(tmp_path: Path) -> None:
    path = Path(f"/dev/shm/inspect-{os.getpid()}")
    try:
        mapped_file(path, {"ram": 1 << 40}, {})
        tracemalloc.start()
        found = inspect_file(str(path))
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        path.unlink()
    assert (found.complete, found.blocks[0].pages_zero) == (True, 1 << 28)
    assert peak_bytes < 16 * MIB
