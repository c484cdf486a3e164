# SPDX-License-Identifier: Apache-2.0
"""The destination's plan as a pure state machine: events in, instructions out, no I/O, no clock of its own.

It begins when a source was admitted and the workers start. The steps, in order::

    start workers ─ accept ─ channels connect ─ receive memory [digest] ─ (release) wait for all state
      ─ record that it is ready, load ─ then see ``destination_end``

What it guarantees:

- The guest runs only after a hand-over, and a hand-over counts only after the plan sent *loaded*.
- It says *loaded* only once the record has that it is ready.
- The state is loaded once, after the source's release, and only if all of it arrived undamaged.
- After a hand-over only a failure to run the guest changes the outcome.
- Every wait has a limit.
"""

from __future__ import annotations

from collections.abc import Sequence

from parmig.engine.channels.state_channel import NO_STATE, check_size
from parmig.engine.destination_plan.destination_end import DestinationEnd
from parmig.engine.destination_plan.destination_steps import Step
from parmig.engine.destination_plan.requested_digest import RequestedDigest
from parmig.engine.messages import peer_messages
from parmig.engine.messages.digest_messages import Digested, DigestRequest, DigestsRequest
from parmig.engine.plan import destination_events as events
from parmig.engine.plan.comparison import PlacedAnswers
from parmig.engine.plan.destination_events import (
    Act,
    Event,
    Instruction,
    SendMessage,
    StateArrived,
    WriteRecord,
    WriteState,
)
from parmig.engine.plan.held_memory import HeldAnswers
from parmig.engine.records.handover_record import RecordState
from parmig.engine.work.shares import assign
from parmig.errors import (
    ParmigError,
    PeerFailedError,
    PeerLostError,
    PeerRefusedError,
    ProtocolError,
    StateError,
)
from parmig.ram.regions import Region
from parmig.status import MigrationStatus, StatusEvent

THE_SOURCES_FAULT = (PeerLostError, PeerFailedError, PeerRefusedError, ProtocolError)
"""Errors that a source can cause. Until all its channels are connected, such an error ends only its session."""


