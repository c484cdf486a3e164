# SPDX-License-Identifier: Apache-2.0
"""Watches which pages a guest writes, interval by interval, without moving it.

Afterwards the guest is as before, on every way out. If this process is killed, the kernel ends the tracking, and the
guardian sets back the settings of the monitor.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence

from parmig.config import GUARDIAN_PROGRAM
from parmig.engine.custody.custody import Custody
from parmig.engine.guest_thread import GuestThread
from parmig.errors import CancelledError, GuestError
from parmig.guests.guest import DirtyLog, Guest
from parmig.ram.bits import NO_INDEX, Index
from parmig.ram.blocks import BlockMemory
from parmig.ram.traces.trace import TraceBlock, TraceSource
from parmig.ram.traces.write_scan import WriteScan
from parmig.transport.polling import Poller
from parmig.units import NS_PER_MS
from parmig.version import __version__

_logger = logging.getLogger(__name__)


class WriteWatch:
    """Watches *guest*; a context manager, which begins with :meth:`start`.

    Args:
        guest: opened by the caller, who also closes it.
        tracker: kind of dirty log to ask the guest for.
        look: called with the memory of the guest before its log is started.

    Attributes:
        log: the dirty log that the guest has started.
        source: what is watched, for the header of a trace.
    """

    def __init__(
        self, guest: Guest, tracker: str, *, look: Callable[[Sequence[BlockMemory]], None] = lambda _: None
    ) -> None:
        self._guest = guest
        self._before = look
        self._kind = tracker
        self._thread = GuestThread()
        self._custody = Custody(guest, self._thread, GUARDIAN_PROGRAM)
        self._scan: WriteScan | None = None
        self._started = False
        self._cancelled = False
        self.log = DirtyLog("none")
        self.source = TraceSource()

    def start(self) -> None:
        """Start the dirty log of the guest.

        Raises:
            ParmigError: the guest has no such log, this host does not allow it, or the monitor failed.
        """
        info = self._thread.call(self._guest.info)
        memory = list(self._thread.call(self._guest.memory))
        self._check_cancelled()
        self._before(memory)
        self._thread.call(self._custody.arm)
        self._started = True
        self.log = self._thread.call(self._guest.start_dirty_log, self._kind)
        bitmap_fd = self._guest.dirty_bitmap_fd() if self.log.kind == "bitmap" else -1
        self._scan = WriteScan(memory, self.log, bitmap_fd)
        self.source = TraceSource(
            kind=info.kind,
            machine=info.machine,
            monitor=info.monitor,
            tracker=self.log.kind,
            recorded=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            parmig=__version__,
            blocks=tuple(
                TraceBlock(name=item.block.name, pages=item.block.pages, page_size_bytes=item.block.page_size_bytes)
                for item in memory
            ),
        )
        _logger.info("watches the writes of the guest by %s (%s)", self.log.kind, self.log.reason)

    @property
    def memory_pages(self) -> int:
        """How many pages the guest has."""
        return sum(block.pages for block in self.source.blocks)

    def intervals(self, interval_ns: int, count: int) -> Iterator[tuple[Index, int]]:
        """The pages that the guest writes in each of the next *count* intervals, as soon as the interval has ended.

        If a scan takes longer than an interval, its pages are those of the first interval that it covers. The others
        are empty.

        Yields:
            the pages, and when their scan ended, in ns since the first interval began.

        Raises:
            CancelledError: :meth:`cancel` was called.
            GuestError: the guest's monitor failed, or is gone.
        """
        self._look(None)
        began_ns = time.monotonic_ns()
        done = 0
        while done < count:
            self._wait(began_ns + (done + 1) * interval_ns, done, count)
            late = (time.monotonic_ns() - began_ns) // interval_ns - (done + 1)
            covered = min(1 + late, count - done)
            pages = self._look(self._scan)
            at_ns = time.monotonic_ns() - began_ns
            for number in range(covered):
                yield (pages if number == 0 else NO_INDEX), at_ns
            done += covered

    def _look(self, scan: WriteScan | None) -> Index:
        """What was written since the last look; without *scan*, forget it."""
        if self._scan is None:
            raise GuestError("the guest is not watched yet, expected start() before this call")
        if self.log.kind == "bitmap":
            self._thread.call(self._guest.sync_dirty_log)
        if scan is not None:
            return scan.scan()
        self._scan.begin()
        return NO_INDEX

    def _wait(self, until_ns: int, done: int, count: int) -> None:
        """Wait until the instant, or raise what ended the wait."""
        poller = Poller(self._thread.wake_fd, self._guest.watch_fd())
        while True:
            left_ns = until_ns - time.monotonic_ns()
            ready = poller.poll(max(0.0, left_ns / NS_PER_MS))
            self._check_cancelled()
            if ready - {self._thread.wake_fd}:
                raise GuestError(f"the guest's monitor ended after {done} of {count} intervals; nothing was kept")
            if left_ns <= 0:
                return

    def cancel(self) -> None:
        """End the watch. Safe from a signal handler, and from any thread."""
        self._cancelled = True
        self._thread.wake()

    def _check_cancelled(self) -> None:
        if self._cancelled:
            raise CancelledError("cancelled; the guest continues, and nothing was kept")

    def close(self) -> None:
        """Leave the guest as it was before. Never raises."""
        if self._scan is not None:
            self._scan.close()
            self._scan = None
        if self._started:
            self._started = False
            self._custody.give_back(0, paused=False)
            self._try(self._guest.stop_dirty_log)
        self._custody.close()
        self._thread.close()

    def _try(self, step: Callable[[], None]) -> None:
        try:
            self._thread.call(step, limit_s=self._custody.call_limit_s)
        except Exception as error:  # the rest must still be given back
            _logger.warning("while ending: %s: %s", step.__name__, error)

    def __enter__(self) -> WriteWatch:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
