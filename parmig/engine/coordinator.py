# SPDX-License-Identifier: Apache-2.0
"""The source's plan as a pure state machine: events in, instructions out, no I/O, no clock of its own.

The steps of a migration, in order; each waits for everything the one before it started::

    start the log ─ round 1 ─ count ─ (round n ─ count)* ─ pause ─ final round ─ save state
      ─ one more round ─ [digests] ─ release ─ (loaded) hand over ─ (resumed) done

Before each round after the first, the guest's log is brought up to date (bitmap logs only). A round
hands out regions until none is left and ends with a fence on every channel.

Where devices may store into a page after a scan has reported it (direct I/O), a round of the running guest has
two steps before that: all workers scan and re-arm their regions, then the guest settles. A write that was in flight
at the scan has landed before its page is read; one that begins later faults, and the next scan reports it. The paused
guest needs neither step: pausing waits for all device writes.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

from parmig.engine.events import (
    CancelAsked,
    Do,
    Event,
    Failed,
    GuestPaused,
    GuestSettled,
    Instruction,
    LogStarted,
    LogSynced,
    PeerDigested,
    PeerLoaded,
    PeerResumed,
    PeerVanished,
    StateSaved,
    Tell,
    Throttle,
    Throttled,
    Tick,
    WorkerCounted,
    WorkerDigested,
    WorkerFenced,
    WorkerIdle,
    WorkerScanned,
    WorkersReady,
)
from parmig.engine.policy import Limits, Verdict, decide, expected_downtime_ns, next_throttle_percent
from parmig.engine.record import Record
from parmig.engine.shares import Shares, assign
from parmig.engine.worker_messages import CountDirty, DigestRegions, Fence, ScanRegions, SendRegions
from parmig.errors import (
    CancelledError,
    LimitExceededError,
    NotConvergingError,
    OutcomeUnknownError,
    ParmigError,
    ProtocolError,
)
from parmig.ram.blocks import PAGE_BYTES
from parmig.ram.region_digest import combine
from parmig.ram.regions import Region
from parmig.ram.shared import WorkerCounters
from parmig.status import MigrationStatus, StatusEvent, StatusMachine
from parmig.units import NS_PER_MS, format_ms, format_rate, format_size

WHOLE_PAGES = 2048
"""With at most so many dirty pages (8 MiB, some 8 ms of one channel) each worker gets all of its regions at once:
twenty bundles, each with its answer, took 10 ms of a pause, the pages themselves 2."""


class Step(enum.Enum):
    """What the coordinator waits for."""

    SETUP = "setup"
    STARTING_LOG = "starting the dirty log"
    SCANNING = "scanning for dirty pages"
    SETTLING = "waiting for the guest's disk requests in flight"
    SENDING = "sending"
    SYNCING_COUNT = "syncing the dirty log"
    COUNTING = "counting dirty pages"
    PAUSING = "pausing the guest"
    SYNCING_FINAL = "syncing the dirty log of the paused guest"
    FINAL = "sending the last pages"
    SAVING = "saving device state"
    SYNCING_AGAIN = "syncing the dirty log after saving"
    RESCANNING = "scanning once more after saving"
    DIGESTING = "comparing digests"
    LOADING = "loading device state at the destination"
    RESUMING = "resuming at the destination"
    GOING_ON = "letting the guest go on"
    COMPOSING = "writing the last of the file"
    SUMMING = "digesting the file"
    COMMITTING = "giving the file its name"
    DONE = "done"


def _unknown(cause: ParmigError) -> OutcomeUnknownError:
    error = OutcomeUnknownError(
        f"{cause}, after hand-over: the guest may run at the destination, so it stays paused here; "
        "look there, and only if it does not run, continue it here"
    )
    error.__cause__ = cause
    return error


class Coordinator:
    """Decides everything on the source. Feed it events; carry out what it returns, in order.

    Args:
        regions: all regions of all blocks.
        workers: how many send workers.
        limits: for the policy.
        verify: compare digests before hand-over.
    """

    def __init__(self, regions: Sequence[Region], workers: int, limits: Limits, *, verify: bool) -> None:
        self._regions = regions
        self._workers = workers
        self._limits = limits
        self._verify = verify
        self._owned = assign([region.pages for region in regions], workers)
        self._needs_sync = False
        self._settles = False
        self._shares = Shares([])
        self._waiting: set[int] = set()
        self._fencing: set[int] = set()
        self._counted = 0
        self._digests: dict[int, int] = {}
        self._peer_digest: str | None = None
        self.total_pages = sum(region.pages for region in regions)
        self.machine = StatusMachine()
        self.record = Record(workers, self.total_pages)
        self.step = Step.SETUP
        self.round = 0
        self.error: ParmigError | None = None
        self.state_bytes = 0
        self.state_digest = ""
        self.source_digest: str | None = None
        self.machine.move(StatusEvent.STARTED)

    @property
    def status(self) -> MigrationStatus:
        """Where the migration is."""
        return self.machine.status

    @property
    def peer_digest(self) -> str | None:
        """The destination's digest, once told."""
        return self._peer_digest

    def handle(self, event: Event, now_ns: int) -> list[Instruction]:
        """Take one event and return what to do next, in order. After the end everything is ignored."""
        if self.machine.ended:
            return []
        match event:
            case Failed(error=error):
                return self._end(StatusEvent.ERROR, error)
            case PeerVanished(error=error):
                return self._end(StatusEvent.PEER_LOST, error)
            case CancelAsked():
                return self._cancel()
            case Tick():
                return self._check_time(now_ns)
            case Throttled():
                return []
        return self._proceed(event, now_ns)

    def _proceed(self, event: Event, now_ns: int) -> list[Instruction]:
        match self.step, event:
            case Step.SETUP, WorkersReady():
                self.machine.move(StatusEvent.CONFIGURED)
                self.step = Step.STARTING_LOG
                return [Do.START_LOG]
            case Step.STARTING_LOG, LogStarted(needs_sync=needs_sync, settles=settles):
                self._needs_sync, self._settles = needs_sync, settles
                self.record.mark("active", now_ns)
                return self._begin_round(Step.SENDING, now_ns)
            case Step.SCANNING, WorkerScanned(worker=worker):
                self._waiting.discard(worker)
                if self._waiting:
                    return []
                self.step = Step.SETTLING
                return [Do.SETTLE]
            case Step.SETTLING, GuestSettled(took_ns=took_ns):
                self.record.settled(took_ns)
                return self._hand_out(Step.SENDING)
            case ((Step.SENDING | Step.FINAL | Step.RESCANNING), WorkerIdle(worker=worker)):
                return self._feed(worker)
            case ((Step.SENDING | Step.FINAL | Step.RESCANNING), WorkerFenced(worker=worker, counters=counters)):
                return self._fenced(worker, counters, now_ns)
            case Step.SYNCING_COUNT, LogSynced():
                return self._count()
            case Step.COUNTING, WorkerCounted(worker=worker, pages=pages):
                return self._add_count(worker, pages, now_ns)
            case Step.PAUSING, GuestPaused(stopped_ns=stopped_ns):
                self.machine.move(StatusEvent.PAUSED)
                self.record.mark("stopped", min(stopped_ns, now_ns))
                self.record.mark("paused", now_ns)
                lifted = self._throttle(0)  # not before: it would write at full speed until it is paused
                return self._sync_then(Step.SYNCING_FINAL, Step.FINAL, now_ns) + lifted
            case Step.SYNCING_FINAL, LogSynced():
                return self._begin_round(Step.FINAL, now_ns)
            case Step.SAVING, StateSaved(size_bytes=size_bytes, digest=digest):
                self.state_bytes, self.state_digest = size_bytes, digest
                self.record.mark("saved", now_ns)
                return self._sync_then(Step.SYNCING_AGAIN, Step.RESCANNING, now_ns)
            case Step.SYNCING_AGAIN, LogSynced():
                return self._begin_round(Step.RESCANNING, now_ns)
            case Step.DIGESTING, WorkerDigested(worker=worker, digests=digests):
                self._digests |= digests
                self._waiting.discard(worker)
                return self._compare(now_ns)
            case Step.DIGESTING, PeerDigested(digest=digest):
                self._peer_digest = digest
                return self._compare(now_ns)
            case ((Step.LOADING | Step.RESUMING), PeerDigested(digest=digest)) if digest == self._peer_digest:
                return []  # said twice, and the same: no harm
            case Step.LOADING, PeerLoaded(load_ns=load_ns):
                self.record.load_ns = load_ns
                self.record.mark("loaded", now_ns)
                self.machine.move(StatusEvent.HANDED_OVER)
                self.step = Step.RESUMING
                return [Do.HAND_OVER]
            case Step.RESUMING, PeerResumed(since_ns=since_ns):
                # Never before hand-over, whatever the peer says.
                ran_ns = max(now_ns - since_ns, self.record.marks["loaded"])
                self.record.mark("resumed", ran_ns)
                self.record.mark("finished", ran_ns)
                self.machine.move(StatusEvent.RESUMED)
                self.step = Step.DONE
                return [Do.FINISH]
        kind = ProtocolError if isinstance(event, PeerDigested | PeerLoaded | PeerResumed) else ParmigError
        return self._end(StatusEvent.ERROR, kind(f"{type(event).__name__} came while {self.step.value}"))

    # -- rounds ---------------------------------------------------------------------------------

    def _sync_then(self, syncing: Step, sending: Step, now_ns: int) -> list[Instruction]:
        if not self._needs_sync:
            return self._begin_round(sending, now_ns)
        self.step = syncing
        return [Do.SYNC_LOG]

    def _begin_round(self, step: Step, now_ns: int) -> list[Instruction]:
        self.round += 1
        self.record.begin_round(now_ns)
        if not (self._settles and step is Step.SENDING):
            return self._hand_out(step)
        self.step = Step.SCANNING
        self._waiting = set(range(self._workers))
        return [Tell(worker, ScanRegions(tuple(self._owned[worker]))) for worker in range(self._workers)]

    def _hand_out(self, step: Step) -> list[Instruction]:
        self.step = step
        few = bool(self.record.facts) and self.record.facts[-1].remaining_pages <= WHOLE_PAGES
        self._shares = Shares(self._owned, whole=few)
        self._waiting = set(range(self._workers))
        self._fencing = set()
        instructions: list[Instruction] = []
        for _ in range(2):  # a second bundle each, so that no worker waits for an answer
            for worker in range(self._workers):
                instructions += self._feed(worker)
        return instructions

    def _feed(self, worker: int) -> list[Instruction]:
        regions = self._shares.take(worker)
        if regions:
            scanned = self._settles and self.step is Step.SENDING
            holes = self.step is not Step.RESCANNING
            return [Tell(worker, SendRegions(self.round, regions, self.round == 1, holes, scanned))]
        if worker in self._fencing:
            return []
        # Nothing is left to hand out to anyone, so the fence may follow what this worker still has.
        self._fencing.add(worker)
        return [Tell(worker, Fence(self.round))]

    def _fenced(self, worker: int, counters: WorkerCounters, now_ns: int) -> list[Instruction]:
        self.record.fenced(worker, counters)
        self._waiting.discard(worker)
        if self._waiting:
            return []
        self.record.end_round(now_ns, paused=self.step is not Step.SENDING, stolen=self._shares.stolen)
        if self.step is Step.SENDING:
            if self._needs_sync:
                self.step = Step.SYNCING_COUNT
                return [Do.SYNC_LOG]
            return self._count()
        if self.step is Step.FINAL:
            self.record.mark("final", now_ns)
            self.machine.move(StatusEvent.RAM_COMPLETE)
            self.step = Step.SAVING
            return [Do.SAVE_STATE]
        self.record.mark("rescanned", now_ns)
        return self._digest() if self._verify else self._release(now_ns)

    def _count(self) -> list[Instruction]:
        self.step = Step.COUNTING
        self._counted = 0
        self._waiting = set(range(self._workers))
        return [Tell(worker, CountDirty(tuple(self._owned[worker]))) for worker in range(self._workers)]

    def _add_count(self, worker: int, pages: int, now_ns: int) -> list[Instruction]:
        self._counted += pages
        self._waiting.discard(worker)
        if self._waiting:
            return []
        self.record.remaining(self._counted)
        match decide(self.record.facts, self._limits, now_ns - self.record.marks["active"]):
            case Verdict.CONTINUE:
                throttled = self._throttle(next_throttle_percent(self.record.facts, self._limits))
                return throttled + self._begin_round(Step.SENDING, now_ns)
            case Verdict.PAUSE:
                self.step = Step.PAUSING
                self.record.mark("pausing", now_ns)
                return [Do.PAUSE]
            case Verdict.STALLED:
                return self._end(StatusEvent.ERROR, self._stalled())
            case Verdict.TIMEOUT:
                return self._time_is_up()

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
        return asked + [Tell(w, DigestRegions(tuple(self._owned[w]))) for w in range(self._workers)]

    def _compare(self, now_ns: int) -> list[Instruction]:
        if self._waiting or self._peer_digest is None:
            return []
        self.source_digest = combine(self._digests, len(self._regions))
        if self.source_digest != self._peer_digest:
            message = (
                f"the memories differ: digest {self.source_digest} here, {self._peer_digest} at the destination; "
                "something besides parmig wrote to one of them"
            )
            return self._end(StatusEvent.ERROR, ParmigError(message))
        return self._release(now_ns)

    def _release(self, now_ns: int) -> list[Instruction]:
        self.record.mark("verified", now_ns)
        self.step = Step.LOADING
        return [Do.RELEASE]

    def _cancel(self) -> list[Instruction]:
        if self.status is MigrationStatus.HAND_OVER:
            return []  # too late: the guest belongs to the destination
        return self._end(StatusEvent.CANCEL, CancelledError("cancelled; the guest goes on here"))

    def _end(self, event: StatusEvent, error: ParmigError) -> list[Instruction]:
        after = self.machine.move(event)
        if after is MigrationStatus.UNKNOWN and not isinstance(error, OutcomeUnknownError):
            error = _unknown(error)
        error.phase = error.phase or self.step.value
        self.error = error
        return [Do.GIVE_UP] if after is MigrationStatus.UNKNOWN else [Do.ABANDON]

    def _check_time(self, now_ns: int) -> list[Instruction]:
        marks = self.record.marks
        if "pausing" in marks:
            began_ns = marks["loaded"] if self.status is MigrationStatus.HAND_OVER else marks["pausing"]
            limited = self._limits.switchover_ns and self.status is not MigrationStatus.FINISHING  # it goes on already
            return self._pause_is_over() if limited and now_ns - began_ns >= self._limits.switchover_ns else []
        if self.status is not MigrationStatus.ACTIVE or not self._limits.timeout_ns or "active" not in marks:
            return []
        return self._time_is_up() if now_ns - marks["active"] >= self._limits.timeout_ns else []

    def _pause_is_over(self) -> list[Instruction]:
        limit = format_ms(self._limits.switchover_ns / NS_PER_MS)
        message = f"{self.step.value} did not end within the {limit} that a switchover may take"
        if self.status is not MigrationStatus.HAND_OVER:
            message += "; see what hangs there, or raise --switchover-timeout"
        return self._end(StatusEvent.ERROR, LimitExceededError(message))

    def _time_is_up(self) -> list[Instruction]:
        limit = format_ms(self._limits.timeout_ns / NS_PER_MS)
        message = (
            f"not ready to pause after {limit} and {len(self.record.facts)} rounds; {self._outlook()}"
            "raise --timeout or --downtime-limit"
        )
        return self._end(StatusEvent.ERROR, LimitExceededError(message))

    def _stalled(self) -> NotConvergingError:
        limits = f"--downtime-limit {format_ms(self._limits.downtime_ns / NS_PER_MS)}"
        if self._limits.max_downtime_ns:
            limits += f" and --max-downtime {format_ms(self._limits.max_downtime_ns / NS_PER_MS)}"
        percent = self.record.throttle_percent
        throttled, advice = (f", even throttled by {percent} %", "") if percent else ("", " (--auto-converge)")
        return NotConvergingError(
            f"the guest dirties memory as fast as it can be sent{throttled}: {self._outlook()}beyond {limits}; "
            f"allow a longer pause, give it more bandwidth, or slow the guest{advice}"
        )

    def _outlook(self) -> str:
        facts = self.record.facts
        if not facts:
            return ""
        moved = max(facts, key=lambda one: one.sent_bytes)
        rate = moved.sent_bytes * 1e9 / max(1, moved.duration_ns)
        return (
            f"{format_size(facts[-1].remaining_pages * PAGE_BYTES)} remain, at {format_rate(rate)} a pause of "
            f"{format_ms(expected_downtime_ns(facts) / NS_PER_MS)}, "
        )
