# SPDX-License-Identifier: Apache-2.0
"""The end of the source's plan: from the news that the guest runs at the destination, or from a failure. Pure."""

from __future__ import annotations

from abc import abstractmethod

from parmig.engine import events
from parmig.engine.comparison import Comparison
from parmig.engine.events import Do, Event, Instruction
from parmig.engine.plan import Plan
from parmig.engine.record import Record
from parmig.engine.source_steps import Step
from parmig.errors import ParmigError
from parmig.status import MigrationStatus, StatusEvent


class SourceEnd(Plan[Instruction]):
    """Ends the source's plan. The outcome is known before the memories are compared, and does not change any more.

    Attributes:
        record: what is measured.
        comparison: what is compared after the hand-over; None: nothing.
        source_digest, peer_digest: of all memory on either side, if they were compared.
    """

    step: Step
    record: Record
    comparison: Comparison | None
    source_digest: str | None
    peer_digest: str | None

    @property
    def over(self) -> bool:
        """Whether the plan has ended; every further event is ignored."""
        return super().over and self.step is not Step.COMPARING

    @property
    def hears_workers(self) -> bool:
        """Whether the workers matter now."""
        return super().hears_workers or self.step is Step.COMPARING

    def handle(self, event: Event, now_ns: int) -> list[Instruction]:
        """Take one event and return what to do next, in order."""
        match event:
            case events.ChannelLost(channel=channel, reason=reason):
                self.record.outages.lost(channel, now_ns, reason)
                return []
            case events.ChannelResumed(channel=channel, again_bytes=again_bytes, route=route):
                self.record.outages.resumed(channel, now_ns, route=route, again_bytes=again_bytes)
                return self._reconnected(now_ns)
        comparison = self.comparison
        if self.step is not Step.COMPARING or comparison is None:
            return super().handle(event, now_ns)
        decided = comparison.handle(event, now_ns)
        if comparison.over:
            self.source_digest, self.peer_digest = comparison.source_digest, comparison.peer_digest
            self.error = comparison.error
            self.record.mark("compared", now_ns)
            self.step = Step.DONE
        return decided

    def _resumed(self, event: events.PeerResumed, now_ns: int) -> list[Instruction]:
        # Never before hand-over, whatever the peer reports.
        ran_ns = max(now_ns - event.since_ns, self.record.marks["loaded"])
        self.record.mark("resumed", ran_ns)
        self.record.mark("finished", ran_ns)
        self.machine.move(StatusEvent.RESUMED)
        if self.comparison is None:
            self.step = Step.DONE
            return [Do.FINISH]
        self.record.mark("comparing", now_ns)
        self.step = Step.COMPARING
        return self.comparison.begin(now_ns)

    def _reconnected(self, now_ns: int) -> list[Instruction]:
        """A channel has a connection again. A pause that waits for that begins with another round."""
        if self.step is not Step.RECONNECTING or self.record.outages.interrupted:
            return []
        return self._begin_round(Step.SENDING, now_ns)

    @abstractmethod
    def _begin_round(self, step: Step, now_ns: int) -> list[Instruction]:
        """Begin a round."""

    def _suspect(self, error: ParmigError, now_ns: int) -> list[Instruction]:
        if self.status is MigrationStatus.HAND_OVER:
            return self._end(StatusEvent.PEER_LOST, error)  # no better reason would change anything
        return super()._suspect(error, now_ns)

    def _ending(self, status: MigrationStatus) -> list[Instruction]:
        return [Do.GIVE_UP] if status is MigrationStatus.UNKNOWN else [Do.ABANDON]
