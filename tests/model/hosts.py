# SPDX-License-Identifier: Apache-2.0
"""Two hosts around a hand-over, as a state that can be copied and compared: real plans, real recovery, no I/O.

It begins when the destination may load. What can happen next is a list of actions; each makes a new state. A guest
here is one of a monitor that outlives its command, as QEMU does. A crash of a process keeps what it has written; a
crash of a host also ends the monitor there.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

from parmig.engine.custody.rescuing import why_not
from parmig.engine.destination_plan.destination import DestinationPlan
from parmig.engine.destination_plan.destination_steps import Step as There
from parmig.engine.handover.recovery import Act, Facts, Look, next_step
from parmig.engine.messages import peer_messages as m
from parmig.engine.messages.handover_messages import Refused
from parmig.engine.plan import destination_events as d
from parmig.engine.plan import events as s
from parmig.engine.plan.events import Do, WriteRecord
from parmig.engine.records.handover_record import HandOverRecord, RecordState
from parmig.engine.reporting.error_reports import describe_error
from parmig.engine.source_plan.coordinator import Coordinator
from parmig.engine.source_plan.source_steps import Step
from parmig.engine.work.policy import Limits
from parmig.errors import GuestError, ParmigError, PeerFailedError, PeerLostError, RecordError
from parmig.ram.regions import Region
from parmig.ram.shared import WorkerCounters
from parmig.units import NS_PER_MS, NS_PER_S

SOURCE, DESTINATION = "source", "destination"
SIDES = (SOURCE, DESTINATION)
STATE = (10, "ten")
SOON_NS, LATE_NS = NS_PER_S, 1000 * NS_PER_S
"""A moment in which a symptom gets its cause, and one in which every limit is over."""


SAID = {m.Loaded: RecordState.PREPARED, m.Resumed: RecordState.TAKEN, Refused: RecordState.REFUSED}
"""What must be on record at the destination before it says something."""


class ViolationError(AssertionError):
    """What must never happen."""


class Reader:
    """The record of the source, as the guardian reads it."""

    def __init__(self, state: RecordState) -> None:
        self._state = state

    def read(self) -> HandOverRecord:
        return HandOverRecord(session=bytes(16), side="source", state=self._state)


class Hosts:
    """The state of everything.

    Args:
        faults: how many things may go wrong.
        may_ask: both sides know the feature.
        behind: (a mutation) the record of this state is written behind what must follow it.
        guardian_reads: False: (a mutation) the guardian does not look at the record.
        disarms: False: (a mutation) the guardian is not disarmed before *hand over* is sent.
    """

    def __init__(
        self,
        *,
        faults: int,
        may_ask: bool = True,
        behind: RecordState | None = None,
        guardian_reads: bool = True,
        disarms: bool = True,
    ) -> None:
        self.faults = faults
        self.behind = behind
        self.guardian_reads, self.disarms = guardian_reads, disarms
        self.now = dict.fromkeys(SIDES, 10**9)
        regions = [Region(0, 0, 512)]
        limits = Limits(300 * NS_PER_MS, 0, 0, switchover_ns=10 * NS_PER_S)
        self.plans: dict[str, Coordinator | DestinationPlan] = {
            SOURCE: Coordinator(regions, 1, limits, verify=False, may_ask=may_ask),
            DESTINATION: DestinationPlan(
                regions,
                1,
                verify=False,
                may_ask=may_ask,
                outlives=True,
                switchover_ns=limits.switchover_ns,
                max_state_bytes=1000,
                now_ns=self.now[DESTINATION],
            ),
        }
        self.todo: dict[str, list[object]] = {side: [] for side in SIDES}
        self.events: dict[str, list[s.Event]] = {side: [] for side in SIDES}  # of guest and disk
        self.messages: dict[str, list[m.ControlMessage]] = {side: [] for side in SIDES}  # on their way to that side
        self.lost: dict[str, bool] = dict.fromkeys(SIDES, False)  # the connection, as that side does not know yet
        self.connected = True
        self.records = dict.fromkeys(SIDES, RecordState.OPEN)
        self.settled = dict.fromkeys(SIDES, False)
        self.alive = dict.fromkeys(SIDES, True)
        self.recovers: dict[str, Facts | None] = dict.fromkeys(SIDES)
        self.monitor = dict.fromkeys(SIDES, True)
        self.runs = dict.fromkeys(SIDES, False)
        self.ran_there = False
        self.guarded = True
        self.listens = self.asking = self.asked = False
        self.late = False  # the record that the destination is ready waits until that was said
        self._prepare()

    def _prepare(self) -> None:
        """Bring both plans to where the destination may load."""
        source, destination = self.plans[SOURCE], self.plans[DESTINATION]
        for event in (
            s.WorkersReady(),
            s.LogStarted(needs_sync=False),
            s.WorkerFenced(0, WorkerCounters()),
            s.WorkerCounted(0, 0),
            s.GuestPaused(10**9),
            s.StateSaved(*STATE),
            s.WorkerSent(0, WorkerCounters()),
            s.WorkerFenced(0, WorkerCounters()),
        ):
            decided = source.handle(event, self.now[SOURCE])
        assert (source.step, decided) == (Step.LOADING, [Do.RELEASE]), source.step
        for there in (d.WorkerListens(0), d.WorkerConnected(0), d.StateConnected(), d.StateArrived(*STATE)):
            destination.handle(there, self.now[DESTINATION])
        assert destination.step is There.RECEIVING
        self.messages[DESTINATION].append(m.Release(*STATE))

    # -- copying and comparing -------------------------------------------------------------------

    def copy(self) -> Hosts:
        """A state of its own. What no step changes from here on is shared."""
        new = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, dict):
                setattr(new, name, {key: list(part) if isinstance(part, list) else part for key, part in value.items()})
        for side, plan in self.plans.items():
            new.plans[side] = other = copy.copy(plan)
            other.machine = copy.copy(plan.machine)
            if isinstance(other, Coordinator):
                other.record = copy.copy(other.record)
                other.record.marks = dict(other.record.marks)
        return new

    def key(self) -> tuple[object, ...]:
        """Equal for states from which the same can happen."""
        source, there = self.plans[SOURCE], self.plans[DESTINATION]
        assert isinstance(there, DestinationPlan)
        names = (
            "promised",
            "handed_over",
            "undecided",
            "run",
            "_asked",
            "_vanished",
            "_taking",
            "_refused",
            "_prepared",
        )
        return (
            *(source.step, source.status, source.suspected is None, source._written),  # type: ignore[union-attr]
            *(there.step, there.status, there.suspected is None, there._failed is None, there._loaded_ns > 0),
            *(getattr(there, name) for name in names),
            str(self.todo),
            str([[type(event).__name__ for event in self.events[side]] for side in SIDES]),
            str([[type(message).__name__ for message in self.messages[side]] for side in SIDES]),
            *(str(part) for part in (self.lost, self.records, self.settled, self.alive, self.recovers, self.monitor)),
            *(str(self.runs), self.ran_there, self.guarded, self.connected, self.listens, self.asking, self.asked),
            self.late,
            self.faults,
        )

    # -- what holds at every instant -------------------------------------------------------------

    def check(self) -> None:
        if all(self.runs.values()):
            raise ViolationError("both run")
        if self.runs[SOURCE] and self.ran_there:
            raise ViolationError("the source runs after the guest has run at the destination")
        owners = [side for side in SIDES if self.owner(side) == "here"]
        if len(owners) > 1 and self.records[DESTINATION] is RecordState.TAKEN:
            raise ViolationError("both own it by their records")

    def owner(self, side: str) -> str:
        record = HandOverRecord(session=bytes(16), side=side, state=self.records[side])  # type: ignore[arg-type]
        return record.owner

    def run(self, side: str) -> None:
        if self.monitor[side]:
            self.runs[side] = True
            self.ran_there |= side == DESTINATION

    # -- what can happen -------------------------------------------------------------------------

    def actions(self) -> Iterator[tuple[str, Callable[[Hosts], None]]]:
        """Everything that can happen next, with its name."""
        yield from self.steps()
        if self.faults:
            yield from self._faults()

    def steps(self) -> Iterator[tuple[str, Callable[[Hosts], None]]]:
        """What happens without a fault; if there is nothing, time passes or somebody recovers."""
        quiet = True
        for side in SIDES:
            if not self.alive[side]:
                continue
            if self.todo[side]:
                quiet = False
                yield f"{side} does {self.todo[side][0]}", lambda h, side=side: h.do_next(side)  # type: ignore[misc]
                continue  # a driver carries out all instructions before it takes the next event
            if self.events[side]:
                quiet = False
                yield f"{side} hears {self.events[side][0]}", lambda h, side=side: h.feed(side, h.events[side].pop(0))  # type: ignore[misc]
            if self.messages[side] and not self.over(side):
                quiet = False
                yield f"{side} gets {self.messages[side][0]}", lambda h, side=side: h.hear(side)  # type: ignore[misc]
            elif self.lost[side] and not self.over(side):
                quiet = False
                yield f"{side} notices the loss", lambda h, side=side: h.notice(side)  # type: ignore[misc]
        hears = self.alive[DESTINATION] and not self.over(DESTINATION) and self.listens and not self.todo[DESTINATION]
        if self.asked and hears:
            quiet = False
            yield "destination hears the question", lambda h: h.hear_question()
        if self.asking and self.alive[SOURCE] and not self.todo[SOURCE] and not self.over(SOURCE):
            quiet = False
            yield "source asks", lambda h: h.ask()
        if not quiet:
            return
        for side in SIDES:
            if self.alive[side] and not self.over(side):
                yield f"{side}: a moment passes", lambda h, side=side: h.tick(side, SOON_NS)  # type: ignore[misc]
                yield f"{side}: a limit is over", lambda h, side=side: h.tick(side, LATE_NS)  # type: ignore[misc]
            elif self.recovers[side] is None:
                yield f"{side}: somebody recovers", lambda h, side=side: h.begin_recovery(side)  # type: ignore[misc]
        here, there = self.recovers[SOURCE], self.recovers[DESTINATION]
        ended = there is not None and next_step(there) is Act.END
        if ended and here is not None and next_step(here) is Act.ASK:
            yield "destination: somebody recovers again", lambda h: h.begin_recovery(DESTINATION)
        for side in SIDES:
            facts = self.recovers[side]
            if facts is not None and self.may_step(side, facts):
                yield f"{side} recovers: {next_step(facts)}", lambda h, side=side: h.recover(side)  # type: ignore[misc]

    def _faults(self) -> Iterator[tuple[str, Callable[[Hosts], None]]]:
        for side in SIDES:
            if self.alive[side] and not (self.over(side) and not self.todo[side]):
                yield f"{side} process crashes", lambda h, side=side: h.fault(lambda: h.crash(side))  # type: ignore[misc]
                yield f"{side} host crashes", lambda h, side=side: h.fault(lambda: h.crash_host(side))  # type: ignore[misc]
                if not self.todo[side] and not self.over(side):
                    yield f"{side} is cancelled", lambda h, side=side: h.fault(lambda: h.feed(side, s.CancelAsked()))  # type: ignore[misc]
                    if self.plans[side].hears_workers:
                        failure = s.Failed(GuestError("a worker failed"))
                        yield (
                            f"{side} fails",
                            lambda h, side=side, failure=failure: h.fault(lambda: h.feed(side, failure)),
                        )  # type: ignore[misc]
                if self.todo[side] and isinstance(self.todo[side][0], WriteRecord):
                    yield f"{side} cannot write", lambda h, side=side: h.fault(lambda: h.fail_write(side))  # type: ignore[misc]
            if self.recovers[side] is not None:
                yield f"{side} recovery crashes", lambda h, side=side: h.fault(lambda: h.forget_recovery(side))  # type: ignore[misc]
            if self.messages[side]:
                yield f"message to {side} is lost", lambda h, side=side: h.fault(lambda: h.messages[side].pop(0))  # type: ignore[misc]
                yield (
                    f"message to {side} comes twice",
                    lambda h, side=side: h.fault(lambda: h.messages[side].insert(0, h.messages[side][0])),  # type: ignore[misc]
                )
        if self.connected:
            yield "the network is cut", lambda h: h.fault(h.cut)

    def fault(self, happen: Callable[[], object]) -> None:
        self.faults -= 1
        happen()

    # -- processes -------------------------------------------------------------------------------

    def over(self, side: str) -> bool:
        return self.plans[side].over

    def feed(self, side: str, event: s.Event) -> None:
        plan = self.plans[side]
        decided: list[object] = list(plan.handle(event, self.now[side]))
        if self.behind is not None and WriteRecord(self.behind) in decided:
            write = WriteRecord(self.behind)
            decided.remove(write)
            decided += plan.handle(s.Recorded(self.behind), self.now[side])
            self.late = self.behind is RecordState.PREPARED  # what must follow it follows later
            decided += [] if self.late else [write]
        if self.late and any(isinstance(part, d.SendMessage) for part in decided):
            self.late = False
            decided.append(WriteRecord(RecordState.PREPARED))
        self.todo[side] += decided

    def tick(self, side: str, later_ns: int) -> None:
        self.now[side] += later_ns
        self.feed(side, s.Tick())

    def crash(self, side: str) -> None:
        """The process is gone; what it has sent may still arrive, and then its peer notices."""
        self.alive[side] = False
        self.todo[side], self.events[side], self.messages[side] = [], [], []
        self.lost[SIDES[side == SOURCE]] = True
        self.connected = False
        if side == DESTINATION:
            self.stop_listening()
            return
        self.asking = False
        denied = self.guardian_reads and bool(why_not(Reader(self.records[SOURCE])))  # type: ignore[arg-type]
        if self.guarded and not denied:
            self.run(SOURCE)

    def crash_host(self, side: str) -> None:
        self.guarded &= side != SOURCE
        self.crash(side)
        self.monitor[side] = self.runs[side] = False
        self.recovers[side] = None

    # -- the network -----------------------------------------------------------------------------

    def send(self, side: str, message: m.ControlMessage) -> None:
        if self.connected and self.alive[side]:
            self.messages[side].append(message)

    def cut(self) -> None:
        """What is on its way is lost, and both sides notice."""
        self.connected = False
        for side in SIDES:
            self.messages[side] = []
            self.lost[side] = True

    def notice(self, side: str) -> None:
        self.lost[side] = False
        error = PeerLostError("lost")
        self.feed(side, s.Suspected(error) if side == SOURCE else d.PeerVanished(error))

    def hear(self, side: str) -> None:
        message = self.messages[side].pop(0)
        if side == DESTINATION:
            self.feed(side, d.Heard(message))
            return
        match message:
            case m.Loaded(load_ns=load_ns):
                self.feed(side, s.PeerLoaded(load_ns))
            case m.Resumed():
                self.feed(side, s.PeerResumed())
            case Refused():
                self.feed(side, s.PeerRefused(PeerFailedError("refused")))
            case m.Failure(error=report) if report.type == PeerLostError.__name__:
                self.feed(side, s.Suspected(PeerLostError("it failed")))
            case _:
                self.feed(side, s.Failed(PeerFailedError("it failed")))

    def ask(self) -> None:
        """The live source asks once."""
        if self.alive[DESTINATION] and self.listens and not self.over(DESTINATION):
            self.asked = True
            self.asking = False  # it waits for the answer
        elif self.serves() and self.records[DESTINATION] is not RecordState.PREPARED:
            self.answer()
        else:
            self.now[SOURCE] += 5 * NS_PER_S
            self.feed(SOURCE, s.NobodyListens(PeerLostError("refused")))

    def hear_question(self) -> None:
        self.asked = False
        self.asking = self.plans[SOURCE].step is Step.ASKING  # if no answer comes, it asks again
        self.feed(DESTINATION, d.Asked())

    def answer(self) -> None:
        """To whoever asks at the source."""
        owner = self.owner(DESTINATION)
        if self.alive[SOURCE] and self.plans[SOURCE].step is Step.ASKING:
            event = s.PeerTook() if owner == "here" else s.PeerRefused(PeerFailedError("refused"))
            self.asking = False
            self.events[SOURCE].append(event)
        elif (facts := self.recovers[SOURCE]) is not None and facts.answer == "":
            self.recovers[SOURCE] = facts._replace(answer=owner)  # type: ignore[arg-type]

    # -- instructions ----------------------------------------------------------------------------

    def do_next(self, side: str) -> None:
        instruction = self.todo[side].pop(0)
        if isinstance(instruction, WriteRecord):
            self.records[side], self.settled[side] = instruction.state, False
            if instruction.state is RecordState.RETURNED:
                self.guarded = self.monitor[SOURCE]
            if instruction.state is not self.behind:
                self.events[side].insert(0, s.Recorded(instruction.state))
        elif side == SOURCE:
            self.at_source(instruction)
        else:
            self.at_destination(instruction)

    def fail_write(self, side: str) -> None:
        """It may have reached the disk, or not; here it has not."""
        instruction = self.todo[side].pop(0)
        assert isinstance(instruction, WriteRecord)
        self.events[side].insert(0, s.RecordFailed(instruction.state, RecordError("no space")))

    def at_source(self, instruction: object) -> None:
        match instruction:
            case Do.HAND_OVER:
                self.guarded &= not self.disarms
                self.send(DESTINATION, m.HandOver(run=True))
            case Do.ASK:
                self.asking = True
            case Do.ABANDON:
                self.run(SOURCE)
                self.settled[SOURCE] = True
                self.send(DESTINATION, m.Failure(describe_error(ParmigError("gave up"))))
            case Do.GIVE_UP:
                self.send(DESTINATION, m.Failure(describe_error(ParmigError("gave up"))))
            case Do.FINISH:
                self.settled[SOURCE] = True
                self.send(DESTINATION, m.Goodbye())

    def at_destination(self, instruction: object) -> None:
        match instruction:
            case d.SendMessage(message=message):
                needed = SAID.get(type(message))
                if needed is not None and self.records[DESTINATION] is not needed:
                    raise ViolationError(f"the destination says {type(message).__name__} before it has {needed.value}")
                self.send(SOURCE, message)
            case d.Act.LOAD:
                self.events[DESTINATION].append(d.StateLoaded())
            case d.Act.RUN:
                self.run(DESTINATION)
                self.events[DESTINATION].append(d.GuestRuns(self.now[DESTINATION]))
            case d.Act.LISTEN:
                self.listens = True
            case d.Act.ANSWER:
                self.answer()
            case d.Act.FINISH:
                self.settled[DESTINATION] = True
            case d.Act.DISCARD | d.Act.LET_GO:
                self.monitor[DESTINATION] = False
                self.settled[DESTINATION] = True

    # -- recovery --------------------------------------------------------------------------------

    def facts(self, side: str) -> Facts:
        look = Look.GONE if not self.monitor[side] else Look.RUNNING if self.runs[side] else Look.PAUSED
        listens = side == DESTINATION  # the operator of the destination serves until the source has asked
        return Facts(side, self.records[side], self.settled[side], guest=look, listens=listens)  # type: ignore[arg-type]

    def begin_recovery(self, side: str) -> None:
        self.alive[side] = False  # the command has ended by itself
        if side == DESTINATION:
            self.stop_listening()
        self.recovers[side] = self.facts(side)

    def stop_listening(self) -> None:
        """The receiver has ended; whoever waits for its answer asks again."""
        self.asking |= self.asked and self.alive[SOURCE] and self.plans[SOURCE].step is Step.ASKING
        self.listens = self.asked = False

    def forget_recovery(self, side: str) -> None:
        self.recovers[side] = None

    def serves(self) -> bool:
        facts = self.recovers[DESTINATION]
        return facts is not None and next_step(facts) is Act.SERVE

    def may_step(self, side: str, facts: Facts) -> bool:
        """Whether recovery can go on: not if it has ended, or waits for the other host."""
        step = next_step(facts)
        if step is Act.ASK:
            there_listens = self.listens and self.alive[DESTINATION] and not self.over(DESTINATION)
            return (self.serves() or there_listens) and not self.asked
        return step not in (Act.END, Act.STOP, Act.SERVE)

    def recover(self, side: str) -> None:
        facts = self.recovers[side]
        assert facts is not None
        step = next_step(facts)
        done = facts.done
        if isinstance(step, RecordState):
            self.records[side], self.settled[side] = step, False
            if side == DESTINATION and facts.asked:
                self.answer()
        match step:
            case Act.ASK:
                self.ask_by_recovery()
                return
            case Act.RUN:
                self.run(side)
                done = True
            case Act.DISCARD:
                self.monitor[side] = self.runs[side] = False
                done = True
            case Act.SETTLE:
                self.settled[side] = True
        self.recovers[side] = self.facts(side)._replace(answer=facts.answer, asked=facts.asked, done=done)

    def ask_by_recovery(self) -> None:
        served = self.recovers[DESTINATION]
        if served is None:
            self.asked = True  # of the live receiver
            return
        self.recovers[DESTINATION] = served._replace(asked=True)
        if self.records[DESTINATION] is not RecordState.PREPARED:
            self.answer()

    # -- the end ---------------------------------------------------------------------------------

    def judge(self) -> str:
        """Nothing can happen any more: both hosts are back, and one owns the guest."""
        owners = [side for side in SIDES if self.owner(side) == "here"]
        if len(owners) != 1:
            raise ViolationError(f"{len(owners)} owners at the end: {self.records}")
        (owner,) = owners
        other = SIDES[owner == SOURCE]
        if self.monitor[owner] and not self.runs[owner]:
            raise ViolationError(f"{owner} owns the guest, and it does not run")
        if self.runs[other]:
            raise ViolationError(f"{owner} owns the guest, and it runs at the other side")
        return owner if self.monitor[owner] else f"{owner}, without its monitor"
