# SPDX-License-Identifier: Apache-2.0
"""The log of a plan: what it was fed, what it decided, and why it ended. Plans themselves do no I/O."""

from __future__ import annotations

import enum
import logging
from collections.abc import Sequence
from typing import Any, Protocol

from parmig import logs
from parmig.engine.reporting.record import Record
from parmig.engine.work.policy import expected_downtime_ns
from parmig.errors import ParmigError
from parmig.ram.blocks import PAGE_BYTES
from parmig.status import MigrationStatus
from parmig.units import NS_PER_MS, format_ms, format_size

_logger = logging.getLogger(__name__)


class LoggedPlan(Protocol):
    """What the log reads of a plan."""

    step: Any
    error: ParmigError | None
    suspected: ParmigError | None

    @property
    def status(self) -> MigrationStatus:
        """Where the migration is."""


class PlanLog:
    """Writes a line for every change of one plan."""

    def __init__(self) -> None:
        self._status: MigrationStatus | None = None
        self._step: enum.Enum | None = None
        self._suspected: ParmigError | None = None
        self._error: ParmigError | None = None
        self._rounds = 0

    def note(self, plan: LoggedPlan, event: object, decided: Sequence[object]) -> None:
        """Write what *event* changed in *plan*, and what the plan *decided*."""
        if not _logger.isEnabledFor(logging.INFO):
            return
        cause = _words(event)
        if plan.status is not self._status:
            before = self._status.value if self._status is not None else "none"
            _logger.info("status %s -> %s after %s", before, plan.status.value, cause)
            self._status = plan.status
        if plan.step is not self._step:
            _logger.info("next: %s (after %s)", plan.step.value, cause)
            self._step = plan.step
        if plan.suspected is not self._suspected:
            self._suspected = plan.suspected
            _logger.info("waits for the cause of: %s: %s", type(plan.suspected).__name__, plan.suspected)
        if plan.error is not None and plan.error is not self._error:
            self._error = plan.error
            self._log_error(plan.error)
        for instruction in decided:
            _logger.debug("decided %s", _words(instruction))

    def note_rounds(self, record: Record) -> None:
        """Write the counts of each round of *record* that has ended since the last call."""
        if not _logger.isEnabledFor(logging.INFO):
            return
        for back in range(min(record.fact_count - self._rounds, len(record.facts)), 0, -1):
            known = record.facts[: len(record.facts) - back + 1]
            facts = known[-1]
            _logger.info(
                "round %d ended: %s sent in %s, %s dirty now; a pause would take %s",
                record.fact_count - back + 1,
                format_size(facts.sent_bytes),
                format_ms(facts.duration_ns / NS_PER_MS),
                format_size(facts.remaining_pages * PAGE_BYTES),
                format_ms(expected_downtime_ns(known) / NS_PER_MS),
            )
        self._rounds = record.fact_count

    @staticmethod
    def _log_error(error: ParmigError) -> None:
        _logger.error("%s in phase %r: %s", type(error).__name__, error.phase or "setup", error, extra=logs.REPORTED)
        cause: BaseException | None = error.__cause__
        while cause is not None:
            _logger.error("caused by %s: %s", type(cause).__name__, cause, extra=logs.REPORTED)
            cause = cause.__cause__


def _words(item: object) -> str:
    """The name of an event or instruction, without what it carries, which may be long."""
    if isinstance(item, enum.Enum):
        return item.name
    inner = getattr(item, "instruction", None) or getattr(item, "message", None)
    worker = getattr(item, "worker", None)
    words = type(item).__name__ + (f" {type(inner).__name__}" if inner is not None else "")
    return words + (f" (worker {worker})" if worker is not None else "")
