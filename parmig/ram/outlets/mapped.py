# SPDX-License-Identifier: Apache-2.0
"""Writes pages to fixed places of a file: QEMU's mapped-ram layout, which many processes can write at once.

The page space of the file is an image of the block, in which zero pages are holes. ``SharedArea.bits`` records which
pages are stored. Bit for bit it is the bitmap of the format, which is written when the file is finished.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence

from parmig.errors import SnapshotError
from parmig.linux import files
from parmig.ram.bits import Index, Runs, runs_of_index
from parmig.ram.blocks import PAGE_BYTES
from parmig.ram.outlets.file_outlet import FileOutlet
from parmig.ram.reach.reach import Reach
from parmig.ram.shared import SharedArea
from parmig.ram.trackers.tracker import DirtyTracker


class MappedRamOutlet(FileOutlet):
    """Writes each page to its own place.

    Args:
        pages_offsets_bytes: where page 0 of each block is in the file.
    """

    knows_nothing = False  # the file is new: what was never written there reads as zero

    def __init__(
        self,
        fd: int,
        name: str,
        blocks: Sequence[Reach],
        tracker: DirtyTracker,
        shared: SharedArea,
        *,
        wait: Callable[[int | None], None],
        pages_offsets_bytes: Sequence[int],
    ) -> None:
        super().__init__(fd, name, blocks, tracker, shared, wait=wait)
        self._pages_offsets_bytes = pages_offsets_bytes

    def emit(self, block: int, round_: int, data: Index, zero: Runs) -> int:
        size_bytes = len(data) * PAGE_BYTES
        self._take_turn(size_bytes)
        base = self._pages_offsets_bytes[block]
        runs = runs_of_index(data)
        for (first, _), frame in zip(
            runs.tolist(), self._frames(block, data, runs), strict=True
        ):  # one write for each run
            self._write(base + first * PAGE_BYTES, [frame])
        for first, end in zero.tolist():
            self._clear(base + first * PAGE_BYTES, (end - first) * PAGE_BYTES)
        return size_bytes

    def _clear(self, offset_bytes: int, size_bytes: int) -> None:
        """Make bytes zero that were written before. They become a hole if the file system has holes."""
        try:
            files.punch_hole(self._fd, offset_bytes, size_bytes)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise SnapshotError(
                    f"{self._name}: cannot clear {size_bytes} bytes at byte {offset_bytes} of the file: "
                    f"{error.strerror}"
                ) from error
            self._write(offset_bytes, [bytes(size_bytes)])
