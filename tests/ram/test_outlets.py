# SPDX-License-Identifier: Apache-2.0
"""Whatever was dirty when: the file ends with the pages as they are, in either format."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parmig.errors import SnapshotError
from parmig.ram.bits import bits_for, mask_of_bits, set_bits
from parmig.ram.blocks import PAGE_BYTES
from parmig.ram.outlets.file_outlet import PIECE_BYTES, FileOutlet
from parmig.ram.outlets.mapped import MappedRamOutlet
from parmig.ram.outlets.stream import StreamOutlet
from parmig.ram.place_stream import StreamPlacer
from parmig.ram.reach.mapped import BlockMapping
from parmig.ram.regions import cut
from parmig.ram.send import MigrationRamSend
from parmig.ram.shared import SharedArea
from parmig.ram.trackers.bitmap import BitmapTracker
from parmig.stream.data_file import MigrationDataFile
from parmig.stream.ram_blocks import BlockEntry
from parmig.stream.ram_words import RamWordReader
from parmig.transport.file import FileStream
from parmig.units import KIB, MIB
from tests.support import allocated_pages, content, file_pages, index_of, mapped, pages_below, shared_area

PAGES = (300, 130)
BATCH_BYTES = 256 * KIB
OFFSETS = (MIB, 4 * MIB)
SECTION = 7


class Saved:
    """Two blocks, a bitmap log, a file, and one worker's loop without the worker."""

    def __init__(self, kind: str, mappings: list[BlockMapping], shared: SharedArea) -> None:
        blocks = [one.block for one in mappings]
        self.kind, self.mappings, self.shared = kind, mappings, shared
        self.file = os.memfd_create("snapshot", os.MFD_CLOEXEC)
        self._log_fd = os.memfd_create("log", os.MFD_CLOEXEC)
        os.ftruncate(self._log_fd, sum(bits_for(block.pages) for block in blocks))
        self._log = mmap.mmap(self._log_fd, 0)
        self.tracker = BitmapTracker(self._log_fd, blocks)
        self.waits: list[int | None] = []
        self.regions = cut(blocks, 64)
        self.ram = MigrationRamSend(
            worker=0,
            regions=self.regions,
            blocks=mappings,
            tracker=self.tracker,
            outlet=self._outlet(),
            shared=shared,
            batch_bytes=BATCH_BYTES,
        )

    def _outlet(self) -> FileOutlet:
        common = (self.file, "file", self.mappings, self.tracker, self.shared)
        if self.kind == "mapped":
            return MappedRamOutlet(*common, wait=self.waits.append, pages_offsets_bytes=OFFSETS)
        return StreamOutlet(*common, wait=self.waits.append, section_id=SECTION)

    def write(self, block: int, pages: set[int], tag: int) -> None:
        """The guest writes these pages: zeros if *tag* is 0."""
        if not pages:
            return
        index = index_of(pages)
        self.mappings[block].pages[index] = content(tag, len(pages)) if tag else 0
        at = sum(bits_for(one.block.pages) for one in self.mappings[:block])
        bits = np.frombuffer(self._log, dtype=np.uint8)[at : at + bits_for(self.mappings[block].block.pages)]
        set_bits(bits, index)

    def round(self, number: int) -> None:
        self.ram.migrate_ram_iterate(number, range(len(self.regions)), first_pass=number == 1)
        self.ram.fence(number)

    def image(self, block: int) -> np.ndarray:
        """What the file says the block is."""
        if self.kind == "mapped":
            size_bytes = PAGES[block] * PAGE_BYTES
            raw = os.pread(self.file, size_bytes, OFFSETS[block]).ljust(size_bytes, b"\0")
            return np.frombuffer(raw, np.uint8).reshape(-1, PAGE_BYTES)
        with mapped(*PAGES) as copies, shared_area(copies, []) as area:
            for copy in copies:  # the copy need not be empty
                copy.pages[:] = 0xAA
            for bits in area.bits:
                bits[:] = 0xFF
            placer = StreamPlacer(copies, area)
            data = MigrationDataFile(FileStream(self.file, "file"), "file")
            words = RamWordReader(data, [BlockEntry(one.block.name, one.block.size_bytes) for one in copies])
            while not data.at_end():
                assert (data.get_byte(), data.get_be32()) == (2, SECTION)
                for run in words.read_section():
                    placer.place(run)
                assert (data.get_byte(), data.get_be32()) == (0x7E, SECTION)
            return file_pages(copies[block])

    def close(self) -> None:
        del self.ram
        self.tracker.close()
        self._log.close()
        os.close(self._log_fd)
        os.close(self.file)


