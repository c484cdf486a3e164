# SPDX-License-Identifier: Apache-2.0
"""What the source's plan does between a last round and the pause, and before the hand-over. Pure.

A user may decide when to pause. Until then a round now and then keeps little dirty. Programs of the user (hooks) may
run before the pause and before the hand-over. If one fails, the migration is cancelled. After the first one there is
another round, because the guest wrote meanwhile.
"""

from __future__ import annotations

from parmig.engine.hooks import BEFORE_HAND_OVER, BEFORE_PAUSE, RunHook
from parmig.engine.plan.events import Do, Event, Instruction
from parmig.engine.plan.hook_events import HookEnded
from parmig.engine.source_plan.source_limits import SourceLimits
from parmig.engine.source_plan.source_steps import Step
from parmig.units import NS_PER_S

HOLD_NS = NS_PER_S
"""How long to wait between two rounds while the user decides. What the guest writes in a second costs one round."""


class SourcePause(SourceLimits):
    """Decides when the pause begins.

    Attributes:
        hooks: the moments for which there is a program.
    """

    hooks: frozenset[str] = frozenset()
    _hold_until_ns = 0
    _hook_runs = False

    def handle(self, event: Event, now_ns: int) -> list[Instruction]:
        """Take one event and return what to do next, in order."""
        if isinstance(event, HookEnded):
            return self._hook_ended(event, now_ns) if not self.over else []
        decided = super().handle(event, now_ns)
        over_ns = 0 if self.limits.pause_now else self._hold_until_ns
        if self.step is Step.HOLDING and not self.over and now_ns >= over_ns:
            decided += self._begin_round(Step.SENDING, now_ns)
        return decided

    def _hold(self, now_ns: int) -> list[Instruction]:
        """The guest could be paused, and the user decides when."""
        self.step, self._hold_until_ns = Step.HOLDING, now_ns + HOLD_NS
        return []

    def _begin_pause(self, now_ns: int) -> list[Instruction]:
        """The guest is to be paused now."""
        if self.record.outages.interrupted:  # in the pause, a lost connection is an error
            self.step = Step.RECONNECTING
            return []
        if self._hook_runs:
            self.step = Step.BEFORE_PAUSE_PROGRAM
            return []
        if BEFORE_PAUSE in self.hooks:
            self.hooks -= {BEFORE_PAUSE}
            self.step, self._hook_runs = Step.BEFORE_PAUSE_PROGRAM, True
            return [RunHook(BEFORE_PAUSE)]
        self.step = Step.PAUSING
        self.record.mark("pausing", now_ns)
        return [Do.PAUSE]

    def _hook_ended(self, event: HookEnded, now_ns: int) -> list[Instruction]:
        """A program has ended. Rounds may go on beside it, after the receiver was started again."""
        self._hook_runs = False
        if event.error is not None:
            return self._fail(event.error)
        if event.when == BEFORE_PAUSE and self.step is Step.BEFORE_PAUSE_PROGRAM:
            return self._begin_round(Step.SENDING, now_ns)
        if event.when == BEFORE_HAND_OVER and self.step is Step.BEFORE_HAND_OVER_PROGRAM:
            self.record.mark("hooked", now_ns)
            return self._fail(self.suspected) if self.suspected is not None else self._record_hand_over(now_ns)
        return []

    def _loaded(self, now_ns: int) -> list[Instruction]:
        if BEFORE_HAND_OVER not in self.hooks:
            return super()._loaded(now_ns)
        self.step = Step.BEFORE_HAND_OVER_PROGRAM
        return [RunHook(BEFORE_HAND_OVER)]
