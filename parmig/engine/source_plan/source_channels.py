# SPDX-License-Identifier: Apache-2.0
"""What the source's plan does when a channel is lost or a send worker dies while the guest runs. Pure.

A worker that dies leaves nobody who knows what of its regions it had scanned, and what of that it had sent. So it takes
no part in its round any more. Another worker takes its place, and the next round sends all of these regions as if for
the first time. By then nothing of the dead worker can arrive any more: between two rounds all workers count. The new
one counts only once its receive worker has let it in, and that has closed the old connection before.
"""

from __future__ import annotations

from abc import abstractmethod

from parmig.engine.messages.worker_messages import CountDirty
from parmig.engine.plan import events
from parmig.engine.plan.events import Event, Instruct, Instruction, Replace
from parmig.engine.plan.round_work import RoundWork
from parmig.engine.source_plan.source_end import SourceEnd
from parmig.engine.source_plan.source_steps import Step
from parmig.status import BEFORE_HAND_OVER

_REPLACING = {
    Step.STARTING_LOG,
    Step.SCANNING,
    Step.SETTLING,
    Step.SENDING,
    Step.SYNCING_COUNT,
    Step.COUNTING,
    Step.RECONNECTING,
    Step.HOLDING,
    Step.BEFORE_PAUSE_PROGRAM,
    Step.REJOINING,
    Step.CHECKING_HELD,
}
"""Steps in which a send worker that dies is replaced. In the pause the guest would wait for that."""


class SourceChannels(SourceEnd):
    """Notes outages, and replaces workers.

    Attributes:
        replaces: whether channels outlive their connections, so that workers may be replaced.
    """

    replaces = False
    _work: RoundWork
    _waiting: set[int]

    def handle(self, event: Event, now_ns: int) -> list[Instruction]:
        """Take one event and return what to do next, in order."""
        match event:
            case events.ChannelLost(channel=channel, reason=reason):
                if self.status in BEFORE_HAND_OVER:  # later nothing depends on it
                    self.record.outages.lost(channel, now_ns, reason)
                return []
            case events.ChannelResumed(channel=channel, again_bytes=again_bytes, route=route):
                self.record.outages.resumed(channel, now_ns, route=route, again_bytes=again_bytes)
                return self._reconnected(now_ns)
        return super().handle(event, now_ns)

    def _reconnected(self, now_ns: int) -> list[Instruction]:
        """A channel has a connection again. A pause that waits for that begins with another round."""
        if self.step is not Step.RECONNECTING or self.record.outages.interrupted:
            return []
        return self._begin_round(Step.SENDING, now_ns)

    @property
    def replaces_workers(self) -> bool:
        """Whether a worker that dies now is replaced."""
        return self.replaces and self.step in _REPLACING

    def _replace(self, worker: int, reason: str, now_ns: int) -> list[Instruction]:
        lost: tuple[int, ...] = ()
        then: list[Instruction] = []
        match self.step:
            case Step.SCANNING if worker in self._waiting:
                lost = tuple(self._work.owned[worker])  # it may have re-armed pages that it did not note
                self._work.lost.update(lost)
                self._waiting.discard(worker)
                if not self._waiting:
                    then = self._all_scanned(now_ns)
            case Step.SENDING if self._work.takes_part(worker):
                lost = self._work.drop(worker)
                then = self._end_round(now_ns) if self._work.fenced(worker) else []
            case Step.COUNTING if worker in self._waiting:
                then = [Instruct(worker, CountDirty(tuple(self._work.owned[worker])))]
            case Step.CHECKING_HELD:
                then = self._replaced_in_check(worker)
        return [Replace(worker, reason, lost), *then]

    @abstractmethod
    def _all_scanned(self, now_ns: int) -> list[Instruction]:
        """All regions are scanned and re-armed."""

    @abstractmethod
    def _replaced_in_check(self, worker: int) -> list[Instruction]:
        """What the worker in place of *worker* has to do while a restarted destination is compared."""

    @abstractmethod
    def _begin_round(self, step: Step, now_ns: int) -> list[Instruction]:
        """Begin a round."""

    @abstractmethod
    def _end_round(self, now_ns: int) -> list[Instruction]:
        """All workers have ended their parts of the round."""
