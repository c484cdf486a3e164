# SPDX-License-Identifier: Apache-2.0
"""Copies of pages as they were last sent, in bounded memory. Pure."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from parmig.ram.bits import Index, Mask
from parmig.ram.blocks import PAGE_BYTES, Pages

LIFETIME_ROUNDS = 2
"""A page keeps its slot for this many rounds after it was last sent. If more pages are written in each round than there
are slots, the first ones keep theirs: a cache that always took the newest page would have evicted each page just before
it comes again."""

_BLOCK_BITS = 40
"""Page numbers of a block have at most this many bits (see ``ram.packets``)."""

_NOBODY = -1
_NEVER = -LIFETIME_ROUNDS

SLOT_BYTES = PAGE_BYTES + 12
"""Memory of a slot: the page, its number and its round."""


class SentPages:
    """The pages that a channel has sent and that the destination still holds as they were sent.

    Each page has one slot that it may use; pages of a stretch of memory have different ones. Round 1 sends every page
    once, so its pages only fill free slots, and give way to any page of a later round.

    Args:
        size_bytes: limit of the memory. It is taken as pages come.
    """

    def __init__(self, size_bytes: int) -> None:
        self._slots = max(1, size_bytes // SLOT_BYTES)
        self._pages: Pages = np.empty((self._slots, PAGE_BYTES), dtype=np.uint8)
        self._owners: npt.NDArray[np.int64] = np.full(self._slots, _NOBODY, dtype=np.int64)
        self._used: npt.NDArray[np.int32] = np.full(self._slots, _NEVER, dtype=np.int32)
        self._empty = True

    def _place(self, block: int, index: Index) -> tuple[Index, Index]:
        """The name of each page, and its slot."""
        names: Index = index + (block << _BLOCK_BITS)
        return names, names % self._slots

    def known(self, block: int, index: Index) -> Mask:
        """Which of the pages *index* are here."""
        if self._empty:
            return np.zeros(len(index), dtype=np.bool_)
        names, slots = self._place(block, index)
        known: Mask = self._owners[slots] == names
        return known

    def read(self, block: int, index: Index) -> Pages:
        """Copies of the pages *index*, all of which are known."""
        return self._pages[self._place(block, index)[1]]

    def remember(self, block: int, round_: int, index: Index, pages: Pages) -> None:
        """Keep *pages*, which were sent for the pages *index* (ascending) in *round_*, where there is room."""
        names, slots = self._place(block, index)
        keep = (self._owners[slots] == names) | (self._used[slots] + LIFETIME_ROUNDS <= round_)
        places = np.flatnonzero(keep)
        if len(index) and int(index[-1]) - int(index[0]) >= self._slots:  # two of them may have the same slot
            places = places[np.unique(slots[places], return_index=True)[1]]
        slots, names = slots[places], names[places]
        self._empty = False
        self._pages[slots] = pages[places]
        self._owners[slots] = names
        self._used[slots] = round_ if round_ > 1 else 0

    def forget(self, block: int, index: Index) -> None:
        """Drop the pages *index* where they are known."""
        if self._empty:
            return
        names, slots = self._place(block, index)
        mine = slots[self._owners[slots] == names]
        self._owners[mine] = _NOBODY
        self._used[mine] = _NEVER
