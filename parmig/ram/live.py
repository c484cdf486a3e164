# SPDX-License-Identifier: Apache-2.0
"""RAM as a component of a :class:`~parmig.state.state_registry.StateRegistry`: in one stream with the devices.

This is one process and one stream, for a monitor that saves itself. The workers' page path, with its many channels,
is :mod:`parmig.ram.send` and :mod:`parmig.ram.receive`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import numpy as np

from parmig.errors import MemoryFullError, StateError
from parmig.ram.bits import Index
from parmig.ram.blocks import PAGE_BYTES, BlockMapping, Pages
from parmig.ram.extents import allocated_mask
from parmig.ram.zero import zero_mask
from parmig.state import LiveHandlers, LiveState
from parmig.stream.data_file import MigrationDataFile
from parmig.stream.flags import MIGRATION_RAM_SAVE_FLAG_EOS
from parmig.stream.ram_blocks import RAM_IDSTR, RAM_VERSION, BlockEntry, read_setup, write_block_list
from parmig.stream.ram_encode import encode_page_words, encode_zero_words, page_words_bytes
from parmig.stream.ram_words import EncodedPage, PageRun, RamWordReader, ZeroRun
from parmig.stream.sections import SectionKind

PART_PAGES = 4096
"""Pages in one PART: 16 MiB, so that a reader of the stream is never far from the next section."""
_PIECE_PAGES = 512  # 2 MiB are copied at once: they fit into the cache

DirtyPages = Callable[[BlockMapping], Index]
"""The pages of a block, ascending, that were written since it was asked before."""


def ram_state(blocks: Sequence[BlockMapping], dirty: DirtyPages | None = None) -> LiveState:
    """RAM, to be registered beside the devices; named and numbered as in QEMU's streams.

    Args:
        blocks: all blocks; not owned, mapped until saving or loading has ended.
        dirty: what was written while the guest runs, recorded since before the saving began; None: the guest is
            paused all the time.
    """
    return LiveState(RAM_IDSTR, RamHandlers(blocks, dirty), version=RAM_VERSION, minimum_version=RAM_VERSION)


class RamHandlers(LiveHandlers):
    """All blocks, once, then what was written since; zero pages as their numbers. See :func:`ram_state`."""

    def __init__(self, blocks: Sequence[BlockMapping], dirty: DirtyPages | None = None) -> None:
        self._blocks = {mapping.block.name: mapping for mapping in blocks}
        self._dirty = dirty
        self._left: list[tuple[BlockMapping, Index]] = []
        self._words: RamWordReader | None = None

    # -- saving ---------------------------------------------------------------------------------

    def save_setup(self, data: MigrationDataFile) -> None:
        """Write the list of blocks; all their pages are to follow."""
        blocks = self._blocks.values()
        write_block_list(data, [BlockEntry(mapping.block.name, mapping.block.size_bytes) for mapping in blocks])
        data.put_be64(MIGRATION_RAM_SAVE_FLAG_EOS)
        self._left = [(mapping, np.arange(mapping.block.pages)) for mapping in blocks]

    def save_iterate(self, data: MigrationDataFile) -> bool:
        """Write 16 MiB of pages; those that were written meanwhile, once all have been sent."""
        if not self._left:
            self._add_dirty()
        self._write(data, PART_PAGES)
        return not self._left

    def save_complete(self, data: MigrationDataFile) -> None:
        """Write all that is left."""
        self._add_dirty()
        self._write(data, None)

    def _add_dirty(self) -> None:
        if self._dirty is not None:
            found = [(mapping, self._dirty(mapping)) for mapping in self._blocks.values()]
            self._left += [(mapping, index) for mapping, index in found if len(index)]

    def _write(self, data: MigrationDataFile, most_pages: int | None) -> None:
        written = 0
        while self._left and (most_pages is None or written < most_pages):
            mapping, index = self._left.pop(0)
            if len(index) > _PIECE_PAGES:
                self._left.insert(0, (mapping, index[_PIECE_PAGES:]))
            self._write_piece(data, mapping, index[:_PIECE_PAGES])
            written += _PIECE_PAGES
        data.put_be64(MIGRATION_RAM_SAVE_FLAG_EOS)

    def _write_piece(self, data: MigrationDataFile, mapping: BlockMapping, index: Index) -> None:
        name = mapping.block.name
        full = index[_existing(mapping, index)]  # reading the others would allocate them
        full = full[~zero_mask(mapping.words, full)]
        zero = np.setdiff1d(index, full, assume_unique=True)
        if len(zero):
            data.put_buffer(encode_zero_words(name, zero))
        if len(full):
            piece = bytearray(page_words_bytes(name, len(full)))
            data.put_buffer(encode_page_words(piece, name, full, mapping.pages[full]))
        data.flush_data()

    # -- loading --------------------------------------------------------------------------------

    def load_setup(self) -> None:
        """Forget an earlier stream."""
        self._words = None

    def load(self, data: MigrationDataFile, kind: SectionKind, version: int) -> None:
        """Place the pages of a section.

        Raises:
            StateError: the blocks are others.
            StreamError: the section is damaged.
            MemoryFullError: no space left in a memory file.
        """
        if self._words is None:
            found = read_setup(data)
            here = {name: mapping.block.size_bytes for name, mapping in self._blocks.items()}
            if {entry.name: entry.size_bytes for entry in found} != here:
                there = ", ".join(f"{entry.name} ({entry.size_bytes} bytes)" for entry in found)
                expected = ", ".join(f"{name} ({size_bytes} bytes)" for name, size_bytes in here.items())
                raise StateError(
                    f"the stream has blocks {there}, expected {expected}; give the guest the memory it was saved with"
                )
            self._words = RamWordReader(data, found)
        for run in self._words.read_section():
            self._place(run)

    def _place(self, run: PageRun | ZeroRun | EncodedPage) -> None:
        mapping = self._blocks[run.block]
        if isinstance(run, PageRun):
            _store(mapping, run.index, run.pages)
        elif isinstance(run, ZeroRun):
            mapping.pages[run.index[_existing(mapping, run.index)]] = 0
        else:
            decoded = run.decode(mapping.pages[run.page].tobytes())
            _store(mapping, np.array([run.page]), np.frombuffer(decoded, dtype=np.uint8).reshape(1, PAGE_BYTES))


def _existing(mapping: BlockMapping, index: Index) -> Index:
    """Which entries of *index* are pages that the memory file has."""
    first, last = int(index.min()), int(index.max())
    return np.flatnonzero(allocated_mask(mapping, first, last - first + 1)[index - first])


def _store(mapping: BlockMapping, index: Index, pages: Pages) -> None:
    """Store through the mapping, where that can be done: without space it would be a SIGBUS."""
    free = os.fstatvfs(mapping.fd)
    if free.f_blocks and free.f_bavail * free.f_frsize < pages.nbytes:
        raise MemoryFullError(
            f"the memory file of block {mapping.block.name!r} has no space left, expected room for "
            f"{mapping.block.size_bytes} bytes; free space on its file system"
        )
    mapping.pages[index] = pages
