# SPDX-License-Identifier: Apache-2.0
"""The source's plan when the destination's receiver was killed and started again: goes on with what it holds. Pure.

All workers are replaced, since none of them knows what of its batches arrived. The round is over for them. The next one
begins with a scan of all regions, as for a guest that settles; so everything is armed, and no device write is in
flight. Then all pages are compared by their digests (``held_memory``), and the round sends those that differ.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence

from parmig.engine.plan import events
from parmig.engine.plan.events import Do, Event, Instruction, Replace
from parmig.engine.plan.held_events import PeerRestarted, WorkerCheckedHeld
from parmig.engine.plan.held_memory import HeldCheckRun
from parmig.engine.reporting.outages import of_worker
from parmig.engine.source_plan.source_channels import SourceChannels
from parmig.engine.source_plan.source_steps import Step
from parmig.errors import PeerLostError, ProtocolError
from parmig.ram.regions import Region
from parmig.ram.shared import WorkerCounters
from parmig.status import MigrationStatus

_ROUND = {Step.SCANNING, Step.SETTLING, Step.SENDING}
_BETWEEN = {Step.SYNCING_COUNT, Step.COUNTING, Step.RECONNECTING, Step.HOLDING, Step.BEFORE_PAUSE_PROGRAM}
_CHECK = {Step.REJOINING, Step.CHECKING_HELD}

_ANSWERS: dict[Step, type[Event]] = {Step.SETTLING: events.GuestSettled, Step.SYNCING_COUNT: events.LogSynced}
"""What the guest's thread still answers to a step that was given up."""

_REASON = "the destination's receiver was started again"


class SourceRestart(SourceChannels):
    """Goes on after the receiver was started again, while the guest runs."""

    regions: Sequence[Region]
    _workers: int
    _settles = False

    def __init__(self) -> None:
        super().__init__()
        self._rejoining: set[str] = set()
        self._checks = False  # the round begins with a check
        self._check: HeldCheckRun | None = None
        self._stale: Counter[type[Event]] = Counter()

    def handle(self, event: Event, now_ns: int) -> list[Instruction]:
        """Take one event and return what to do next, in order."""
        if self._stale[type(event)]:
            self._stale[type(event)] -= 1
            return []
        match event:
            case PeerRestarted(counters=counters) if not self.over:
                return self._peer_restarted(counters, now_ns)
            case events.ChannelResumed(channel=channel) if self.step is Step.REJOINING:
                return [*super().handle(event, now_ns), *self._rejoined(channel, now_ns)]
            case events.Tick() if self._check is not None:
                error = self._check.overdue(now_ns, interrupted=bool(self.record.outages.interrupted))
                return super().handle(event, now_ns) if error is None else self._fail(error)
        return super().handle(event, now_ns)

    def _peer_restarted(self, counters: Sequence[WorkerCounters], now_ns: int) -> list[Instruction]:
        """Begin anew with other workers, and find out what the destination holds."""
        replace: list[Instruction] = [Replace(worker, _REASON) for worker in range(self._workers)]
        if self.step is Step.STARTING_LOG:
            return replace  # nothing was sent yet
        if self.step not in _ROUND | _BETWEEN | _CHECK or self.status is not MigrationStatus.ACTIVE:
            return self._fail(PeerLostError(f"{_REASON} while this side was {self.step.value}, which is too late"))
        for worker, total in enumerate(counters):
            self.record.fenced(worker, total)
        if self.step in _ANSWERS:
            self._stale[_ANSWERS[self.step]] += 1
        if self.step in _ROUND and not self._checks:
            stolen = self._work.stolen if self.step is Step.SENDING else [0] * self._workers
            self.record.end_round(now_ns, paused=False, stolen=stolen, given_up=True)
        self.record.restarted(now_ns)
        self.step, self._check = Step.REJOINING, None
        self._rejoining = {of_worker(worker) for worker in range(self._workers)}
        return replace

    def _rejoined(self, channel: str, now_ns: int) -> list[Instruction]:
        self._rejoining.discard(channel)
        if self._rejoining:
            return []
        if self._checks:  # the round has begun already, and then the receiver was started once more
            return self._begin_scan()
        self._checks = True
        return self._begin_round(Step.SENDING, now_ns)

    # -- the beginning of a round ---------------------------------------------------------------

    def _all_scanned(self, now_ns: int) -> list[Instruction]:
        """All regions are scanned and re-armed."""
        if not self._settles:
            return self._all_settled(now_ns)
        self.step = Step.SETTLING
        return [Do.SETTLE]

    def _all_settled(self, now_ns: int) -> list[Instruction]:
        """No device write of before the scan is in flight."""
        if not self._checks:
            return self._hand_out(Step.SENDING, now_ns)
        self.step = Step.CHECKING_HELD
        self.record.begin_check(now_ns)
        self._check = HeldCheckRun(self.regions, self._workers, self._work.lost, now_ns)
        return self._go_on_checking(self._check, self._check.begin(), now_ns)

    def _checking(self, event: Event, now_ns: int) -> list[Instruction] | None:
        """Take an event that concerns the check; None: it does not."""
        check = self._check
        if self.step is not Step.CHECKING_HELD or check is None:
            return None
        match event:
            case events.PeerDigests():
                try:
                    return self._go_on_checking(check, check.heard(event, now_ns), now_ns)
                except ProtocolError as error:
                    return self._fail(error)
            case WorkerCheckedHeld():
                return self._go_on_checking(check, check.checked(event, now_ns), now_ns)
        return None

    def _go_on_checking(self, check: HeldCheckRun, decided: list[Instruction], now_ns: int) -> list[Instruction]:
        if decided or not check.over:
            return decided
        self._check, self._checks = None, False
        self._work.lost |= check.unarmed
        self.record.checked_held(check.proven_pages, check.again_pages, now_ns)
        return self._hand_out(Step.SENDING, now_ns, scanned=True)

    def _replaced_in_check(self, worker: int) -> list[Instruction]:
        return [] if self._check is None else self._check.replaced(worker)

    @abstractmethod
    def _begin_scan(self) -> list[Instruction]:
        """Scan all regions anew, for the round that has begun."""

    @abstractmethod
    def _hand_out(self, step: Step, now_ns: int, *, scanned: bool = False) -> list[Instruction]:
        """Hand out the regions of the round that has begun. *scanned*: all were scanned, though nothing settles."""
