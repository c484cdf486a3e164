# SPDX-License-Identifier: Apache-2.0
"""The memory of one block, and a private count of the writes to each page, which shows a lost page.

Page p with n writes (n > 0) holds three words that only those writes leave::

    word 0     (n << 32 | p) xor key        so that n can be read back from a stale page
    word 256   mix(word 0)
    word 511   mix(word 256)

and a page without writes reads as zero. All of it is numpy: no loop over pages.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from parmig.errors import StateError
from parmig.linux import files
from parmig.ram.blocks import PAGE_BYTES
from parmig.ram.reach.mapped import BlockMapping
from parmig.state import U64, U32Array, migration_state
from parmig.units import MIB

PageNumbers = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]
Marker = Callable[[PageNumbers | slice], None]
"""Marks pages of the block as written in the dirty log."""

_HEADER = np.array([0, 256, 511])
_CHUNK_PAGES = MIB // PAGE_BYTES
_CHECK_PAGES = 16 * MIB // PAGE_BYTES
_SHOWN_PAGES = 4


def mix(words: Words) -> Words:
    """Scramble each word, one to one (splitmix64's last step)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def mix_one(number: int) -> int:
    """:func:`mix` of one number, modulo 2**64."""
    return int(mix(np.array([number & 0xFFFF_FFFF_FFFF_FFFF], dtype=np.uint64))[0])


@migration_state("ledger")
class BlockLedger:
    """The touched pages of a block: page ``first_page + i`` had ``counts[i]`` writes.

    Args:
        mapping: the block's memory in this process; not owned.
        first_page: where the writer's range begins; pages before it belong to others.
        touched_pages: length of the writer's range.
        key: a number of 64 bits that no other block or guest uses.
        mark: the dirty log.

    Attributes:
        key: device state.
        counts: device state.
    """

    key: U64
    counts: U32Array

    def __init__(self, mapping: BlockMapping, first_page: int, touched_pages: int, key: int, mark: Marker) -> None:
        self.mapping = mapping
        self.first_page = first_page
        self.key = key
        self.counts = np.zeros(touched_pages, dtype=np.uint32)
        self._mark = mark

    def post_load(self, _: int) -> None:
        """Refuse counts that do not fit the block.

        Raises:
            StateError: there are more counts than pages.
        """
        room = self.mapping.block.pages - self.first_page
        if len(self.counts) > room:
            raise StateError(
                f"block {self.mapping.block.name!r} has counts of {len(self.counts)} pages, expected at most {room}; "
                "start the destination with the source's memory= and blocks="
            )

    def record(self, indices: PageNumbers, writes: npt.NDArray[np.int64]) -> None:
        """Write to pages ``first_page + indices`` (ascending, no two the same), *writes* times each."""
        counts = self.counts[indices] + writes.astype(np.uint32)
        self.counts[indices] = counts
        pages = indices + self.first_page
        first, middle, last = self._header(pages, counts)
        words = self.mapping.words
        words[pages, 0] = first
        words[pages, 256] = middle
        words[pages, 511] = last
        self._mark(pages)

    def fill(self, kind: str) -> None:
        """Write every touched page once with contents of *kind*, ``random`` or ``text``.

        It uses pwrite and one read per page: four times as fast as stores to pages that do not exist yet.
        """
        base = _random_base(self.key) if kind == "random" else _text_base()
        buffer = np.empty_like(base)
        for start in range(0, len(self.counts), _CHUNK_PAGES):
            count = min(_CHUNK_PAGES, len(self.counts) - start)
            # Another constant for each MiB, so that no codec with a long window finds the MiB before.
            shift = mix_one(self.key + start + 1) if kind == "random" else 0
            np.bitwise_xor(base, np.uint64(shift), out=buffer)
            pages = np.arange(start, start + count) + self.first_page
            buffer[:count, _HEADER] = np.stack(self._header(pages, np.ones(count, dtype=np.uint32)), axis=1)
            offset = self.mapping.file_offset_bytes + int(pages[0]) * PAGE_BYTES
            _write_all(self.mapping.fd, buffer[:count].data.cast("B"), offset)
        self.counts[:] = 1
        touched = slice(self.first_page, self.first_page + len(self.counts))
        self._mark(touched)
        self.mapping.words[touched, 0].any()  # maps the pages, so that the writer's first stores need no fault

    def punch(self, first_page: int, pages: int) -> None:
        """Give pages of the block back: they read as zero, and count as never written."""
        offset = self.mapping.file_offset_bytes + first_page * PAGE_BYTES
        files.punch_hole(self.mapping.fd, offset, pages * PAGE_BYTES)
        start = first_page - self.first_page
        self.counts[max(start, 0) : max(start + pages, 0)] = 0
        self._mark(slice(first_page, first_page + pages))

    def damage(self) -> str:
        """The difference between memory and counts, with the first few pages; empty: none.

        It reads only pages that exist, because reading a hole through the mapping would fill it.
        """
        expected = np.zeros(self.mapping.block.pages, dtype=np.uint32)
        expected[self.first_page : self.first_page + len(self.counts)] = self.counts
        present = self._present()
        wrong = [np.flatnonzero((expected > 0) & ~present)]
        present[: self.first_page] = False  # these belong to the ring device, which checks them
        candidates = np.flatnonzero(present)
        for start in range(0, len(candidates), _CHECK_PAGES):
            pages = candidates[start : start + _CHECK_PAGES]
            wrong.append(pages[self._differs(pages, expected[pages])])
        wrong_pages = np.sort(np.concatenate(wrong))
        if not len(wrong_pages):
            return ""
        shown = ", ".join(self._describe(int(page), int(expected[page])) for page in wrong_pages[:_SHOWN_PAGES])
        more = ", ..." if len(wrong_pages) > _SHOWN_PAGES else ""
        return (
            f"block {self.mapping.block.name!r}: {len(wrong_pages)} of {len(expected)} pages are wrong: {shown}{more}"
        )

    def _header(self, pages: PageNumbers, counts: npt.NDArray[np.uint32]) -> tuple[Words, Words, Words]:
        first = ((counts.astype(np.uint64) << np.uint64(32)) | pages.astype(np.uint64)) ^ np.uint64(self.key)
        middle = mix(first)
        return first, middle, mix(middle)

    def _present(self) -> npt.NDArray[np.bool_]:
        """Which pages exist; the others are holes."""
        present = np.zeros(self.mapping.block.pages, dtype=np.bool_)
        base = self.mapping.file_offset_bytes
        position, end = base, base + self.mapping.block.size_bytes
        while position < end:
            try:
                start = os.lseek(self.mapping.fd, position, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                break
            position = os.lseek(self.mapping.fd, start, os.SEEK_HOLE)
            present[(start - base) // PAGE_BYTES : -(-(position - base) // PAGE_BYTES)] = True
        return present

    def _differs(self, pages: PageNumbers, expected: npt.NDArray[np.uint32]) -> npt.NDArray[np.bool_]:
        wanted = np.stack(self._header(pages, expected), axis=1)
        wanted[expected == 0] = 0
        differs: npt.NDArray[np.bool_] = (self.mapping.words[pages[:, None], _HEADER] != wanted).any(axis=1)
        unwritten = np.flatnonzero(expected == 0)
        for start in range(0, len(unwritten), _CHUNK_PAGES):  # all of these pages must be zero, not only the header
            part = unwritten[start : start + _CHUNK_PAGES]
            differs[part] |= self.mapping.words[pages[part]].any(axis=1)
        return differs

    def _describe(self, page: int, expected: int) -> str:
        words = self.mapping.words[page] if self._present()[page] else np.zeros(PAGE_BYTES // 8, dtype=np.uint64)
        if not words[_HEADER].any():
            return f"page {page} lost (expected count {expected}, found 0)" if expected else f"page {page} is not zero"
        count = (int(words[0]) ^ self.key) >> 32
        numbers, counts = np.array([page]), np.array([count], dtype=np.uint32)
        whole = (np.concatenate(self._header(numbers, counts)) == words[_HEADER]).all()
        return f"page {page} {'stale' if whole else 'torn'} (expected count {expected}, found {count})"


def _random_base(seed: int) -> Words:
    words = np.random.default_rng(seed).integers(0, 1 << 64, size=MIB // 8, dtype=np.uint64)
    return words.reshape(_CHUNK_PAGES, -1)


def _text_base() -> Words:
    lines = (f"{number:08d} a synthetic guest of parmig wrote this line\n" for number in range(MIB // 32))
    return np.frombuffer("".join(lines).encode("ascii")[:MIB], dtype=np.uint64).reshape(_CHUNK_PAGES, -1)


def _write_all(fd: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written
