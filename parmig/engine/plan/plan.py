# SPDX-License-Identifier: Apache-2.0
"""What the plans of both sides share: events in, instructions out, no I/O, and no clock of their own.

``coordinator`` is the source's plan, ``destination`` the destination's. ``driver`` feeds them and carries out
what they return.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from typing import Generic, TypeVar

from parmig.engine.plan.events import CancelAsked, Event, Failed, Suspected, Tick, WorkerDied
from parmig.errors import CancelledError, OutcomeUnknownError, ParmigError
from parmig.status import BEFORE_HAND_OVER, MigrationStatus, StatusEvent, StatusMachine
from parmig.units import NS_PER_MS

EXPLANATION_NS = 400 * NS_PER_MS
"""A lost connection is a symptom. For this long the cause may still arrive: the peer's report, or the news that
one of our workers died. It is well within the second in which a failure must be known."""

MAX_DEATHS = 3
"""A migration survives so many deaths of workers on each side. More have a cause that will go on killing."""

Instruction = TypeVar("Instruction")


class Plan(ABC, Generic[Instruction]):
    """Decides for one side. Feed it events, and carry out what it returns, in order.

    Attributes:
        machine: the status.
        step: what the plan waits for; its value is words for people.
        error: why the migration ended, if it did not complete.
        suspected: a symptom whose cause is awaited; the first one counts.
        deaths: how many workers of this side have died.
    """

    step: enum.Enum

    def __init__(self) -> None:
        self.machine = StatusMachine()
        self.error: ParmigError | None = None
        self.suspected: ParmigError | None = None
        self.deaths = 0
        self._explained_by_ns = 0
        self.machine.move(StatusEvent.STARTED)

    @property
    def status(self) -> MigrationStatus:
        """Where the migration is."""
        return self.machine.status

    @property
    def over(self) -> bool:
        """Whether the plan has ended; every further event is ignored."""
        return self.machine.ended

    @property
    def hears_workers(self) -> bool:
        """Whether the workers matter now. Before the hand-over they do."""
        return self.status in BEFORE_HAND_OVER

    def handle(self, event: Event, now_ns: int) -> list[Instruction]:
        """Take one event and return what to do next, in order."""
        if self.over:
            return []
        match event:
            case Failed(error=error):
                return self._fail(error)
            case Suspected(error=error):
                return self._suspect(error, now_ns)
            case WorkerDied(worker=worker, error=error):
                return self._worker_died(worker, error, now_ns)
            case CancelAsked():
                return self._cancel()
            case Tick():
                if self.suspected is not None and now_ns >= self._explained_by_ns:
                    return self._fail(self.suspected)
                return self._check_time(now_ns)
        return self._proceed(event, now_ns)

    @property
    def replaces_workers(self) -> bool:
        """Whether a worker that dies now is replaced."""
        return False

    def _worker_died(self, worker: int, error: ParmigError, now_ns: int) -> list[Instruction]:
        self.deaths += 1
        if self.deaths > MAX_DEATHS or not self.replaces_workers:
            return self._fail(error)
        return self._replace(worker, str(error), now_ns)

    def _replace(self, worker: int, reason: str, now_ns: int) -> list[Instruction]:
        """What to do so that another worker takes the place of *worker*, where ``replaces_workers``."""
        raise NotImplementedError

    def _suspect(self, error: ParmigError, now_ns: int) -> list[Instruction]:
        if self.suspected is None:
            self.suspected, self._explained_by_ns = error, now_ns + EXPLANATION_NS
        return []

    def _cancel(self) -> list[Instruction]:
        if self.status is MigrationStatus.HAND_OVER:
            return []  # too late: the guest belongs to the destination
        return self._end(StatusEvent.CANCEL, CancelledError(self._cancelled))

    def _fail(self, error: ParmigError) -> list[Instruction]:
        return self._end(StatusEvent.ERROR, error)

    def _end(self, event: StatusEvent, error: ParmigError) -> list[Instruction]:
        """End with *error*. After hand-over that is an unknown outcome."""
        phase = error.phase or self._phase()
        after = self.machine.move(event)
        if after is MigrationStatus.UNKNOWN and not isinstance(error, OutcomeUnknownError):
            cause = error
            error = OutcomeUnknownError(f"{cause}, after hand-over: {self._unknown}")
            error.__cause__ = cause
        error.phase = phase
        self.error = error
        return self._ending(after)

    def _phase(self) -> str:
        """Where the migration is, for the report."""
        return str(self.step.value)

    # -- what a side adds -----------------------------------------------------------------------

    _cancelled: str
    """The error message of a migration that the user cancelled."""

    _unknown: str
    """The end of the error message when a side fails after hand-over."""

    @abstractmethod
    def _proceed(self, event: Event, now_ns: int) -> list[Instruction]:
        """Take an event that is not the same on both sides."""

    @abstractmethod
    def _check_time(self, now_ns: int) -> list[Instruction]:
        """End what has taken too long."""

    @abstractmethod
    def _ending(self, status: MigrationStatus) -> list[Instruction]:
        """What to do last, now that the migration ended in *status* with an error."""
