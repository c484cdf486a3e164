# SPDX-License-Identifier: Apache-2.0
"""What the outlets into a snapshot file share: waiting, the rate limit, and writing in pieces of a good size."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from parmig.ram.bits import Index, Runs
from parmig.ram.blocks import PAGE_BYTES, Pages
from parmig.ram.outlets.outlet import Outlet
from parmig.ram.reach.reach import Reach
from parmig.ram.shared import SharedArea
from parmig.ram.trackers.tracker import DirtyTracker
from parmig.transport.file import FileStream
from parmig.transport.transport import Buffer
from parmig.units import KIB, NS_PER_MS, NS_PER_S

PIECE_BYTES = 256 * KIB
"""Longest piece that the kernel gets in one call. On ext4 (Linux 6.18), pieces of 64 to 512 KiB reach 2.6 to 3.4 GiB/s,
pieces of 1 MiB 1.4 to 3, and pieces of 4 MiB 0.4: the kernel then allocates memory for the whole piece at once."""


class FileOutlet(Outlet):
    """Writes batches to places of a file.

    Args:
        fd: descriptor of the file, writable; used, not owned.
        name: name of the file, for errors.
        blocks: the guest's blocks, by number.
        tracker: notified of what was written.
        shared: holds the rate limit.
        wait: waits for an instruction, at most the given milliseconds (None: without limit); it raises to end the wait.
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
    ) -> None:
        self._fd = fd
        self._name = name
        self._blocks = blocks
        self._tracker = tracker
        self._shared = shared
        self._inbox_wait = wait
        self._waiting_ns = 0

    @property
    def waiting_ns(self) -> int:
        return self._waiting_ns

    def fence(self, round_: int) -> None:
        """Nothing to do: what was written is in the file."""

    def idle(self) -> None:
        """Wait until there may be an instruction."""
        self._wait(None)

    def _take_turn(self, size_bytes: int) -> None:
        """Wait until the rate limit allows *size_bytes* more."""
        self._inbox_wait(0)
        instant_ns = self._shared.reserve(size_bytes)
        while (left_ns := instant_ns - time.monotonic_ns()) > 0:
            if left_ns >= NS_PER_MS:
                self._wait(left_ns // NS_PER_MS)
            else:
                time.sleep(left_ns / NS_PER_S)

    def _wait(self, timeout_ms: int | None) -> None:
        began = time.monotonic_ns()
        self._inbox_wait(timeout_ms)
        self._waiting_ns += time.monotonic_ns() - began

    def _frames(self, block: int, index: Index, runs: Runs) -> list[memoryview]:
        """The pages *index* in one piece for each of *runs*: where they are, or copied."""
        views = None if self._tracker.needs_copy else self._blocks[block].views(runs)
        if views is not None:
            return views
        raw = memoryview(self._copies(block, index).data).cast("B")
        ends = np.cumsum(runs[:, 1] - runs[:, 0]) * PAGE_BYTES
        return [raw[begin:end] for begin, end in zip([0, *ends.tolist()], ends.tolist(), strict=False)]

    def _copies(self, block: int, index: Index) -> Pages:
        """Copies of the pages *index*. The tracker gets the very bytes that are written."""
        copies: Pages = np.empty((len(index), PAGE_BYTES), dtype=np.uint8)
        self._blocks[block].read(index, copies)
        self._tracker.sent(block, index, copies)
        return copies

    def _write(self, offset_bytes: int, frames: Sequence[Buffer]) -> None:
        """Write *frames* one after the other.

        Raises:
            SnapshotError: the file system is full or failed.
        """
        pieces: list[Buffer] = []
        for frame in frames:
            view = memoryview(frame)
            pieces += [view[at : at + PIECE_BYTES] for at in range(0, view.nbytes, PIECE_BYTES)]
        FileStream(self._fd, self._name, offset_bytes=offset_bytes).write(pieces)
