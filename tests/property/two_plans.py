# SPDX-License-Identifier: Apache-2.0
"""Both plans, driven against each other without a process or a socket: guests, workers and network are queues.

Each queue keeps its order; which queue moves next is up to chance. So messages of different channels, and what
happens on the two hosts, come in any order.
"""

from __future__ import annotations

import functools
import random
from collections import deque
from collections.abc import Callable

import numpy as np

from parmig.engine.destination_plan.destination import DestinationPlan
from parmig.engine.messages import peer_messages as m
from parmig.engine.messages.digest_messages import Digested, DigestRequest, Digests, DigestsRequest
from parmig.engine.messages.handover_messages import Refused
from parmig.engine.messages.worker_messages import (
    CheckHeld,
    CountDirty,
    DigestPages,
    DigestRegions,
    Fence,
    Instruction,
    ScanRegions,
    SendRegions,
)
from parmig.engine.plan import destination_events as d
from parmig.engine.plan import events as s
from parmig.engine.plan.comparison import Comparison
from parmig.engine.plan.destination_events import Act
from parmig.engine.plan.events import Do, Instruct
from parmig.engine.plan.held_events import PeerRestarted, WorkerCheckedHeld
from parmig.engine.records.handover_record import RecordState
from parmig.engine.reporting.error_reports import describe_error
from parmig.engine.source_plan.coordinator import Coordinator
from parmig.engine.source_plan.source_steps import Step
from parmig.engine.work.policy import Limits
from parmig.errors import GuestError, PeerFailedError, PeerLostError, ProtocolError
from parmig.ram.blocks import PAGE_BYTES, RamBlock
from parmig.ram.page_digests import pack
from parmig.ram.regions import Region
from parmig.ram.shared import WorkerCounters
from parmig.status import BEFORE_HAND_OVER, MigrationStatus
from parmig.units import NS_PER_MS, NS_PER_S

REGIONS = [Region(0, number * 512, 512) for number in range(4)]
BLOCK = RamBlock("ram", 4 * 512 * PAGE_BYTES)
STATE = [(10, "ten"), (20, "twenty")]
"""Size and digest of the device state after each of its messages."""

KINDS = (
    *("cut", "hang", "drop", "repeat", "outage", "restart destination"),
    *("kill source", "kill destination", "cancel source", "cancel destination", "fail source", "fail destination"),
)
"""What may go wrong: the connections are cut; they carry nothing any more, and nobody is told; the next message is
lost, or arrives twice; the control channel has no connection for a while; the receiver is killed and started again; a
side is killed or cancelled; a worker of a side fails."""

TO_DESTINATION, TO_SOURCE, STATE_CHANNEL = "control to destination", "control to source", "state"
CONTROL = (TO_DESTINATION, TO_SOURCE)
NETWORK = (TO_DESTINATION, TO_SOURCE, STATE_CHANNEL)


CHANGES = (
    (RecordState.OPEN, RecordState.HANDED_OVER),
    (RecordState.HANDED_OVER, RecordState.RETURNED),
    (RecordState.HANDED_OVER, RecordState.COMPLETED),
    (RecordState.OPEN, RecordState.PREPARED),
    (RecordState.PREPARED, RecordState.TAKEN),
    (RecordState.PREPARED, RecordState.REFUSED),
)
"""All that may follow each other in a record."""


class KilledError(Exception):
    """The side that carries out an instruction is gone."""


