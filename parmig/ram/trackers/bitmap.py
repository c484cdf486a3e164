# SPDX-License-Identifier: Apache-2.0
"""A dirty bitmap in shared memory that the monitor itself maintains.

It has one bit for each 4 KiB page, in little-endian 64-bit words (the vhost-user log layout). Blocks follow one
another, and each begins on a word. The monitor adds to it only inside ``Guest.sync_dirty_log()``, while no worker
scans. Reading and clearing a slice therefore needs no atomic operations and loses nothing.

If the log behind the bitmap is re-armed slice by slice, this happens before the pages of the slice are read.

The monitor must also mark pages that it discards (balloon), because a bitmap does not show holes.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence

import numpy as np

from parmig.errors import GuestRefusedError
from parmig.ram.bits import Bits, bits_for, mask_of_bits
from parmig.ram.blocks import RamBlock
from parmig.ram.rearm import RearmClient
from parmig.ram.regions import Region
from parmig.ram.trackers.tracker import DirtyTracker, Scan


class BitmapTracker(DirtyTracker):
    """Reads and clears slices of the shared bitmap.

    Args:
        fd: descriptor of the bitmap; used, not owned.
        blocks: in the order in which the bitmap has them.
        rearm: from the dirty log.

    Raises:
        GuestRefusedError: the bitmap is shorter than the blocks need.
        GuestError: the owner of the log is gone.
    """

    name = "bitmap"

    def __init__(self, fd: int, blocks: Sequence[RamBlock], rearm: str = "") -> None:
        sizes = [bits_for(block.pages) for block in blocks]
        try:
            self._map = mmap.mmap(fd, sum(sizes))
        except ValueError as error:
            raise GuestRefusedError(
                f"the dirty bitmap cannot be mapped, expected {sum(sizes)} bytes: {error}"
            ) from error
        self._owner = RearmClient(rearm) if rearm else None
        whole = np.frombuffer(self._map, dtype=np.uint8)
        ends = np.cumsum(sizes)
        self._bits: list[Bits] = [whole[end - size : end] for size, end in zip(sizes, ends, strict=True)]

    def _slice(self, span: Region) -> Bits:
        return self._bits[span.block][span.first_page // 8 : (span.end_page + 7) // 8]

    def arm(self, span: Region) -> None:
        if self._owner is not None:
            self._owner.rearm(span, everything=True)
        self._slice(span)[:] = 0

    def scan(self, span: Region, *, holes: bool = True) -> Scan | None:
        part = self._slice(span)
        if not part.any():
            return None
        if self._owner is not None:
            self._owner.rearm(span, everything=False)
        dirty = mask_of_bits(part, 0, span.pages)
        part[:] = 0
        return Scan(dirty, dirty)  # what was written may have been discarded since

    def count(self, span: Region) -> int:
        return int(np.bitwise_count(self._slice(span)).sum())

    def close(self) -> None:
        if self._owner is not None:
            self._owner.close()
        self._bits.clear()
        self._map.close()
