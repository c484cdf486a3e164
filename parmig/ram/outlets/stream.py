# SPDX-License-Identifier: Apache-2.0
"""Writes pages to the next free place of a file, as sections of QEMU's sequential stream.

Each batch is one complete PART section of known length. Workers therefore share only the end of the file, which each
moves on before it writes (``SharedArea.take_space``). Fences separate the rounds, so the newer bytes of a page follow
the older ones in the file, and the reader keeps the newest.

Zero pages are written in the first pass too, as QEMU does, because the memory that loads the file may not be empty.
Each costs 9 bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from parmig.ram.bits import Index, Runs, index_of_runs
from parmig.ram.outlets.file_outlet import FileOutlet
from parmig.ram.reach.reach import Reach
from parmig.ram.shared import SharedArea
from parmig.ram.trackers.tracker import DirtyTracker
from parmig.stream.ram_encode import encode_page_words, encode_zero_words, page_words_bytes, part_section
from parmig.transport.transport import Buffer


class StreamOutlet(FileOutlet):
    """Writes each batch as a section of its own.

    Args:
        section_id: number of the RAM section in the stream.
    """

    def __init__(
        self,
        fd: int,
        name: str,
        blocks: Sequence[Reach],
        tracker: DirtyTracker,
        shared: SharedArea,
        *,
        wait: Callable[[int | None], None],
        section_id: int,
    ) -> None:
        super().__init__(fd, name, blocks, tracker, shared, wait=wait)
        self._section_id = section_id
        self._buffer = np.empty(0, dtype=np.uint8)

    def emit(self, block: int, round_: int, data: Index, zero: Runs) -> int:
        name = self._blocks[block].block.name
        pieces: list[Buffer] = []
        if len(zero):
            pieces.append(encode_zero_words(name, index_of_runs(zero)))
        if len(data):
            pieces.append(self._page_words(block, name, data))
        frames = part_section(self._section_id, pieces)
        size_bytes = sum(map(len, frames))
        self._take_turn(size_bytes)
        self._write(self._shared.take_space(size_bytes), frames)
        return size_bytes

    def _page_words(self, block: int, name: str, index: Index) -> memoryview:
        """The words of the pages *index*, each with its page; valid until the next call."""
        needed_bytes = page_words_bytes(name, len(index))
        if len(self._buffer) < needed_bytes:
            self._buffer = np.empty(needed_bytes, dtype=np.uint8)
        pages = self._copies(block, index) if self._tracker.needs_copy else self._blocks[block].look(index)
        return encode_page_words(self._buffer.data, name, index, pages)