@contextmanager
def saving(kind: str) -> Iterator[Saved]:
    with mapped(*PAGES) as mappings, shared_area(mappings, cut([one.block for one in mappings], 64)) as shared:
        saved = Saved(kind, mappings, shared)
        try:
            yield saved
        finally:
            saved.close()


every_kind = pytest.mark.parametrize("kind", ["mapped", "stream"])
writes = st.lists(st.tuples(pages_below(PAGES[0]), pages_below(PAGES[1]), st.integers(0, 3)), max_size=3)


@every_kind
@settings(max_examples=40, deadline=None)
@given(rounds=st.lists(writes, min_size=1, max_size=4))
def test_after_any_rounds_the_file_is_the_memory(kind: str, rounds: list) -> None:
    with saving(kind) as saved:
        for number, written in enumerate(rounds, 1):
            for first, second, tag in written:
                saved.write(0, first, tag)
                saved.write(1, second, tag)
            saved.round(number)
        for block, mapping in enumerate(saved.mappings):
            memory = file_pages(mapping)
            assert (saved.image(block) == memory).all()
            stored = mask_of_bits(saved.shared.bits[block], 0, PAGES[block])
            assert (stored == memory.any(axis=1)).all()
        handled = saved.ram.counters
        assert handled.wire_bytes >= handled.sent_pages * PAGE_BYTES


def test_a_page_that_became_zero_is_a_hole_in_the_mapped_file() -> None:
    with saving("mapped") as saved:
        saved.write(0, set(range(300)), 1)
        saved.round(1)
        before = os.fstat(saved.file).st_blocks
        saved.write(0, set(range(10, 110)), 0)
        saved.round(2)
        assert before - os.fstat(saved.file).st_blocks == 100 * PAGE_BYTES // 512


@every_kind
def test_reading_memory_for_the_file_allocates_none(kind: str) -> None:
    with saving(kind) as saved:
        saved.write(0, {5, 6, 200}, 1)
        saved.round(1)
        assert [allocated_pages(one) for one in saved.mappings] == [3, 0]


@every_kind
def test_the_rate_limit_is_kept_and_instructions_are_looked_for_meanwhile(kind: str) -> None:
    with saving(kind) as saved:
        saved.shared.set_rate(20 * MIB)
        saved.write(0, set(range(256)), 1)
        saved.round(1)
        assert any(timeout for timeout in saved.waits)


@every_kind
def test_a_file_that_cannot_grow_is_told_by_its_name(kind: str) -> None:
    with saving(kind) as saved:
        os.close(saved.file)
        saved.file = os.open("/dev/full", os.O_RDWR)
        saved.ram._outlet._fd = saved.file  # type: ignore[attr-defined]
        saved.write(0, {1}, 1)
        with pytest.raises(SnapshotError, match=r"file: .*No space left"):
            saved.round(1)


def test_pieces_given_to_the_kernel_are_short() -> None:
    assert PIECE_BYTES <= 512 * KIB


def test_places_of_many_workers_do_not_overlap() -> None:
    with mapped(8) as mappings, shared_area(mappings, []) as area:
        area.begin_file(100)
        taken = [(area.take_space(size), size) for size in (5, 0, 1 << 40, 7)]
        assert taken == [(100, 5), (105, 0), (105, 1 << 40), (105 + (1 << 40), 7)]
        assert area.file_end_bytes == 112 + (1 << 40)