class DestinationPlan(DestinationEnd):
    """Decides everything at the destination, for one source.

    Args:
        regions: all regions of all blocks.
        workers: how many receive workers.
        verify: whether the source announced that it asks for a digest.
        replaces: channels outlive their connections, so that workers may be replaced.
        compared: whether the workers keep digests of what they place, for a comparison after the hand-over.
        resumed: another receiver had this source before, and was killed. Nobody knows what it has placed, so the source
            asks what the memory holds.
        may_ask: the source asks who has the guest if it loses this side after the hand-over.
        outlives: the guest's monitor lives on when this process ends.
        switchover_ns: how long the source's pause may take.
        max_state_bytes: the most device state that is taken.
        now_ns: the time now.

    Attributes:
        established: whether the source has connected all its channels.
        state_bytes: size of the device state that was loaded.
        interrupted: whether the control channel has no connection, so that the source cannot be heard.
    """

    _cancelled = "cancelled; the guest stays at the source"
    _unknown = (
        "the source stays paused and leaves the guest to this side; look whether it runs here, "
        "and run parmig recover here, which lets it run"
    )

    def __init__(
        self,
        regions: Sequence[Region],
        workers: int,
        *,
        verify: bool,
        compared: bool = False,
        may_ask: bool = False,
        outlives: bool = False,
        replaces: bool = False,
        resumed: bool = False,
        switchover_ns: int,
        max_state_bytes: int,
        now_ns: int,
    ) -> None:
        answers = PlacedAnswers(regions, owned := assign([region.pages for region in regions], workers), kept=compared)
        super().__init__(answers, switchover_ns=switchover_ns, may_ask=may_ask, outlives=outlives, now_ns=now_ns)
        self.established = False
        self.state_bytes = 0
        self._replaces = replaces
        self._max_state_bytes = max_state_bytes
        self._starting = set(range(workers))
        self._connecting = set(range(workers))
        self._state_connected = False
        self._held = HeldAnswers(regions, workers) if resumed else None
        self._requested = RequestedDigest(owned, len(regions), announced=verify)
        self._arrived = StateArrived(0, NO_STATE)
        self._release = peer_messages.Release(0, "")
        self._prepared = False
        self._load_began_ns = self._loaded_ns = 0
        self.interrupted = False

    @property
    def lets_go(self) -> bool:
        """Whether only this source's session failed, so that another source may come."""
        return isinstance(self.error, THE_SOURCES_FAULT) and not self.established

    def _proceed(self, event: Event, now_ns: int) -> list[Instruction]:
        match self.step, event:
            case _, events.Heard(message=message):
                return self._hear(message, now_ns)
            case _, events.Garbled(error=error):
                return self._fail(error)
            case _, events.PeerVanished(error=error):
                words = f"the source is gone before hand-over ({error}); the guest stays there"
                return self._end(StatusEvent.PEER_LOST, PeerLostError(words))
            case Step.STARTING, events.WorkerListens(worker=worker):
                self._starting.discard(worker)
                return [] if self._starting else self._all_listen(now_ns)
            case Step.CONNECTING, events.WorkerConnected(worker=worker):
                self._connecting.discard(worker)
                return self._establish(now_ns)
            case Step.CONNECTING, events.StateConnected():
                self._state_connected = True
                return self._establish(now_ns)
            case ((Step.RECEIVING | Step.HOLDING), events.EarlyState(data=data)):
                return [WriteState(data)]
            case ((Step.RECEIVING | Step.HOLDING), StateArrived()):
                self._arrived = event
                return self._try_load(now_ns)
            case Step.RECEIVING, events.WorkerDigested(worker, digests) if worker in self._requested.awaited:
                self.digest = self._requested.add(worker, digests)
                return [] if self.digest is None else [SendMessage(Digested(self.digest))]
            case Step.RECEIVING, events.WorkerDigestedPages() if self._held is not None:
                return self._held.answer(event)
            case Step.RECEIVING, events.WorkerListens():
                return []  # it replaces another one
            case Step.LOADING, events.Recorded():
                self._prepared = True
                return self._try_ready()
            case Step.LOADING, events.RecordFailed(error=error):
                return self._fail(error)
            case Step.LOADING, events.StateLoaded():
                self._loaded_ns = now_ns
                return self._try_ready()
        by_source = isinstance(event, events.EarlyState | StateArrived | events.StateConnected)
        kind = ProtocolError if by_source else ParmigError
        return self._fail(kind(f"{type(event).__name__} came while {self.step.value}"))

    def _go_on(self, step: Step, now_ns: int, *instructions: Instruction) -> list[Instruction]:
        """Take the next step, whose time begins now."""
        self.step, self._since_ns = step, now_ns
        return list(instructions)

    # -- before hand-over -----------------------------------------------------------------------

    @property
    def replaces_workers(self) -> bool:
        """Whether a worker that dies now is replaced: its channel goes on where it ended."""
        return self._replaces and self.step is Step.RECEIVING and not self._requested.awaited

    def _replace(self, worker: int, reason: str, now_ns: int) -> list[Instruction]:
        again = [] if self._held is None else self._held.replaced(worker)
        return [events.Replace(worker, reason), *again]

    def _hear(self, message: object, now_ns: int) -> list[Instruction]:
        """Take a message. Which ones the source may send depends on the step, and it sends each only once."""
        if self.step is Step.RECEIVING:
            self._since_ns = now_ns
        match self.step, message:
            case _, peer_messages.Progressed(status=status, round=round_):
                return [events.Show(status, round_)]
            case _, peer_messages.Failure(error=report):
                return self._fail(PeerFailedError(f"the source failed: {report.message}"))
            case Step.RECEIVING, DigestsRequest() if self._held is not None:
                try:
                    return self._held.hear(message)
                except ProtocolError as error:
                    return self._fail(error)
            case Step.RECEIVING, DigestRequest() if self._requested.may_be_asked:
                return list(self._requested.ask())
            case Step.RECEIVING, DigestRequest():
                return self._fail(ProtocolError("the source asked for a digest twice, or without having announced it"))
            case Step.RECEIVING, peer_messages.Release() if not self._requested.awaited:
                return self._take_release(message, now_ns)
        name = type(message).__name__
        return self._fail(ProtocolError(f"the source sent {name} while {self.step.value}"))

    def _all_listen(self, now_ns: int) -> list[Instruction]:
        """All receive workers listen."""
        if self._held is None:
            return self._go_on(Step.CONNECTING, now_ns, Act.ACCEPT)
        return [Act.ACCEPT, *self._receive(now_ns)]  # the source was let in by the receiver that was killed

    def _establish(self, now_ns: int) -> list[Instruction]:
        return [] if self._connecting or not self._state_connected else self._receive(now_ns)

    def _receive(self, now_ns: int) -> list[Instruction]:
        self.established = True
        self.machine.move(StatusEvent.CONFIGURED)
        return self._go_on(Step.RECEIVING, now_ns)

    def _take_release(self, release: peer_messages.Release, now_ns: int) -> list[Instruction]:
        try:
            check_size(release.size_bytes, self._max_state_bytes)
        except StateError as error:
            return self._fail(error)
        self.machine.move(StatusEvent.PAUSED)
        self.machine.move(StatusEvent.RAM_COMPLETE)
        self._release = release
        self._go_on(Step.HOLDING, now_ns)
        return self._try_load(now_ns)

    def _try_load(self, now_ns: int) -> list[Instruction]:
        """Load the state when all of it is here and the source has released it."""
        released, arrived = self._release, self._arrived
        if self.step is not Step.HOLDING or arrived.size_bytes < released.size_bytes:
            return []
        if (arrived.size_bytes, arrived.digest) != (released.size_bytes, released.digest):
            words = (
                f"device state arrived damaged: {arrived.size_bytes} bytes with digest {arrived.digest}, "
                f"the source saved {released.size_bytes} with {released.digest}"
            )
            return self._fail(StateError(words))
        self.state_bytes = released.size_bytes
        self.step, self._load_began_ns = Step.LOADING, now_ns  # within the limit that began with the release
        return [Act.LOAD, WriteRecord(RecordState.PREPARED)]  # the disk writes while the guest loads

    def _try_ready(self) -> list[Instruction]:
        """Report that the guest is loaded, once that is on record too."""
        if not self._prepared or not self._loaded_ns:
            return []
        self.step, self.promised = Step.LOADED, True  # within the same limit
        received_ns, load_ns = self._load_began_ns - self._since_ns, self._loaded_ns - self._load_began_ns
        return [SendMessage(peer_messages.Loaded(received_ns, load_ns)), Act.ATTEND]

    # -- the end --------------------------------------------------------------------------------

    def _check_time(self, now_ns: int) -> list[Instruction]:
        if self.interrupted and self.step is Step.RECEIVING:
            self._since_ns = now_ns
        return super()._check_time(now_ns)

    def _phase(self) -> str:
        return self.status.value

    def _ending(self, status: MigrationStatus) -> list[Instruction]:
        if self.step in (Step.REFUSING, Step.RESUMING, Step.KEEPING):
            return self._last_words(status)
        if self.step is Step.STARTING:
            reason = SendMessage(peer_messages.Refuse(f"the destination failed: {self.error}"))
        else:
            reason = SendMessage(peer_messages.Failure(self._report()))
        return [reason, Act.LET_GO if self.lets_go else Act.DISCARD]
