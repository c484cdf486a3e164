# SPDX-License-Identifier: Apache-2.0
"""Places the pages of QEMU's sequential stream in guest memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from parmig.ram.bits import Index, runs_of_index
from parmig.ram.blocks import Pages
from parmig.ram.place import PagePlacer
from parmig.ram.reach.reach import Reach
from parmig.ram.shared import SharedArea
from parmig.stream.ram_words import EncodedPage, PageRun, ZeroRun


class StreamPlacer:
    """Places what a :class:`~parmig.stream.ram_words.RamWordReader` yields, in its order.

    Args:
        blocks: all blocks of the stream's list.
        shared: its bits record which pages exist.
    """

    def __init__(self, blocks: Sequence[Reach], shared: SharedArea) -> None:
        self._numbers = {mapping.block.name: number for number, mapping in enumerate(blocks)}
        self._placer = PagePlacer(blocks, shared)
        self.data_pages = 0
        self.zero_pages = 0

    def place(self, run: PageRun | ZeroRun | EncodedPage) -> None:
        """Place one run.

        Raises:
            MemoryFullError: no memory is left for a page.
            StreamDataError: an encoded page that cannot be decoded.
        """
        block = self._numbers[run.block]
        if isinstance(run, ZeroRun):
            for begin, end in _ascending(run.index):
                self._placer.place_zero(block, runs_of_index(run.index[begin:end]))
            self.zero_pages += len(run.index)
            return
        if isinstance(run, PageRun):
            index, pages = run.index, run.pages
        else:
            index = np.array([run.page], dtype=np.int64)
            old = self._placer.read_page(block, run.page)
            pages = np.frombuffer(run.decode(old), dtype=np.uint8).reshape(1, -1)
        self._place_pages(block, index, pages)
        self.data_pages += len(index)

    def _place_pages(self, block: int, index: Index, pages: Pages) -> None:
        for begin, end in _ascending(index):
            raw = np.ascontiguousarray(pages[begin:end])
            self._placer.place(block, runs_of_index(index[begin:end]), memoryview(raw.data).cast("B"))
        self._placer.note_placed(block, index)


def _ascending(index: Index) -> Iterator[tuple[int, int]]:
    """The stretches of *index* that ascend. In streams of QEMU and of parmig, that is all of it."""
    breaks = (np.flatnonzero(np.diff(index) <= 0) + 1).tolist()
    yield from zip([0, *breaks], [*breaks, len(index)], strict=True)
