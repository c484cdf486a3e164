# SPDX-License-Identifier: Apache-2.0
"""The source's plan as a pure state machine: events in, instructions out, no I/O, no clock of its own.

The steps of a migration, in order. Each begins when everything that the one before has started is done::

    start the log ─ round 1 ─ count ─ (round n ─ count)* ─ pause ─ final round, and save state beside it
      ─ one more round ─ [digests] ─ release ─ (loaded) record, hand over ─ (resumed) [comparison] done

Saving may write RAM, so the round after it begins when the final round and saving are both done, in whatever order they
end. If each worker sends the same regions in both, the final round ends without a fence, when all is sent: the channel
keeps the order, and the fence of the last round confirms both. Before each round after the first, the guest's log is
brought up to date (bitmap logs only). A round hands out regions until none is left and ends with a fence of every
worker that takes part.

If devices may store into a page after a scan has reported it (direct I/O), a round of the running guest begins with two
more steps: all workers scan and re-arm their regions, then the guest settles. A write that was in flight at the scan
has landed before its page is read; one that begins later faults, and the next scan reports it. The paused guest needs
neither step: pausing waits for all device writes.
"""

from __future__ import annotations

from collections.abc import Sequence

from parmig.engine.messages.worker_messages import CountDirty, DigestRegions, ScanRegions
from parmig.engine.plan import events
from parmig.engine.plan.comparison import Comparison
from parmig.engine.plan.events import Do, Event, Instruct, Instruction, Throttle
from parmig.engine.plan.round_work import RoundKind, RoundWork
from parmig.engine.prediction.switchover import decide_predicted
from parmig.engine.reporting.record import Record
from parmig.engine.source_plan.source_pause import SourcePause
from parmig.engine.source_plan.source_steps import Step, does_not_converge, overdue, took_too_long
from parmig.engine.work.policy import Limits, Verdict, next_throttle_percent
from parmig.errors import ParmigError, ProtocolError
from parmig.ram.region_digest import combine
from parmig.ram.regions import Region
from parmig.ram.shared import WorkerCounters
from parmig.status import StatusEvent

PEER_EVENTS = (events.PeerDigested, events.PeerDigests, events.PeerLoaded, events.PeerResumed, events.PeerRefused)
"""What the destination causes: at the wrong time it breaks the protocol."""


