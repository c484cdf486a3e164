# SPDX-License-Identifier: Apache-2.0
"""What the source's plan does when the user changes limits while the guest runs. Pure."""

from __future__ import annotations

from abc import abstractmethod

from parmig.engine.plan import events
from parmig.engine.plan.events import Event, Instruction
from parmig.engine.reporting.change import OFF, Change, SetRate, changed
from parmig.engine.source_plan.source_restart import SourceRestart
from parmig.engine.work.policy import Limits
from parmig.status import MigrationStatus

_BEFORE_PAUSE = (MigrationStatus.SETUP, MigrationStatus.ACTIVE)


class SourceLimits(SourceRestart):
    """Keeps the limits in force.

    Attributes:
        limits: for the policy.
    """

    limits: Limits

    def handle(self, event: Event, now_ns: int) -> list[Instruction]:
        """Take one event and return what to do next, in order."""
        if isinstance(event, events.LimitsChanged) and not self.over:
            return self._change(event.change, now_ns)
        return super().handle(event, now_ns)

    @property
    def takes_changes(self) -> bool:
        """Whether a limit still matters: the guest was not paused yet."""
        return self.status in _BEFORE_PAUSE and "pausing" not in self.record.marks

    def _change(self, change: Change, now_ns: int) -> list[Instruction]:
        self.limits = changed(self.limits, change)
        self.record.changes.append((now_ns, change))
        decided: list[Instruction] = []
        if change.max_bandwidth_bytes_per_s is not None:
            decided.append(SetRate(change.max_bandwidth_bytes_per_s))
        if change.auto_converge == OFF:
            decided += self._throttle(0)
        return decided

    @abstractmethod
    def _throttle(self, percent: int) -> list[Instruction]:
        """Slow the guest down by *percent*."""
