# SPDX-License-Identifier: Apache-2.0
"""The writer of a guest that replays a trace: the same pages in the same intervals, in a loop."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from parmig.errors import StateError, TraceError
from parmig.guests.synthetic.ledger import BlockLedger, PageNumbers
from parmig.guests.synthetic.synthetic_devices import TICK_PAGES_MAX
from parmig.ram.blocks import PAGE_BYTES
from parmig.ram.traces.trace import Trace
from parmig.state import U64, migration_state
from parmig.units import NS_PER_S


@migration_state("replay")
class Replay:
    """Writes the pages of each interval in its interval, evenly spread, in ascending order.

    Its clock stands still while the guest is paused, and runs slower while the guest is throttled. If the host is late,
    the clock makes up for up to ``late_ns_max``; what is more is lost, so that the clock is late from then on. No page
    is left out, but those of the ring device, which writes them in each interval anyway.

    Args:
        ledgers: of all blocks, in order. Together they have the pages of the trace, but those of the ring device.
        trace: what to replay.

    Attributes:
        late_ns_max: how much lost time it makes up for.
        interval, offset_ns: where in the trace the clock is; device state, as are the next two.
        done: how many pages of the interval were written.
        step: how many pages were written at all.

    Raises:
        TraceError: the trace has no intervals.
    """

    late_ns_max = NS_PER_S
    interval: U64
    offset_ns: U64
    done: U64
    step: U64

    def __init__(self, ledgers: Sequence[BlockLedger], trace: Trace) -> None:
        if not trace.written:
            raise TraceError("the trace has no intervals, so there is nothing to replay; record a longer one")
        self._ledgers = ledgers
        self._interval_ns = trace.interval_ns
        reserved = ledgers[0].first_page
        self._written = [pages[np.searchsorted(pages, reserved) :] for pages in trace.written]
        self._borders = np.cumsum([0, *(ledger.mapping.block.pages for ledger in ledgers)])
        self.interval = 0
        self.offset_ns = 0
        self.done = 0
        self.step = 0
        self._behind_ns = 0
        self.throttle_percent = 0

    @property
    def asked_bytes_per_s(self) -> float:
        """How fast it is to write, whatever the host does: the mean over the trace."""
        pages = sum(map(len, self._written))
        return pages * PAGE_BYTES * NS_PER_S / (self._interval_ns * len(self._written))

    def tick(self, elapsed_ns: int) -> None:
        """Write what is due after *elapsed_ns* of running, as much as a tick may last."""
        self._behind_ns += elapsed_ns * (100 - self.throttle_percent) // 100
        self._behind_ns = min(self._behind_ns, self.late_ns_max)
        budget = TICK_PAGES_MAX
        while self._behind_ns > 0 and budget > 0:
            budget -= self._advance(budget)

    def _advance(self, most_pages: int) -> int:
        """Go on to the end of this interval, or as far as time and *most_pages* go. Returns how many were written."""
        pages = self._written[self.interval]
        until_ns = min(self.offset_ns + self._behind_ns, self._interval_ns)
        due = len(pages) * until_ns // self._interval_ns
        if due - self.done > most_pages:
            due = self.done + most_pages
            until_ns = max(self.offset_ns, due * self._interval_ns // len(pages))
        written = due - self.done
        self._write(pages[self.done : due])
        self._behind_ns -= until_ns - self.offset_ns
        self.done, self.offset_ns = due, until_ns
        if until_ns == self._interval_ns:
            self.interval = (self.interval + 1) % len(self._written)
            self.done = self.offset_ns = 0
        return written

    def _write(self, pages: PageNumbers) -> None:
        """Write *pages* once; they are numbered over all blocks."""
        self.step += len(pages)
        cuts = np.searchsorted(pages, self._borders)
        for index, ledger in enumerate(self._ledgers):
            part = pages[cuts[index] : cuts[index + 1]] - (self._borders[index] + ledger.first_page)
            if len(part):
                ledger.record(part, np.ones(len(part), dtype=np.int64))

    def post_load(self, _: int) -> None:
        """Refuse a place that is not in the trace.

        Raises:
            StateError: the trace has no such place; the message names it.
        """
        inside = self.interval < len(self._written) and self.offset_ns < self._interval_ns
        if not inside or self.done > len(self._written[self.interval]):
            raise StateError(
                f"the replay is at page {self.done} and {self.offset_ns} ns of interval {self.interval}, expected a "
                f"place in the {len(self._written)} intervals of its trace"
            )
