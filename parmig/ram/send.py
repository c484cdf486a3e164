# SPDX-License-Identifier: Apache-2.0
"""The source end of the page path: takes dirty regions, passes on batches. One instance for each worker."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from parmig.ram.ack_rate import ChannelLoad
from parmig.ram.bits import (
    NO_INDEX,
    Index,
    Runs,
    ascending,
    clear_bits,
    clear_runs,
    index_of_runs,
    join_runs,
    page_count,
    portions,
    run_count,
    runs_of_index,
    set_bits,
    test_bits,
)
from parmig.ram.blocks import EXTENT_PAGES, PAGE_BYTES
from parmig.ram.credit import LONG_BATCH_RUNS
from parmig.ram.dirty_scanner import DirtyCount, DirtyRegion, DirtyScanner
from parmig.ram.outlets.outlet import Outlet
from parmig.ram.packets import MAX_RUNS, MAX_ZERO_PAGES
from parmig.ram.reach.reach import Reach
from parmig.ram.reach.tables import TableBudget, tables_of_worker
from parmig.ram.regions import Regions
from parmig.ram.shared import SharedArea
from parmig.ram.trackers.tracker import DirtyTracker


def pages_of_batch(pending: Index, batch_pages: int) -> int:
    """How many of the *pending* pages make the next batch: as many as it may have, or fewer, up to a huge page's end.

    So all pages of a huge page arrive together, and the destination can provide it for them.
    """
    if len(pending) < batch_pages:
        return len(pending)
    border = (int(pending[batch_pages - 1]) + 1) // EXTENT_PAGES * EXTENT_PAGES
    pages = int(np.searchsorted(pending, border))
    return pages if pages >= batch_pages // 2 else batch_pages


class MigrationRamSend:
    """Finds the dirty pages of the regions of one worker, and passes them on in batches.

    Args:
        worker: its number, for the counters.
        regions: all regions, by number.
        blocks: the blocks, by number.
        tracker: reads the dirty log.
        outlet: takes the batches.
        shared: what the workers of this side share.
        batch_bytes: most guest bytes in a batch; the outlet may take more in a long one.
    """

    def __init__(
        self,
        *,
        worker: int,
        regions: Regions,
        blocks: Sequence[Reach],
        tracker: DirtyTracker,
        outlet: Outlet,
        shared: SharedArea,
        batch_bytes: int,
    ) -> None:
        self._worker = worker
        self._regions = regions
        self._blocks = blocks
        self._tracker = tracker
        self._outlet = outlet
        self._shared = shared
        self._batch_pages = batch_bytes // PAGE_BYTES
        self._scanner = DirtyScanner(regions, blocks, tracker, shared)
        self._tables = TableBudget(blocks, tables_of_worker(shared.workers))
        self._round = 0
        self._block = 0
        self._data: list[Index] = []
        self._data_pages = 0
        self._zero: list[Runs] = []
        self._zero_pages = 0
        self._zero_runs = 0  # an upper bound: runs that join still count as two
        self._began_ns = time.monotonic_ns() - outlet.waiting_ns  # leave out the time in which it waited to start
        self.counters = shared.counters(worker)  # of a worker of this number before it, if there was one
        self._waited_before_ns = self.counters.waiting_ns
        self._began_ns -= self.counters.busy_ns

    @property
    def load(self) -> ChannelLoad | None:
        """What the outlet still has to carry, if it is a channel."""
        return self._outlet.load()

    # -- the proposal's verbs -------------------------------------------------------------------

    def migrate_dirty_bitmap_sync(self, numbers: Sequence[int]) -> DirtyCount:
        """How many pages of the regions *numbers* are dirty now; nothing is consumed."""
        return self._scanner.count(numbers)

    def migrate_ram_scan(self, numbers: Sequence[int]) -> None:
        """Scan and re-arm the regions *numbers*, and keep the result for the worker that sends them in this round."""
        began = time.monotonic_ns()
        self._scanner.scan(numbers)
        self.counters.scan_ns += time.monotonic_ns() - began
        self._publish()

    def migrate_ram_iterate(
        self, round_: int, numbers: Sequence[int], *, first_pass: bool, holes: bool = True, scanned: bool = False
    ) -> None:
        """Send the dirty pages of the regions *numbers*. Full batches are sent now, the rest at the fence.

        Args:
            round_: number of the round.
            numbers: regions that no other worker sends in this round.
            first_pass: whether they were never sent before.
            holes: whether to look for pages that were given back, too.
            scanned: send what :meth:`migrate_ram_scan` of any worker found in them; else scan them now.
        """
        self._round = round_
        self._take_over(numbers)
        handled = self.counters.handled_pages
        began = time.monotonic_ns()
        for dirty in (
            self._scanner.take(numbers, first_pass=first_pass)
            if scanned
            else self._scanner.find(numbers, first_pass=first_pass, holes=holes)
        ):
            self.counters.scan_ns += time.monotonic_ns() - began
            self.migrate_ram_send(dirty, first_pass=first_pass)
            began = time.monotonic_ns()
        self.counters.scan_ns += time.monotonic_ns() - began
        self.counters.handled_pages = handled + self._pages_of(numbers)
        self._publish()

    def _pages_of(self, numbers: Sequence[int]) -> int:
        return sum(stretch.pages for stretch in self._regions.stretches(np.asarray(numbers, dtype=np.int64)))

    def _take_over(self, numbers: Sequence[int]) -> None:
        """Become the last sender of the regions *numbers*."""
        wanted = np.asarray(numbers, dtype=np.int64)
        last = self._shared.senders[wanted]
        for stretch in self._regions.stretches(wanted[(last != 0) & (last != self._worker + 1)]):
            self._outlet.taken_over(stretch)
        self._shared.senders[wanted] = self._worker + 1

    def migrate_ram_send(self, dirty: DirtyRegion, *, first_pass: bool) -> None:
        """Queue the pages of one dirty region, a batch's worth at a time while they are in the cache."""
        block = dirty.region.block
        if block != self._block:
            self._flush()
            self._block = block
        bits = self._shared.bits[block]
        # In the first pass the destination may hold anything, so every zero page is sent.
        send_all = first_pass and self._outlet.knows_nothing
        if len(dirty.holes):
            if send_all or not first_pass:  # in the first pass, an outlet that knows something has nothing there
                self._queue_zero(dirty.holes)
            clear_runs(bits, dirty.holes)
            if self._tracker.needs_copy:
                self._tracker.sent(block, index_of_runs(dirty.holes), None)
            hole_pages = page_count(dirty.holes)
            self.counters.handled_pages += hole_pages
            self.counters.skipped_pages += dirty.skipped_pages
            self.counters.zero_pages += hole_pages - dirty.skipped_pages
        index = np.flatnonzero(dirty.bit_map) + dirty.region.first_page
        reach = self._blocks[block]
        while len(index):
            most = max(self._most_pages, self._outlet.most_long_pages(block))
            part, index = np.split(index, [pages_of_batch(index, most)])
            self.counters.handled_pages += len(part)
            self._tables.use(block, part)
            zero = reach.zero_mask(part)
            if zero.any():
                zeros, part = part[zero], part[~zero]
                self._queue_zero(runs_of_index(zeros if send_all else zeros[test_bits(bits, zeros)]))
                clear_bits(bits, zeros)
                self._tracker.sent(block, zeros, None)
                self.counters.zero_pages += len(zeros)
            set_bits(bits, part)
            self._queue_data(part)

    def flush(self, round_: int) -> None:
        """Pass on the rest of the round."""
        self._round = round_
        self._flush()
        self._publish()

    def fence(self, round_: int) -> None:
        """Pass on the rest of the round, and wait until all that was passed on is in place."""
        self.flush(round_)
        self._outlet.fence(round_)
        if round_ == 1:
            self._tables.relax()
        self._publish()

    # -- batches --------------------------------------------------------------------------------

    @property
    def _most_pages(self) -> int:
        """How many pages the next batch should have at most, unless it is a long one."""
        return min(self._batch_pages, self._outlet.most_pages)

    def _queue_zero(self, runs: Runs) -> None:
        for part in portions(runs, MAX_ZERO_PAGES, MAX_RUNS // 2):
            pages = page_count(part)
            if self._zero_pages + pages > MAX_ZERO_PAGES or self._zero_runs + len(part) > MAX_RUNS // 2:
                self._flush()
            self._zero.append(part)
            self._zero_pages += pages
            self._zero_runs += len(part)

    def _queue_data(self, index: Index) -> None:
        self._data.append(index)
        self._data_pages += len(index)
        batch_pages = self._most_pages
        # Pages that are read to look at them are sent at once: if they waited, they would be read again.
        least_pages = batch_pages // 2 if self._blocks[self._block].reads_to_look else batch_pages
        while self._data_pages >= least_pages:
            pending = self._pending()
            most = batch_pages
            long = self._outlet.most_long_pages(self._block)
            if long > most and run_count(pending[:long]) <= LONG_BATCH_RUNS:
                if len(pending) < long:
                    self._data = [pending]
                    return  # what follows may belong to it
                most = long
            pages = pages_of_batch(pending, most)
            self._emit(pending[:pages])
            rest = pending[pages:]
            self._data, self._data_pages = [rest] if len(rest) else [], len(rest)

    def _flush(self) -> None:
        if self._data_pages or self._zero_pages:
            self._emit(self._pending())
            self._data, self._data_pages = [], 0

    def _pending(self) -> Index:
        """The data pages that wait, in ascending order. Their regions may have come in any order."""
        if not self._data:
            return NO_INDEX
        return ascending(np.concatenate(self._data)) if len(self._data) > 1 else self._data[0]

    def _emit(self, index: Index) -> None:
        """Pass on one batch: the data pages *index* and all zero pages that wait."""
        zero = join_runs(self._zero)
        self._zero, self._zero_pages, self._zero_runs = [], 0, 0
        self.counters.wire_bytes += self._outlet.emit(self._block, self._round, index, zero)
        self.counters.sent_pages += len(index)
        self._publish()

    def _publish(self) -> None:
        self.counters.waiting_ns = self._waited_before_ns + self._outlet.waiting_ns
        self.counters.busy_ns = time.monotonic_ns() - self._began_ns - self._outlet.waiting_ns
        self._shared.publish(self._worker, self.counters)