class World:
    """Two hosts and what is between them.

    Args:
        seed: of chance.
        workers: on each side.
        verify: compare digests "before" or "after" the hand-over; empty: not at all.
        runs: whether the guest runs at its pause, and so shall run at the destination.
        faults: what goes wrong, each at the step with this number.
        may_ask: the source asks for its guest after it lost the destination.
    """

    def __init__(
        self, seed: int, workers: int, *, verify: str, runs: bool, faults: dict[int, str], may_ask: bool = True
    ) -> None:
        self.random = random.Random(seed)
        self.faults = faults
        self.now_ns = 10**9
        self.steps = 0
        self.workers = workers
        self.runs = runs
        limits = Limits(300 * NS_PER_MS, 0, 600 * NS_PER_S, switchover_ns=10 * NS_PER_S)
        comparison = Comparison(REGIONS, [BLOCK], workers) if verify == "after" else None
        self.source = Coordinator(
            REGIONS, workers, limits, verify=verify == "before", comparison=comparison, may_ask=may_ask
        )
        self._plan_there = functools.partial(
            DestinationPlan,
            REGIONS,
            workers,
            verify=bool(verify),
            compared=verify == "after",
            may_ask=may_ask,
            switchover_ns=limits.switchover_ns,
            max_state_bytes=1000,
        )
        self.destination = self._plan_there(now_ns=self.now_ns)
        self.waiting: dict[str, deque[Callable[[], None]]] = {}  # in an outage: what arrives after it
        self.restarts = 0
        self.dark = False  # what is sent is lost with the receiver that was killed
        # What happens next, by where it happens. A call returns nothing.
        self.queues: dict[str, deque[Callable[[], None]]] = {}
        self.alive = {"source": True, "destination": True}
        self.cut = self.hangs = False
        self.lose_next = self.repeat_next = False
        self.source_runs = runs
        self.destination_runs = False
        self.discarded = False
        self.guarded = False
        self.hand_over_sent = self.hand_over_taken = self.refused = False
        self.listens = False
        self.records = {"source": RecordState.OPEN, "destination": RecordState.OPEN}
        self.damaged: dict[int, int] = {}
        for worker in range(workers):
            self.put_event("destination", f"destination worker {worker}", d.WorkerListens(worker))

    # -- what holds at every instant -------------------------------------------------------------

    def check(self) -> None:
        assert not (self.source_runs and self.destination_runs), "both run"

    # -- going on --------------------------------------------------------------------------------

    def run(self) -> None:
        """Until both plans are over or their sides are gone, and nothing is left to happen."""
        for _ in range(5000):
            ready = [name for name, queue in self.queues.items() if queue]
            if not ready:
                if self.is_over("source") and self.is_over("destination"):
                    return
                self.now_ns += NS_PER_S
                self.tick()
                continue
            self.now_ns += self.random.randrange(1, 20 * NS_PER_MS)
            self.step()
            ready = [name for name, queue in self.queues.items() if queue]
            if ready:
                self.queues[self.random.choice(ready)].popleft()()
            if self.random.random() < 0.1:
                self.tick()
            self.check()
        raise AssertionError("it does not end")

    def is_over(self, side: str) -> bool:
        plan = self.source if side == "source" else self.destination
        return plan.over or not self.alive[side]

    def tick(self) -> None:
        if self.source.step is Step.ASKING and self.alive["source"] and self.random.random() < 0.5:
            self.ask()
        self.feed("source", s.Tick())
        self.feed("destination", d.Tick())

    def step(self) -> None:
        """Something is about to happen: it may be that something goes wrong first."""
        fault = self.faults.get(self.steps, "")
        self.steps += 1
        side = fault.rpartition(" ")[2]
        match fault.split():
            case ["cut"]:
                self.cut_network()
            case ["hang"]:
                self.hangs = True
            case ["drop"]:
                self.lose_next = True
            case ["repeat"]:
                self.repeat_next = True
            case ["outage"]:
                self.interrupt()
            case ["restart", _]:
                self.restart_destination()
            case ["kill", _]:
                self.kill(side)
            case ["cancel", _]:
                self.put_event(side, f"{side} user", s.CancelAsked())
            case ["fail", _]:
                self.put(f"{side} worker 0", lambda: self.fail(side))

    def fail(self, side: str) -> None:
        plan = self.source if side == "source" else self.destination
        if plan.hears_workers:  # else no driver listens to a worker
            self.feed(side, s.Failed(GuestError("a worker failed")))

    def feed(self, side: str, event: s.Event) -> None:
        if not self.alive[side]:
            return
        try:
            if side == "source":
                for instruction in self.source.handle(event, self.now_ns):
                    self.step()
                    self.at_source(instruction)
            else:
                for told in self.destination.handle(event, self.now_ns):
                    self.step()
                    self.at_destination(told)
        except KilledError:
            pass
        self.check()

    def put(self, name: str, call: Callable[[], None]) -> None:
        self.queues.setdefault(name, deque()).append(call)

    def put_event(self, side: str, name: str, event: s.Event) -> None:
        self.put(name, lambda: self.feed(side, event))

    # -- the network -----------------------------------------------------------------------------

    def send(self, channel: str, arrive: Callable[[], None]) -> None:
        if self.cut or self.hangs or (self.dark and channel in CONTROL):
            return
        if self.lose_next:
            self.lose_next = False
            return
        queues = self.waiting if channel in self.waiting else self.queues
        for _ in range(2 if self.repeat_next else 1):
            queues.setdefault(channel, deque()).append(arrive)
        self.repeat_next = False

    def goes_on(self) -> bool:
        """Whether a loss of the control channel is survived now: it is no more once the pause begins."""
        both = all(self.alive.values()) and self.destination.established
        return both and self.source.status is MigrationStatus.ACTIVE and self.source.step is not Step.PAUSING

    def interrupt(self) -> None:
        """The control channel loses its connection, and gets another one after a while, with all that was under way."""
        if self.cut or self.waiting or not self.goes_on():
            self.cut_network()
            return
        self.waiting = {channel: self.queues.pop(channel, deque()) for channel in CONTROL}
        self.destination.interrupted = True
        self.put("network", self.notice_outage)

    def notice_outage(self) -> None:
        """The source notices it, and the outage lasts longer than a source may be silent."""
        if not self.goes_on():
            self.cut_network()
            return
        self.feed("source", s.ChannelLost("control", "cut"))
        for _ in range(20):
            self.now_ns += 10 * NS_PER_S
            self.tick()
        self.put("network", self.go_on)

    def go_on(self) -> None:
        waiting, self.waiting = self.waiting, {}
        if self.cut:
            return
        self.queues |= waiting
        self.destination.interrupted = False
        self.put_event("source", "source network", s.ChannelResumed("control"))

    def restart_destination(self) -> None:
        """The receiver is killed, and another one takes its place, which knows of no message."""
        if self.cut or self.waiting or not self.goes_on():
            self.kill("destination")
            return
        self.restarts += 1
        self.dark = True
        for name in [name for name in self.queues if name.startswith("destination") or name in CONTROL]:
            del self.queues[name]
        self.destination = self._plan_there(now_ns=self.now_ns, resumed=True)
        for worker in range(self.workers):
            self.put_event("destination", f"destination worker {worker}", d.WorkerListens(worker))

    def source_meets_another(self) -> None:
        """The source's control channel is connected to the receiver that was started again."""
        self.dark = False
        self.feed("source", PeerRestarted(tuple(WorkerCounters() for _ in range(self.workers))))

    def cut_network(self) -> None:
        """What is under way is lost, and each side learns of it at some time."""
        if self.cut:
            return
        self.cut = True
        self.waiting = {}
        for channel in NETWORK:
            self.queues.pop(channel, None)
        self.put_event("source", "source network", s.Suspected(PeerLostError("cut")))
        self.put_event("destination", "destination network", d.PeerVanished(PeerLostError("cut")))

    def kill(self, side: str) -> None:
        """The process is gone; what it had sent may still arrive, and then the other side notices."""
        if not self.alive[side]:
            return
        self.alive[side] = False
        for name in [name for name in self.queues if name.startswith(side)]:
            del self.queues[name]
        if side == "source":
            # It reads the record before it acts.
            if self.guarded and self.records["source"] in (RecordState.OPEN, RecordState.RETURNED):
                self.put("guardian", self.let_source_go_on)
            self.send(TO_DESTINATION, lambda: self.feed("destination", d.PeerVanished(PeerLostError("killed"))))
        else:
            self.send(TO_SOURCE, lambda: self.feed("source", s.Suspected(PeerLostError("killed"))))

    def let_source_go_on(self) -> None:
        self.source_runs = self.runs
        self.check()

    def ask(self) -> None:
        """The source asks over a new connection, which may be lost like any other."""
        if self.hangs or not self.listens or not self.alive["destination"] or self.is_over("destination"):
            self.put_event("source", "source network", s.NobodyListens(PeerLostError("refused")))
        else:
            self.put("question", lambda: self.feed("destination", d.Asked()))

    def answer_source(self) -> None:
        if self.hangs:
            return
        if self.records["destination"] is RecordState.TAKEN:
            self.put_event("source", "source network", s.PeerTook())
        else:
            assert self.records["destination"] is RecordState.REFUSED
            self.put_event("source", "source network", s.PeerRefused(PeerFailedError("refused")))

    def write(self, side: str, state: RecordState) -> None:
        """Each record is written at once, if its side lives on; when the plan hears of it is up to chance."""
        before, self.records[side] = self.records[side], state
        assert (before, state) in CHANGES, "the record takes a decision back"
        self.put_event(side, f"{side} disk", s.Recorded(state))

    # -- the source ------------------------------------------------------------------------------

    def at_source(self, instruction: s.Instruction) -> None:
        if not self.alive["source"]:
            raise KilledError
        match instruction:
            case Instruct(worker=worker, instruction=told):
                self.put_event("source", f"source worker {worker}", answer(worker, told, {}))
            case s.Replace(worker=worker):
                self.queues.pop(f"source worker {worker}", None)
                self.put_event("source", f"source worker {worker}", s.ChannelResumed(f"worker {worker}"))
            case Do.START_LOG:
                self.guarded = True
                self.put_event("source", "source guest", s.LogStarted(needs_sync=True, settles=True))
            case Do.SYNC_LOG:
                self.put_event("source", "source guest", s.LogSynced())
            case Do.SETTLE:
                self.put_event("source", "source guest", s.GuestSettled(1))
            case Do.PAUSE:
                self.put("source guest", self.pause)
            case Do.SAVE_STATE:
                self.put("source guest", self.save)
            case s.WriteRecord(state=state):
                self.write("source", state)
            case Do.ASK:
                self.ask()
            case Do.ASK_DIGEST:
                self.tell_destination(DigestRequest())
            case Do.RELEASE:
                self.tell_destination(m.Release(self.source.state_bytes, self.source.state_digest))
            case Do.HAND_OVER:
                assert self.records["source"] is RecordState.HANDED_OVER
                self.guarded = False
                self.hand_over()
            case s.AskDigests(region=region, first=first):
                self.tell_destination(DigestsRequest(region, first))
            case Do.FINISH:
                assert self.source.status is MigrationStatus.COMPLETED
                self.tell_destination(m.Goodbye(self.source.source_digest if self.source.comparison else None))
            case Do.ABANDON | Do.GIVE_UP:
                if instruction is Do.ABANDON:
                    self.put("source guest", self.let_source_go_on)
                assert self.source.error is not None
                self.tell_destination(m.Failure(describe_error(self.source.error)))

    def pause(self) -> None:
        assert not self.source.record.outages.interrupted, "paused without a connection"
        if self.source.over:  # whoever gave the guest back did not wait for this
            return
        self.source_runs = False
        self.feed("source", s.GuestPaused(self.now_ns))

    def save(self) -> None:
        for size_bytes, digest in STATE:
            event = d.StateArrived(size_bytes, digest)
            # Bytes of the state channel that are lost or repeated are a stream that ends: TCP keeps their order.
            if not (self.cut or self.hangs):
                self.put(STATE_CHANNEL, lambda event=event: self.state_arrives(event))  # type: ignore[misc]
        # The guest's thread is done; the plan hears of it when its loop comes to that.
        self.put_event("source", "source guest", s.StateSaved(*STATE[-1]))

    def state_arrives(self, event: d.StateArrived) -> None:
        if self.destination.status in BEFORE_HAND_OVER:
            self.feed("destination", event)

    def hand_over(self) -> None:
        if self.cut and self.random.random() < 0.5:  # the transport knows already, and can prove it
            self.feed("source", s.HandOverNotSent(PeerLostError("not sent")))
            return
        self.hand_over_sent = True
        self.tell_destination(m.HandOver(run=self.runs))

    def tell_destination(self, message: m.ControlMessage) -> None:
        self.send(TO_DESTINATION, lambda: self.feed("destination", d.Heard(message)))

    def hear_destination(self, message: m.ControlMessage) -> None:
        event: s.Event
        match message:
            case Digested(digest=digest):
                event = s.PeerDigested(digest)
            case Digests(region=region, first=first, digests=digests):
                event = s.PeerDigests(region, first, digests)
            case m.Loaded(load_ns=load_ns):
                event = s.PeerLoaded(load_ns)
            case m.Resumed(since_ns=since_ns):
                event = s.PeerResumed(since_ns)
            case Refused():
                event = s.PeerRefused(PeerFailedError("refused"))
            case m.Failure(error=report) if report.type == PeerLostError.__name__:
                event = s.Suspected(PeerLostError("the destination failed"))
            case m.Failure():
                event = s.Failed(PeerFailedError("the destination failed"))
            case _:
                event = s.Failed(ProtocolError("out of turn"))
        self.feed("source", event)

    # -- the destination -------------------------------------------------------------------------

    def at_destination(self, instruction: d.Instruction) -> None:
        if not self.alive["destination"]:
            raise KilledError
        match instruction:
            case d.SendMessage(message=message):
                self.send(TO_SOURCE, lambda: self.hear_destination(message))
            case Instruct(worker=worker, instruction=told):
                self.put_event("destination", f"destination worker {worker}", answer(worker, told, self.damaged))
            case Act.ACCEPT:
                self.put(TO_SOURCE, self.source_meets_another if self.restarts else self.connect)
            case Act.LOAD:
                self.put_event("destination", "destination guest", d.StateLoaded())
            case d.WriteRecord(state=state):
                if state is RecordState.TAKEN:
                    self.hand_over_taken = True
                    assert self.hand_over_sent, "taken over without a hand-over"
                self.write("destination", state)
            case Act.LISTEN:
                self.listens = True
            case Act.ANSWER:
                self.answer_source()
            case Act.RUN:
                assert self.records["destination"] is RecordState.TAKEN, "it runs before that is on record"
                self.put("destination guest", self.run_here)
            case Act.DISCARD | Act.LET_GO:
                assert not self.hand_over_taken, "discarded after the hand-over"
                assert self.records["destination"] is RecordState.REFUSED or not self.destination.promised
                self.discarded = True

    def connect(self) -> None:
        """The source was let in: its workers connect, and both sides hear of it."""
        for worker in range(self.workers):
            self.put_event("destination", f"destination worker {worker}", d.WorkerConnected(worker))
        self.put_event("destination", "destination state", d.StateConnected())

        def all_connected() -> None:
            if self.destination.established or self.is_over("destination"):
                self.feed("source", s.WorkersReady())
            else:
                self.put("source worker 0", all_connected)

        self.put("source worker 0", all_connected)

    def run_here(self) -> None:
        assert not self.discarded
        self.destination_runs = True
        self.feed("destination", d.GuestRuns(self.now_ns))


def answer(worker: int, told: Instruction, damaged: dict[int, int]) -> s.Event:
    """What a worker answers.

    Args:
        damaged: by region, the page that has another digest than at the source.
    """
    match told:
        case ScanRegions():
            return s.WorkerScanned(worker)
        case SendRegions(last=True):
            return s.WorkerSent(worker, WorkerCounters())
        case SendRegions(fence=False):
            return s.WorkerIdle(worker)
        case Fence() | SendRegions():
            return s.WorkerFenced(worker, WorkerCounters())
        case CountDirty():
            return s.WorkerCounted(worker, 0)
        case CheckHeld(region=region):
            return WorkerCheckedHeld(worker, region, 0, 512, unarmed=False)
        case DigestRegions(regions=regions):
            return s.WorkerDigested(worker, {number: 7 * number + (number in damaged) for number in regions})
        case DigestPages(region=region, first=first, pages=pages):
            digests = np.arange(first, first + pages, dtype=np.uint64)
            if first <= damaged.get(region, -1) < first + pages:
                digests[damaged[region] - first] += np.uint64(1)
            return s.WorkerDigestedPages(region, first, pack(digests))
    raise AssertionError(told)
