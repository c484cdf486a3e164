# SPDX-License-Identifier: Apache-2.0
"""Where a running engine and those who ask it meet: one posts how far it is, the others leave what they wish."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from parmig.engine.reporting.change import Change
from parmig.engine.reporting.notes import Note, StatusNote, notes_at_end
from parmig.engine.reporting.report import Progress, Report
from parmig.engine.steering.engine_status import EngineStatus, with_progress
from parmig.errors import StatusError
from parmig.units import NS_PER_MS
from parmig.version import __version__

Wish = tuple[Change, "Future[None]"]

NOT_YET = "the command has not begun to move memory; give the limit as an option, or set it again in a moment"
TOO_LATE = "the command has ended, or the guest is paused already; a limit would change nothing"


class Desk:
    """One engine's desk. Every method may be called from any thread.

    Args:
        cancel: makes the engine give up.

    Attributes:
        began_ns: when the command began, on the clock of ``time.monotonic_ns()``.
        report: how it ended; None: it runs.
        listeners: called with events, in the thread in which they happened.
    """

    def __init__(self, cancel: Callable[[], None]) -> None:
        self.cancel = cancel
        self.began_ns = time.monotonic_ns()
        self.report: Report | None = None
        self.listeners: list[Callable[[Sequence[Note]], None]] = []
        self._status = EngineStatus(parmig=__version__)
        self._lock = threading.Lock()
        self._wishes: deque[Wish] = deque()
        self._wake: Callable[[], None] | None = None
        self._reason = NOT_YET

    # -- the engine's side ----------------------------------------------------------------------

    def post(self, status: EngineStatus) -> None:
        """Replace the status. It must not change afterwards."""
        self._status = status

    def post_progress(self, progress: Progress) -> None:
        """Replace the figures of the status that *progress* has; a status that is new is an event."""
        before = self._status.status
        self._status = with_progress(self._status, progress)
        if progress.status != before:
            at_ms = (time.monotonic_ns() - self.began_ns) / NS_PER_MS
            self.note([StatusNote(at_ms=at_ms, status=progress.status)])

    def note(self, notes: Sequence[Note]) -> None:
        """Pass on what has happened."""
        if notes:
            for listener in self.listeners:
                listener(notes)

    def finish(self, report: Report) -> None:
        """The command has ended with *report*."""
        self.report = report
        self.note(notes_at_end(report))

    def open(self, wake: Callable[[], None]) -> None:
        """From now on the engine takes wishes; *wake* makes it look for them."""
        with self._lock:
            self._wake = wake

    def take(self) -> Wish | None:
        """The next wish, if there is one. The engine sets the result of its future, or why it cannot be fulfilled."""
        return self._wishes.popleft() if self._wishes else None

    def close(self) -> None:
        """The engine takes no more wishes. Calling it twice is fine."""
        with self._lock:
            self._wake, self._reason = None, TOO_LATE
            left, self._wishes = self._wishes, deque()
        for _, answer in left:
            answer.set_exception(StatusError(TOO_LATE))

    # -- the visitors' side ---------------------------------------------------------------------

    @property
    def status(self) -> EngineStatus:
        """What was posted last."""
        return self._status

    def wish(self, change: Change) -> Future[None]:
        """Ask the engine to make *change*. The future says whether it did."""
        answer: Future[None] = Future()
        with self._lock:
            wake = self._wake
            if wake is None:
                answer.set_exception(StatusError(self._reason))
                return answer
            self._wishes.append((change, answer))
        wake()
        return answer
