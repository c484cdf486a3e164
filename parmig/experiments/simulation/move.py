# SPDX-License-Identifier: Apache-2.0
"""One migration in simulated time. The real plan of the source decides; what it asks for takes simulated time.

Only the workers, the guest and the destination are simulated. Rounds, bundles, the policy of the pause and the throttle
are those of :class:`.Coordinator`, so they are what a migration does.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import simpy

from parmig.config import SendConfig
from parmig.engine.messages.worker_messages import CountDirty, Fence, SendRegions
from parmig.engine.plan import events
from parmig.engine.plan.events import Do, Event, Instruct, Instruction, Throttle, WriteRecord
from parmig.engine.prediction.costs import Costs
from parmig.engine.reporting.record import Record
from parmig.engine.source_plan.coordinator import Coordinator
from parmig.engine.work.policy import limits_of
from parmig.errors import ParmigError
from parmig.experiments.simulation.channel import Channel
from parmig.experiments.simulation.dirty_pages import DirtyPages
from parmig.experiments.simulation.flows import Flows
from parmig.ram.blocks import PAGE_BYTES
from parmig.ram.regions import Region
from parmig.ram.shared import WorkerCounters
from parmig.units import GIB, NS_PER_S


class GuestTime:
    """For how long a guest has run. It stands still from :meth:`stop` on, and goes slower while it is throttled.

    Attributes:
        stopped: whether the guest is paused.
    """

    def __init__(self, env: simpy.Environment) -> None:
        self._env = env
        self._ran_s, self._since_s, self._speed = 0.0, env.now, 1.0
        self.stopped = False

    @property
    def ran_s(self) -> float:
        """Seconds at full speed."""
        return self._ran_s + (self._env.now - self._since_s) * self._speed

    def throttle(self, percent: int) -> None:
        """Let it run so much slower from now on."""
        self._ran_s, self._since_s, self._speed = self.ran_s, self._env.now, 1 - percent / 100

    def stop(self) -> None:
        """The guest is paused."""
        self.throttle(100)
        self.stopped = True


class Means(msgspec.Struct, frozen=True):
    """What a migration uses.

    Attributes:
        flows: not owned.
        kinds: for each worker, the number of its kind of flow: in the first round, and in later ones.
        credit_bytes: of each channel.
        wire_parts: bytes on the wire for each byte of a page: in the first round, and in later ones.
    """

    env: simpy.Environment
    flows: Flows
    kinds: Sequence[tuple[int, int]]
    credit_bytes: int
    wire_parts: tuple[float, float]
    costs: Costs


class Move:
    """Moves one guest. Make :meth:`run` a process of the simulation.

    Args:
        regions: of the guest's memory.
        zero_part: how much of it is zero.
        dirty: which pages are dirty.

    Attributes:
        began_s: when the command began.
        ended_s: when it had ended.
        setup_s: from its begin to the first round.
        end_s: from the hand-over to its end.
        wire_bytes: of pages.
    """

    def __init__(
        self, means: Means, config: SendConfig, regions: Sequence[Region], zero_part: float, dirty: DirtyPages
    ) -> None:
        self._env, self._means, self._costs = means.env, means, means.costs
        self._workers = len(means.kinds)
        self._limits = limits_of(config)
        self._plan = Coordinator(regions, self._workers, self._limits, verify=False)
        self._region_pages = np.array([region.pages for region in regions])
        self._zero_part, self._dirty = zero_part, dirty
        self._channels = [Channel(self._env, means.flows, means.credit_bytes) for _ in range(self._workers)]
        self._inboxes = [simpy.Store(self._env) for _ in range(self._workers)]
        self._guest = GuestTime(self._env)
        self._done = self._env.event()
        self._counted = 0.0
        self.began_s = self.ended_s = self._env.now
        self.setup_s = self._costs.setup_s + self._costs.setup_worker_s * self._workers
        self.end_s = self._costs.end_s + self._costs.end_worker_s * self._workers
        self.wire_bytes = 0.0
        self._scans_s = [0.0] * self._workers

    @property
    def record(self) -> Record:
        """What was measured, as in a real migration. Its instants are those of the simulation, in nanoseconds."""
        return self._plan.record

    @property
    def error(self) -> ParmigError | None:
        """Why it failed; None: it did not."""
        return self._plan.error

    @property
    def scans_s(self) -> float:
        """How long the workers have looked at the dirty log: the mean."""
        return sum(self._scans_s) / self._workers

    def run(self) -> simpy.events.ProcessGenerator:
        """The migration from its command to the end of that."""
        self.began_s = self._env.now
        yield self._env.timeout(self.setup_s)
        for worker, channel in enumerate(self._channels):
            self._env.process(self._work(worker, channel))
        if self._limits.timeout_ns:
            self._later((self._limits.timeout_ns + 1) / NS_PER_S, events.Tick())
        self._feed(events.WorkersReady())
        yield self._done
        for channel in self._channels:  # a failure may come in the middle of a round
            yield channel.empty()
        yield self._env.timeout(self.end_s)
        self.ended_s = self._env.now

    # -- the plan -------------------------------------------------------------------------------

    def _feed(self, event: Event) -> None:
        for instruction in self._plan.handle(event, round(self._env.now * NS_PER_S)):
            self._carry_out(instruction)
        if self._plan.over and not self._done.triggered:
            self._done.succeed()

    def _later(self, delay_s: float, event: Event) -> None:
        self._env.timeout(delay_s).callbacks.append(lambda _: self._feed(event))

    def _carry_out(self, instruction: Instruction) -> None:
        match instruction:
            case Instruct(worker=worker, instruction=message):
                self._inboxes[worker].put(message)
            case Throttle(percent=percent):
                if not self._guest.stopped:
                    self._guest.throttle(percent)
                self._later(0, events.Throttled())
            case WriteRecord(state=state):
                self._later(0, events.Recorded(state))
            case Do.START_LOG:
                self._later(0, events.LogStarted(needs_sync=False))
            case Do.PAUSE:
                self._guest.stop()
                self._later(0, events.GuestPaused(round(self._env.now * NS_PER_S)))
            case Do.SAVE_STATE:
                self._later(0, events.StateSaved(0, ""))
            case Do.RELEASE:
                self._later(self._costs.pause_s, events.PeerLoaded(0))
            case Do.HAND_OVER:
                self._later(0, events.PeerResumed())

    # -- a worker -------------------------------------------------------------------------------

    def _work(self, worker: int, channel: Channel) -> simpy.events.ProcessGenerator:
        """What worker *worker* does, one instruction after the other."""
        sent = _Sent()
        while not self._plan.over:
            message = yield self._inboxes[worker].get()
            match message:
                case SendRegions():
                    yield from self._send(worker, message, channel, sent)
                case Fence():
                    yield from self._fence(channel)
                    self._feed(events.WorkerFenced(worker, sent.counters))
                case CountDirty(regions=numbers):
                    scan_s = self._scan_s(worker, numbers)
                    yield self._env.timeout(self._costs.count_s + scan_s)
                    self._counted += self._dirty.count(numbers, self._guest.ran_s)
                    whole = int(self._counted)
                    self._counted -= whole  # a part of a page is not lost
                    self._feed(events.WorkerCounted(worker, whole))

    def _send(self, worker: int, message: SendRegions, channel: Channel, sent: _Sent) -> simpy.events.ProcessGenerator:
        """Scan regions and pass on what is dirty."""
        pages = self._pages(message.regions)
        scan_s = self._scan_s(worker, message.regions)
        yield self._env.timeout(scan_s)
        data_pages = self._dirty.scan(message.regions, self._guest.ran_s)
        if message.first_pass:
            data_pages = pages * (1 - self._zero_part)
            zero_pages = pages - data_pages
            yield self._env.timeout(zero_pages * PAGE_BYTES / GIB * self._costs.read_s_per_gib)
            sent.zero_pages += zero_pages
        again = not message.first_pass
        wire_part = self._means.wire_parts[again]
        channel.send(self._means.kinds[worker][again], data_pages * PAGE_BYTES, wire_part)
        self.wire_bytes += data_pages * PAGE_BYTES * wire_part
        sent.handled_pages += pages
        sent.data_pages += data_pages
        sent.wire_bytes += data_pages * PAGE_BYTES * wire_part
        sent.scan_s += scan_s
        if message.fence:
            yield from self._fence(channel)
            self._feed(events.WorkerFenced(worker, sent.counters))
            return
        yield channel.may_go_on()
        if message.last:
            self._feed(events.WorkerSent(worker, sent.counters))
        else:
            self._feed(events.WorkerIdle(worker, channel.load))

    def _fence(self, channel: Channel) -> simpy.events.ProcessGenerator:
        """Wait until all is placed. What that costs in the pause is a part of ``pause_s``."""
        yield channel.empty()
        if not self._guest.stopped:
            yield self._env.timeout(self._costs.round_s)

    def _pages(self, numbers: Sequence[int]) -> int:
        return int(np.sum(self._region_pages[np.asarray(numbers, dtype=np.int64)]))

    def _scan_s(self, worker: int, numbers: Sequence[int]) -> float:
        """How long *worker* looks at the dirty log of regions."""
        scan_s = self._pages(numbers) * PAGE_BYTES / GIB * self._costs.scan_s_per_gib
        self._scans_s[worker] += scan_s
        return scan_s


class _Sent(msgspec.Struct):
    """What a worker has done; parts of a page count."""

    handled_pages: int = 0
    data_pages: float = 0.0
    zero_pages: float = 0.0
    wire_bytes: float = 0.0
    scan_s: float = 0.0

    @property
    def counters(self) -> WorkerCounters:
        """The same as a worker reports it."""
        return WorkerCounters(
            handled_pages=self.handled_pages,
            sent_pages=round(self.data_pages),
            zero_pages=round(self.zero_pages),
            wire_bytes=round(self.wire_bytes),
            scan_ns=round(self.scan_s * NS_PER_S),
        )
