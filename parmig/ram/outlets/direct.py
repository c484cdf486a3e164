# SPDX-License-Identifier: Apache-2.0
"""Copies pages from one memory of this host to another: one copy, without a socket."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from parmig.ram.bits import Index, Runs, page_count, runs_of_index
from parmig.ram.blocks import PAGE_BYTES, Pages
from parmig.ram.flow import SendChannel
from parmig.ram.outlets.outlet import Outlet
from parmig.ram.place import PagePlacer
from parmig.ram.reach.reach import Reach
from parmig.ram.shared import SharedArea, WorkerCounters
from parmig.ram.trackers.tracker import DirtyTracker

MAX_LONG_RUNS = 64
"""With more runs than this, the pages are gathered and placed together: a call for each run would cost more than the
second copy. As for what a channel receives (``ram.receive``)."""


class DirectOutlet(Outlet):
    """Places each batch in the destination's memory at once. The channel beside it carries nothing but its greeting.

    Args:
        worker: its number on both sides.
        channel: to the receive worker, which answers for what was placed here.
        blocks: the guest's blocks here, by number.
        targets: the same blocks at the destination.
        tracker: notified of what was placed.
        shared: of this side; holds the rate limit.
        target_area: of the destination; its bits record which pages exist there.
        attend: looks for instructions before each batch; raises to end the work.
    """

    def __init__(
        self,
        worker: int,
        channel: SendChannel,
        blocks: Sequence[Reach],
        targets: Sequence[Reach],
        tracker: DirtyTracker,
        shared: SharedArea,
        target_area: SharedArea,
        *,
        attend: Callable[[], None],
    ) -> None:
        self._worker = worker
        self._channel = channel
        self._blocks = blocks
        self._targets = targets
        self._placer = PagePlacer(targets, target_area)
        self._tracker = tracker
        self._shared = shared
        self._target_area = target_area
        self._attend = attend
        self._codec_counters = [area.codec_counters(worker) for area in (shared, target_area)]
        self._placed = WorkerCounters()
        self._buffer: Pages = np.empty((0, PAGE_BYTES), dtype=np.uint8)
        self._fenced = False

    def emit(self, block: int, round_: int, data: Index, zero: Runs) -> int:
        self._attend()
        size_bytes = len(data) * PAGE_BYTES
        self._channel.sleep_until(self._shared.reserve(size_bytes))
        if len(zero):
            self._placer.place_zero(block, zero)
            self._placed.zero_pages += page_count(zero)
        if len(data):
            self._place(block, data)
            self._placer.note_placed(block, data)
            self._placed.sent_pages += len(data)
            self._placed.wire_bytes += size_bytes
            self._placed.huge_bytes = sum(reach.huge_bytes for reach in self._targets)
            for counters in self._codec_counters:
                counters.count(0, size_bytes, size_bytes)
        self._target_area.publish(self._worker, self._placed)
        return size_bytes

    def _place(self, block: int, index: Index) -> None:
        runs = runs_of_index(index)
        direct = not self._tracker.needs_copy and len(runs) <= MAX_LONG_RUNS
        views = self._blocks[block].views(runs) if direct else None
        if views is not None:
            for (first, _), view in zip(runs.tolist(), views, strict=True):
                self._placer.place_run(block, first, view)
            return
        if len(self._buffer) < len(index):
            self._buffer = np.empty((len(index), PAGE_BYTES), dtype=np.uint8)
        self._buffer = self._blocks[block].exchange(index, self._buffer)
        copies = self._buffer[: len(index)]
        self._tracker.sent(block, index, copies)
        self._placer.place(block, runs, memoryview(copies.data).cast("B"))

    def fence(self, round_: int) -> None:
        self._channel.fence(round_)  # nothing was sent, so it only looks whether the peer is there
        if not self._fenced:
            self._fenced = True
            self._placer.end_first_round()

    @property
    def waiting_ns(self) -> int:
        return self._channel.waiting_ns