class Coordinator(SourcePause):
    """Decides everything on the source. Feed it events; carry out what it returns, in order.

    Args:
        regions: all regions of all blocks.
        workers: how many send workers.
        limits: for the policy.
        verify: compare digests before hand-over.
        remembering: workers remember what they have sent, so regions stay with their last sender.
        comparison: what to compare after the hand-over, if anything.
        may_ask: the destination answers a source that lost it after the hand-over, and asks.
        replaces: channels outlive their connections, so that workers may be replaced.
    """

    _cancelled = "cancelled; the guest continues here"
    _unknown = (
        "the guest may run at the destination, so it stays paused here; "
        "look there, and run parmig recover here, which asks the destination"
    )

    def __init__(
        self,
        regions: Sequence[Region],
        workers: int,
        limits: Limits,
        *,
        verify: bool,
        remembering: bool = False,
        comparison: Comparison | None = None,
        may_ask: bool = False,
        replaces: bool = False,
    ) -> None:
        super().__init__()
        self.regions = regions
        self._workers = workers
        self.limits = limits
        self._verify, self.comparison = verify, comparison
        self._work = RoundWork(regions, workers, remembering=remembering)
        self.may_ask, self.replaces = may_ask, replaces
        self._needs_sync = self._settles = self._saved = False
        self._waiting = set[int]()
        self._digests: dict[int, int] = {}
        self.total_pages = self._work.total_pages
        self.record = Record(workers, self.total_pages)
        self.step: Step = Step.SETUP
        self.round = self._counted = 0
        self.state_bytes, self.state_digest = 0, ""
        self.source_digest: str | None = None
        self.peer_digest: str | None = None

    @property
    def saves_at_once(self) -> bool:
        """Whether saving may begin right behind the pause: between them nothing is to be done to the guest."""
        return not self._needs_sync and not self.record.throttle_percent

    def _proceed(self, event: Event, now_ns: int) -> list[Instruction]:
        match self.step, event:
            case _, events.Throttled():
                return []
            case Step.SETUP, events.WorkersReady():
                self.machine.move(StatusEvent.CONFIGURED)
                self.step = Step.STARTING_LOG
                return [Do.START_LOG]
            case Step.STARTING_LOG, events.LogStarted():
                self._needs_sync, self._settles = event.needs_sync, event.settles
                self.record.nearness = self._work.settle(event.homes)
                self._work.expect(event.begun)
                self.record.mark("active", now_ns)
                return self._begin_round(Step.SENDING, now_ns)
            case Step.SCANNING, events.WorkerScanned(worker=worker):
                self._waiting.discard(worker)
                return [] if self._waiting else self._all_scanned(now_ns)
            case Step.SETTLING, events.GuestSettled(took_ns=took_ns):
                self.record.settled(took_ns)
                return self._all_settled(now_ns)
            case ((Step.SENDING | Step.FINAL | Step.RESCANNING), events.WorkerIdle(worker=worker, load=load)):
                return self._work.idle(worker, load, now_ns)
            case ((Step.SENDING | Step.FINAL | Step.RESCANNING), events.WorkerFenced(worker=worker, counters=counters)):
                return self._fenced(worker, counters, now_ns)
            case Step.FINAL, events.WorkerSent(worker=worker, counters=counters):
                return self._fenced(worker, counters, now_ns)
            case Step.SYNCING_COUNT, events.LogSynced():
                return self._count()
            case Step.COUNTING, events.WorkerCounted(worker=worker, pages=pages, by_region=by_region):
                self._work.counted(worker, by_region)
                return self._add_count(worker, pages, now_ns)
            case Step.PAUSING, events.GuestPaused(stopped_ns=stopped_ns):
                self.machine.move(StatusEvent.PAUSED)
                self.record.mark("stopped", min(stopped_ns, now_ns))
                self.record.mark("paused", now_ns)
                lifted = self._throttle(0)  # not earlier: until its pause it would write at full speed
                # Saving takes longer than the instructions to the workers, so it begins first.
                if not self._needs_sync:
                    return [*lifted, Do.SAVE_STATE, *self._begin_round(Step.FINAL, now_ns)]
                self.step = Step.SYNCING_FINAL
                return [*lifted, Do.SYNC_LOG, Do.SAVE_STATE]
            case Step.SYNCING_FINAL, events.LogSynced():
                return self._begin_round(Step.FINAL, now_ns)
            case ((Step.SYNCING_FINAL | Step.FINAL | Step.SAVING), events.StateSaved()) if not self._saved:
                self._saved = True
                self.state_bytes, self.state_digest = event.size_bytes, event.digest
                self.record.state_save_ns = event.took_ns
                return self._rescan(now_ns) if self.step is Step.SAVING else []
            case Step.SYNCING_AGAIN, events.LogSynced():
                return self._begin_round(Step.RESCANNING, now_ns)
            case Step.DIGESTING, events.WorkerDigested(worker=worker, digests=digests):
                self._digests |= digests
                self._waiting.discard(worker)
                return self._compare(now_ns)
            case Step.DIGESTING, events.PeerDigested(digest=digest):
                self.peer_digest = digest
                return self._compare(now_ns)
            case ((Step.LOADING | Step.RESUMING), events.PeerDigested(digest=digest)) if digest == self.peer_digest:
                return []  # the same digest once more does no harm
        if (decided := self._checking(event, now_ns)) is not None:
            return decided
        if (decided := self._proceed_end(event, now_ns)) is not None:
            return decided
        kind = ProtocolError if isinstance(event, PEER_EVENTS) else ParmigError
        return self._fail(kind(f"{type(event).__name__} came while {self.step.value}"))

    # -- rounds ---------------------------------------------------------------------------------

    def _rescan(self, now_ns: int) -> list[Instruction]:
        """The final round and saving are done; saving may have written RAM."""
        self.record.mark("saved", now_ns)
        if not self._needs_sync:
            return self._begin_round(Step.RESCANNING, now_ns)
        self.step = Step.SYNCING_AGAIN
        return [Do.SYNC_LOG]

    def _begin_round(self, step: Step, now_ns: int) -> list[Instruction]:
        self.round += 1
        self._work.take_up()
        self.record.begin_round(now_ns)
        if not ((self._settles or self._checks) and step is Step.SENDING):
            return self._hand_out(step, now_ns)
        return self._begin_scan()

    def _begin_scan(self) -> list[Instruction]:
        self.step = Step.SCANNING
        self._waiting = set(range(self._workers))
        return [Instruct(worker, ScanRegions(tuple(owned))) for worker, owned in enumerate(self._work.owned)]

    def _hand_out(self, step: Step, now_ns: int, *, scanned: bool = False) -> list[Instruction]:
        self.step = step
        kinds = {Step.FINAL: RoundKind.FINAL, Step.RESCANNING: RoundKind.RESCAN}
        kind = kinds.get(step, RoundKind.RUNNING)
        scanned |= self._settles and kind is RoundKind.RUNNING
        return self._work.begin(self.round, kind, self.record.dirty_pages, now_ns, scanned=scanned)

    def _fenced(self, worker: int, counters: WorkerCounters, now_ns: int) -> list[Instruction]:
        self.record.fenced(worker, counters)
        return self._end_round(now_ns) if self._work.fenced(worker) else []

    def _end_round(self, now_ns: int) -> list[Instruction]:
        self.record.end_round(now_ns, paused=self.step is not Step.SENDING, stolen=self._work.stolen)
        if self.step is Step.SENDING:
            if self._needs_sync:
                self.step = Step.SYNCING_COUNT
                return [Do.SYNC_LOG]
            return self._count()
        if self.step is Step.FINAL:
            self.record.mark("final", now_ns)
            self.machine.move(StatusEvent.RAM_COMPLETE)
            self.step = Step.SAVING
            return self._rescan(now_ns) if self._saved else []
        self.record.mark("rescanned", now_ns)
        return self._digest() if self._verify else self._release(now_ns)

    def _count(self) -> list[Instruction]:
        self.step = Step.COUNTING
        self._counted = 0
        self._waiting = set(range(self._workers))
        return [Instruct(worker, CountDirty(tuple(owned))) for worker, owned in enumerate(self._work.owned)]

    def _add_count(self, worker: int, pages: int, now_ns: int) -> list[Instruction]:
        self._counted += pages
        self._waiting.discard(worker)
        if self._waiting:
            return []
        self.record.remaining(self._counted)
        if self._work.lost:
            return self._begin_round(Step.SENDING, now_ns)
        match self._verdict(now_ns):
            case Verdict.CONTINUE:
                throttled = self._throttle(next_throttle_percent(self.record.facts, self.limits))
                return throttled + self._begin_round(Step.SENDING, now_ns)
            case Verdict.HOLD:
                return self._hold(now_ns)
            case Verdict.PAUSE:
                return self._begin_pause(now_ns)
            case Verdict.STALLED:
                return self._fail(does_not_converge(self.record, self.limits))
            case Verdict.TIMEOUT:
                return self._fail(took_too_long(self.record, self.limits))

    def _verdict(self, now_ns: int) -> Verdict:
        elapsed_ns = now_ns - self.record.marks["active"]
        return decide_predicted(self.record.facts, self.limits, elapsed_ns, self.total_pages)

    def _throttle(self, percent: int) -> list[Instruction]:
        if percent == self.record.throttle_percent:
            return []
        self.record.throttle(percent)
        return [Throttle(percent)]

    # -- the end --------------------------------------------------------------------------------

    def _digest(self) -> list[Instruction]:
        self.step = Step.DIGESTING
        self._waiting = set(range(self._workers))
        asked: list[Instruction] = [Do.ASK_DIGEST]
        return asked + [Instruct(w, DigestRegions(tuple(owned))) for w, owned in enumerate(self._work.owned)]

    def _compare(self, now_ns: int) -> list[Instruction]:
        if self._waiting or self.peer_digest is None:
            return []
        self.source_digest = combine(self._digests, len(self.regions))
        if self.source_digest != self.peer_digest:
            message = (
                f"the memories differ: digest {self.source_digest} here, {self.peer_digest} at the destination; "
                "something besides parmig wrote to one of them"
            )
            return self._fail(ParmigError(message))
        return self._release(now_ns)

    def _release(self, now_ns: int) -> list[Instruction]:
        self.record.mark("verified", now_ns)
        self.step = Step.LOADING
        return [Do.RELEASE]

    def _check_time(self, now_ns: int) -> list[Instruction]:
        error = overdue(self.record, self.status, self.step, self.limits, now_ns)
        return self._work.look_again(now_ns) if error is None else self._fail(error)
