# SPDX-License-Identifier: Apache-2.0
"""Lets the source guest run again if it was not handed over: by this process while it lives, else by the guardian.

It knows whether the guest ran, whether it runs, and how to resume it. It knows nothing of rounds and peers.
"""

from __future__ import annotations

import logging

from parmig import logs
from parmig.engine.custody.guardian import Guardian
from parmig.engine.guest_thread import GuestThread
from parmig.errors import LimitExceededError, ParmigError, SourcePausedError
from parmig.guests.guest import Guest, Rescue, StateSink
from parmig.transport.polling import Poller

_logger = logging.getLogger(__name__)

LEAST_RESUME_LIMIT_S = 5.0
"""A guest gets at least this long to resume, however short the limit of a pause is. It takes some 10 ms."""

LOOK_LIMIT_S = 2.0
"""The limit of calls that only look, and of all calls after the guest could not be given back."""

DEATH_MS = 500
"""A monitor's connection ends a moment before its process does."""


class Custody:
    """Sees to it that the source guest runs again, from before anything of it is changed until the end.

    Args:
        guest: not owned.
        thread: in which it is called.
        guardian: program of the guardian, a dotted name.

    Attributes:
        ran: whether the guest ran until its pause; None: it was not paused yet.
        rescue: how another process lets the guest run here again, as of its pause; None: it cannot, or is not paused.
        problem: what went wrong when it was given back; empty: nothing.
        record: path of the record of the hand-over, for the guardian; empty: there is none.
        where: what the guest does, once it was given back or looked at: ``running``, ``paused``, or ``unknown`` if it
            does not answer.
    """

    def __init__(self, guest: Guest, thread: GuestThread, guardian: str) -> None:
        self._guest = guest
        self._thread = thread
        self._guardian = Guardian(guardian)
        self._entrusted = False
        self._hangs = False
        self.ran: bool | None = None
        self.problem = ""
        self.record = ""
        self.rescue: Rescue | None = None
        self.where = "unknown"

    # -- in the guest's thread ------------------------------------------------------------------

    def arm(self) -> None:
        """Start the guardian. Call this before anything of the guest is changed."""
        self._guardian.arm(self._guest.rescue(), self.record)

    def settle(self, *, stops: bool) -> None:
        """Let the guest settle.

        Args:
            stops: settling stops the guest, so the guardian must know that it has to resume it.
        """
        if stops:
            self._guardian.guard(self._guest.rescue(settling=True))
        self._guest.settle()
        if stops:
            self._guardian.guard(self._guest.rescue())

    def pause(self, sink: StateSink) -> int:
        """Pause the guest; returns when it stopped."""
        self.ran = self._guest.is_running()
        self._guardian.guard(self._guest.rescue(pausing=True))
        return self._guest.pause(sink)

    def note_pause(self) -> None:
        """Note, now that the guest is paused, whether it ran until then: for the hand-over, and for the guardian."""
        ran = self._guest.ran_until_pause()
        if ran is not None:
            self.ran = ran
        self.rescue = self._guest.rescue()
        self._guardian.guard(self.rescue)

    # -- in the loop's thread, or in the guest's -------------------------------------------------

    def disarm(self) -> None:
        """End the guardian's duty. Call this before the guest may run elsewhere, and once it runs here again."""
        self._guardian.disarm()

    def take_back(self) -> None:
        """Entrust the guest to the guardian again, after the destination refused it."""
        self._guardian.guard(self.rescue)

    # -- the end --------------------------------------------------------------------------------

    def give_back(self, limit_s: float, *, paused: bool) -> bool:
        """Let the guest run here again, whatever hangs.

        Args:
            limit_s: how long that may take; after it the guardian retries.
            paused: whether its pause has begun.

        Returns:
            False: the guest ran until its pause, and cannot be shown to run again.
        """
        self._guest.abort()
        try:
            self._thread.call(self._guest.resume_source, limit_s=max(limit_s, LEAST_RESUME_LIMIT_S))
        except Exception as error:
            self.problem = str(error) or type(error).__name__
            self._hangs = isinstance(error, LimitExceededError)
        if not self.problem:
            _logger.info("the guest was given back: it does what it did before")
            return True
        _logger.error("the guest could not be given back: %s", self.problem, extra=logs.REPORTED)
        if self._is_gone():
            return True  # without its monitor no guest is paused
        if not self._hangs:
            self.look()
        stays_paused = paused and self.ran is not False and self.where != "running"
        if stays_paused:
            self.where = "paused"
        self._entrusted = self._guardian.take_over()
        self._guest.abort()  # make calls return that still wait for the monitor
        return not stays_paused

    @property
    def call_limit_s(self) -> float | None:
        """The limit of every further call of the guest; None: the usual one."""
        return LOOK_LIMIT_S if self.problem else None

    def look(self) -> None:
        """Ask the guest whether it runs, and note the answer in ``where``."""
        try:
            self.where = "running" if self._thread.call(self._guest.is_running, limit_s=LOOK_LIMIT_S) else "paused"
        except Exception:
            self.where = "unknown"

    def _is_gone(self) -> bool:
        fd = self._guest.watch_fd()
        return fd is not None and bool(Poller(fd).poll(DEATH_MS))

    def paused_error(self, first: ParmigError) -> SourcePausedError:
        """The error of a guest that could not be given back, after *first* went wrong."""
        keeps = "no guardian watches over it"
        if self._entrusted:
            log = f", its log is {self._guardian.log}" if self._guardian.log else ""
            keeps = f"the guardian (process {self._guardian.pid}) keeps trying{log}"
        error = SourcePausedError(
            f"{first}; then the source guest could not be resumed ({self.problem}), so it is PAUSED here: "
            f"see to its monitor, then look whether it runs, and if it does not, continue it there; {keeps}"
        )
        error.phase = first.phase
        error.__cause__ = first
        return error

    def close(self) -> None:
        """End the guardian, unless it took over. If it did, leave the monitor to it alone."""
        if self._entrusted:
            self._guest.close()
        self._guardian.close()
