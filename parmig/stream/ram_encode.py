# SPDX-License-Identifier: Apache-2.0
"""Encodes words of RAM as pieces of known length, so that a worker needs no stream of its own.

Each piece begins with a word that names its block, so pieces may follow each other in any order.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from parmig.stream.flags import (
    MIGRATION_RAM_SAVE_FLAG_CONTINUE,
    MIGRATION_RAM_SAVE_FLAG_EOS,
    MIGRATION_RAM_SAVE_FLAG_PAGE,
    MIGRATION_RAM_SAVE_FLAG_ZERO,
    MIGRATION_VM_SECTION_FOOTER,
    MIGRATION_VM_SECTION_PART,
    TARGET_PAGE_BITS,
    TARGET_PAGE_BYTES,
)
from parmig.transport.transport import Buffer

Index = npt.NDArray[np.int64]
Pages = npt.NDArray[np.uint8]

_WORD = struct.Struct(">Q")
WORD_BYTES = _WORD.size
PAGE_STEP_BYTES = WORD_BYTES + TARGET_PAGE_BYTES
"""From one PAGE|CONTINUE word to the next."""
ZERO_STEP_BYTES = WORD_BYTES + 1
"""From one ZERO|CONTINUE word to the next."""
PAGE_NEXT = MIGRATION_RAM_SAVE_FLAG_PAGE | MIGRATION_RAM_SAVE_FLAG_CONTINUE
ZERO_NEXT = MIGRATION_RAM_SAVE_FLAG_ZERO | MIGRATION_RAM_SAVE_FLAG_CONTINUE


def _first_word(flags: int, block: str, page: int) -> bytes:
    name = block.encode()
    return _WORD.pack(page << TARGET_PAGE_BITS | flags) + bytes((len(name),)) + name


def page_words_bytes(block: str, pages: int) -> int:
    """Bytes of the words of *pages* pages, one or more, with the pages themselves."""
    return 1 + len(block.encode()) + pages * PAGE_STEP_BYTES


def encode_page_words(out: bytearray | memoryview, block: str, index: Index, pages: Pages) -> memoryview:
    """Words and pages, in one piece: the first word names the block, the others continue.

    Args:
        out: written from its start; at least ``page_words_bytes`` long.
        index: the pages' numbers, one or more, in any order.
        pages: their bytes, shape (n, 4096).

    Returns:
        The part of *out* that was written.
    """
    size_bytes = page_words_bytes(block, len(index))
    target = np.frombuffer(out, dtype=np.uint8, count=size_bytes)
    head = _first_word(MIGRATION_RAM_SAVE_FLAG_PAGE, block, int(index[0]))
    rest_at = len(head) + TARGET_PAGE_BYTES
    target[: len(head)] = np.frombuffer(head, dtype=np.uint8)
    target[len(head) : rest_at] = pages[0]
    rest = target[rest_at:].reshape(-1, PAGE_STEP_BYTES)
    rest[:, :WORD_BYTES] = _words(index[1:], PAGE_NEXT)
    rest[:, WORD_BYTES:] = pages[1:]
    return memoryview(out)[:size_bytes]


def encode_zero_words(block: str, index: Index) -> bytes:
    """The words of zero pages, one or more: the first names the block, the others continue."""
    rest = np.zeros((len(index) - 1, ZERO_STEP_BYTES), dtype=np.uint8)
    rest[:, :WORD_BYTES] = _words(index[1:], ZERO_NEXT)
    return _first_word(MIGRATION_RAM_SAVE_FLAG_ZERO, block, int(index[0])) + b"\0" + rest.tobytes()


def _words(index: Index, flags: int) -> npt.NDArray[np.uint8]:
    """Words of all of *index*, shape (n, 8)."""
    words = (index << TARGET_PAGE_BITS | flags).astype(">u8")
    return words.view(np.uint8).reshape(-1, WORD_BYTES)


_PART_HEAD = struct.Struct(">BI")  # type u8, section u32
_PART_TAIL = struct.Struct(">QBI")  # EOS u64, footer u8, section u32
PART_OVERHEAD_BYTES = _PART_HEAD.size + _PART_TAIL.size
"""Bytes of a PART section of RAM besides its words."""


def part_section(section_id: int, pieces: Sequence[Buffer]) -> list[Buffer]:
    """A whole PART section of RAM around *pieces*, each of which starts with a word that names its block.

    It is PART_OVERHEAD_BYTES longer than the pieces, and may be anywhere between RAM's START and END.
    """
    head = _PART_HEAD.pack(MIGRATION_VM_SECTION_PART, section_id)
    tail = _PART_TAIL.pack(MIGRATION_RAM_SAVE_FLAG_EOS, MIGRATION_VM_SECTION_FOOTER, section_id)
    return [head, *pieces, tail]
