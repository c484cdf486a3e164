# SPDX-License-Identifier: Apache-2.0
"""The plan of a snapshot: a migration's rounds and pause, then the guest runs again at once. Pure, as the coordinator.

After the scan that follows saving::

    let the guest go on ─ write the last of the file ─ digest it ─ give it its name ─ done
"""

from __future__ import annotations

from collections.abc import Sequence

from parmig.engine.messages.worker_messages import DigestRegions
from parmig.engine.plan.events import Do, Event, Instruct, Instruction, WorkerDigested
from parmig.engine.source_plan.coordinator import Coordinator
from parmig.engine.source_plan.source_steps import Step
from parmig.engine.work.policy import Limits
from parmig.ram.region_digest import combine
from parmig.ram.regions import Region
from parmig.snapshot.snapshot_events import Committed, Composed, WentOn
from parmig.status import StatusEvent


class SnapshotPlan(Coordinator):
    """Decides everything while a snapshot is written.

    Args:
        regions: all regions of all blocks.
        workers: how many.
        limits: for the policy.

    Attributes:
        file_digest: of the whole file, once it is known.
    """

    def __init__(self, regions: Sequence[Region], workers: int, limits: Limits) -> None:
        super().__init__(regions, workers, limits, verify=False)
        self.file_digest = ""
        self._pieces = 0

    def _release(self, now_ns: int) -> list[Instruction]:
        """All is saved; instead of a hand-over the guest runs again here."""
        self.record.mark("verified", now_ns)
        self.record.mark("loaded", now_ns)
        self.step = Step.GOING_ON
        return [Do.GO_ON]

    def _proceed(self, event: Event, now_ns: int) -> list[Instruction]:
        match self.step, event:
            case Step.GOING_ON, WentOn(ran_ns=ran_ns):
                self.record.mark("resumed", max(min(ran_ns, now_ns), self.record.marks["loaded"]))
                self.machine.move(StatusEvent.WENT_ON)
                self.step = Step.COMPOSING
                return [Do.COMPOSE]
            case Step.COMPOSING, Composed(pieces=pieces):
                self._pieces = pieces
                self.step = Step.SUMMING
                self._waiting = set(range(self._workers))
                # A worker takes every n-th piece: data and holes cluster, so contiguous pieces would be unequal work.
                return [Instruct(w, DigestRegions(tuple(range(w, pieces, self._workers)))) for w in self._waiting]
            case Step.SUMMING, WorkerDigested(worker=worker, digests=digests):
                self._digests |= digests
                self._waiting.discard(worker)
                if self._waiting:
                    return []
                self.file_digest = combine(self._digests, self._pieces)
                self.step = Step.COMMITTING
                return [Do.COMMIT]
            case Step.COMMITTING, Committed():
                self.record.mark("finished", now_ns)
                self.machine.move(StatusEvent.SAVED)
                self.step = Step.DONE
                return [Do.FINISH]
        return super()._proceed(event, now_ns)
