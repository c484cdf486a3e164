# SPDX-License-Identifier: Apache-2.0
"""Drives a plan on either side: waits for events, feeds the plan, carries out what it decides.

A driver decides nothing. It calls the guest in the guest's thread, reads the workers, and passes on what it learns. A
subclass adds what only its side has: the source its dirty log and rounds, the destination its channels.
"""

from __future__ import annotations

import contextlib
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any, Generic

from parmig.engine.channels.control import ControlChannel
from parmig.engine.guest_thread import GuestThread
from parmig.engine.messages import peer_messages, worker_messages
from parmig.engine.plan import events
from parmig.engine.plan.events import Event
from parmig.engine.plan.plan import Instruction, Plan
from parmig.engine.plan.plan_log import PlanLog
from parmig.engine.pool import WorkerPool
from parmig.engine.reporting import error_reports
from parmig.engine.reporting.report import Progress
from parmig.errors import GuestError, ParmigError, PeerLostError
from parmig.guests.guest import Guest
from parmig.transport.polling import Poller
from parmig.units import NS_PER_MS

_logger = logging.getLogger(__name__)

POLL_MS = 200
"""How often the loop wakes without any event: for time limits and for progress."""

LOOK_EVERY_NS = 500 * NS_PER_MS
"""How often to look for workers that were stopped. One that was seen so twice is ended."""

MESSAGES_A_TURN = 16
"""The most control messages that one turn reads before it checks the clock and the user. In a whole migration a side
sends a few, and one every few seconds."""


class Driver(ABC, Generic[Instruction]):
    """Runs one migration on this side.

    Args:
        plan: decides.
        guest: not owned.
        thread: in which the guest is called; not owned.
        pool: of workers; not owned.
        progress: called now and then, in the thread that called :meth:`run`.
    """

    def __init__(
        self,
        plan: Plan[Instruction],
        guest: Guest,
        thread: GuestThread,
        pool: WorkerPool,
        progress: Callable[[Progress], None],
    ) -> None:
        self._plan = plan
        self._guest = guest
        self._thread = thread
        self._pool = pool
        self._show = progress
        self._poller = Poller()
        self._cancelled = False
        self._log = PlanLog()
        self._look_ns = 0

    def run(self) -> None:
        """Run turns until the plan is over. Any exception, also of a callback, is fed to the plan as a failure."""
        try:
            while not self.turn():
                pass
        except Exception as caught:
            self._feed(events.Failed(as_our_error(caught)))

    def cancel(self) -> None:
        """Cancel the migration; has no effect after hand-over. Safe from a signal handler."""
        self._cancelled = True
        self._thread.wake()

    def turn(self) -> bool:
        """Wait for anything to happen, feed the plan, and carry out its decisions. Returns whether all is over."""
        ready = self._poller.poll(POLL_MS)
        self._thread.finished()
        if self._guest.watch_fd() in ready:
            self._feed(events.Failed(GuestError("the guest's virtual machine monitor died during the migration")))
        if self._plan.hears_workers:
            self._end_stopped_workers()
            for worker, message in self._pool.read():
                self._hear_worker(worker, message)
        self._listen()
        if self._cancelled:
            self._cancelled = False
            self._feed(events.CancelAsked())
        self._feed(events.Tick())
        return self._plan.over

    # -- what a side adds -----------------------------------------------------------------------

    @abstractmethod
    def _carry_out(self, instruction: Instruction) -> None:
        """Do what the plan decided."""

    @abstractmethod
    def _worker_event(self, worker: int, message: worker_messages.WorkerEvent) -> Event | None:
        """The event for the plan that a worker's message is; None: the plan needs no event."""

    def _listen(self) -> None:
        """Take in what the other end has sent, once a turn."""

    def _end_stopped_workers(self) -> None:
        """Now and then, have workers killed that somebody stopped, if others may take their places."""
        now_ns = time.monotonic_ns()
        if self._plan.replaces_workers and now_ns >= self._look_ns:
            self._look_ns = now_ns + LOOK_EVERY_NS
            self._pool.end_stopped()

    # -- polling --------------------------------------------------------------------------------

    def _watch(self, *items: int | None) -> None:
        """Wake the loop for *items* and the guest's thread, and for nothing else from now on."""
        self._poller = Poller(self._thread.wake_fd, *items)

    def _forget(self, items: Iterable[int]) -> None:
        """Stop watching *items*. A descriptor that has ended stays readable, and would wake the loop for ever."""
        for item in items:
            with contextlib.suppress(KeyError):  # it is not watched
                self._poller.unwatch(item)

    # -- events ---------------------------------------------------------------------------------

    def _feed(self, event: Event) -> None:
        decided = self._plan.handle(event, time.monotonic_ns())
        self._log.note(self._plan, event, decided)
        for instruction in decided:
            self._carry_out(instruction)

    def _fail(self, error: ParmigError, *, symptom: bool = False) -> None:
        """Feed a failure to the plan. A *symptom*, and a lost connection, is only suspected: its cause may follow."""
        suspected = symptom or isinstance(error, PeerLostError)
        self._feed(events.Suspected(error) if suspected else events.Failed(error))

    def _hear_worker(self, worker: int, message: worker_messages.WorkerEvent) -> None:
        if isinstance(message, worker_messages.WorkerFailed):
            error = error_reports.restore_error(message.error)
            self._forget(self._pool.descriptors(worker))
            if message.died:
                self._feed(events.WorkerDied(worker, error))
                return
            # A scan fails a moment before the death of the process that it scans is known.
            self._fail(error, symptom=isinstance(error, GuestError))
        elif (event := self._worker_event(worker, message)) is not None:
            self._feed(event)

    def _messages(self, control: ControlChannel) -> Iterator[peer_messages.ControlMessage]:
        """Messages that the peer has sent, at most MESSAGES_A_TURN of them, until the plan is over.

        Raises:
            PeerLostError: the connection is gone.
            ProtocolError: a message is malformed, or of another version.
        """
        for _ in range(MESSAGES_A_TURN):
            if self._plan.over or (message := control.read()) is None:
                return
            yield message

    # -- the guest ------------------------------------------------------------------------------

    def _begin(self, then: Callable[[Any], Event | None], function: Callable[..., Any], *arguments: object) -> None:
        """Call the guest in its thread; feed what *then* makes of the result."""
        self._thread.begin(lambda future: self._feed_result(then, function, future), function, *arguments)

    def _feed_result(
        self, then: Callable[[Any], Event | None], function: Callable[..., Any], future: Future[Any]
    ) -> None:
        try:
            event = then(future.result())
        except ParmigError as error:
            self._fail(error)
        except Exception as error:
            self._fail(ParmigError(f"{function.__name__}: {type(error).__name__}: {error}"))
        else:
            if event is not None:
                self._feed(event)


def as_our_error(caught: Exception) -> ParmigError:
    """Return *caught* if it is a ParmigError; else log it, and return a ParmigError whose cause it is."""
    if isinstance(caught, ParmigError):
        return caught
    _logger.error("a fault in parmig or its caller", exc_info=caught)
    error = ParmigError(f"{type(caught).__name__}: {caught}")
    error.__cause__ = caught
    return error
