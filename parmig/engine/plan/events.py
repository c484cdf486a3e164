# SPDX-License-Identifier: Apache-2.0
"""The events that the plans take, and the instructions that the source's plan returns.

The first group is for both plans. Events and instructions of the destination alone are in ``destination_events``.
"""

from __future__ import annotations

import enum

import msgspec

from parmig.engine.hooks import RunHook
from parmig.engine.messages import worker_messages
from parmig.engine.records.handover_record import RecordState
from parmig.engine.reporting.change import Change, SetRate
from parmig.engine.work.homes import Homes
from parmig.errors import ParmigError
from parmig.ram.ack_rate import ChannelLoad
from parmig.ram.shared import WorkerCounters

# -- events of both sides -----------------------------------------------------------------------


class Event(msgspec.Struct, frozen=True):
    """Root of the events."""


class Failed(Event, frozen=True):
    """Something failed on this side, or the peer reported that it failed."""

    error: ParmigError


class Suspected(Event, frozen=True):
    """Something failed that may only be a symptom, as a lost connection is: its cause may arrive shortly."""

    error: ParmigError


class CancelAsked(Event, frozen=True):
    """The user cancels the migration."""


class Tick(Event, frozen=True):
    """Time passes; the plan checks its time limits."""


class WorkerDied(Event, frozen=True):
    """A worker of this side has ended without a reason of its own; it is reaped. Another one may take its place."""

    worker: int
    error: ParmigError


class Recorded(Event, frozen=True):
    """The record of the hand-over has *state*, on disk."""

    state: RecordState


class RecordFailed(Event, frozen=True):
    """*state* could not be shown to be on disk. It may be there all the same."""

    state: RecordState
    error: ParmigError


class WorkerDigested(Event, frozen=True):
    """Digests of a worker's regions."""

    worker: int
    digests: dict[int, int]


class WorkerDigestedPages(Event, frozen=True):
    """Digests of pages of a region from *first* on, 8 bytes each."""

    region: int
    first: int
    digests: bytes


# -- events of the source -----------------------------------------------------------------------


class LimitsChanged(Event, frozen=True):
    """The user has changed limits."""

    change: Change


class WorkersReady(Event, frozen=True):
    """Every send worker is connected to its receive worker."""


class LogStarted(Event, frozen=True):
    """The guest records writes from now on. *homes*: where its regions are, if workers are kept to NUMA nodes; *begun*:
    which of them have any memory, one byte each (empty: not known).
    """

    needs_sync: bool
    settles: bool = False
    homes: Homes | None = None
    begun: bytes = b""


class LogSynced(Event, frozen=True):
    """The shared log is up to date."""


class WorkerScanned(Event, frozen=True):
    """A worker has scanned and re-armed all of its regions."""

    worker: int


class GuestSettled(Event, frozen=True):
    """Every device write that had begun when the guest was asked has landed; that took *took_ns*."""

    took_ns: int


class WorkerIdle(Event, frozen=True):
    """A worker has done one bundle of regions. *load* is that of its channel; None: it has no channel."""

    worker: int
    load: ChannelLoad | None = None


class WorkerSent(Event, frozen=True):
    """A worker has passed on all that it sends in this round; a fence follows in the next."""

    worker: int
    counters: WorkerCounters


class WorkerFenced(Event, frozen=True):
    """All that a worker sent in this round has been placed."""

    worker: int
    counters: WorkerCounters


class ChannelLost(Event, frozen=True):
    """A channel has lost its connection, and connects again."""

    channel: str
    reason: str


class ChannelResumed(Event, frozen=True):
    """A channel has a connection again, by *route*, over which *again_bytes* were sent again."""

    channel: str
    again_bytes: int = 0
    route: str = ""


class WorkerCounted(Event, frozen=True):
    """How many pages are dirty in a worker's regions; *by_region* as in ``Counted``."""

    worker: int
    pages: int
    by_region: bytes = b""


class GuestPaused(Event, frozen=True):
    """Nothing writes RAM from now on; the virtual CPUs stopped at *stopped_ns*."""

    stopped_ns: int


class Throttled(Event, frozen=True):
    """The guest runs at the speed that was asked for."""


class StateSaved(Event, frozen=True):
    """All device state was handed to the state channel; that took *took_ns*."""

    size_bytes: int
    digest: str
    took_ns: int = 0


class PeerDigested(Event, frozen=True):
    """The destination's digest of all RAM."""

    digest: str


class PeerDigests(Event, frozen=True):
    """The destination's digests of what was placed, as in ``digest_messages.Digests``."""

    region: int
    first: int
    digests: bytes


class PeerLoaded(Event, frozen=True):
    """The destination has loaded the state and could run."""

    load_ns: int


class PeerResumed(Event, frozen=True):
    """The guest runs at the destination, and had run for *since_ns* when the destination reported it."""

    since_ns: int = 0


class PeerRefused(Event, frozen=True):
    """The destination has refused the guest for good, and has that on record. It never runs there."""

    error: ParmigError


class PeerTook(Event, frozen=True):
    """The destination answered a question: it has taken the guest, and had it for *since_ns* then."""

    since_ns: int = 0


class NobodyListens(Event, frozen=True):
    """The destination's host refused the connection over which it was to be asked."""

    error: ParmigError


class HandOverNotSent(Event, frozen=True):
    """The hand-over never left this host, so that the destination cannot act on it."""

    error: ParmigError


# -- instructions of the source -----------------------------------------------------------------


class Do(enum.Enum):
    """Instructions without arguments."""

    START_LOG = "start the dirty log"
    SYNC_LOG = "bring the shared dirty log up to date"
    SETTLE = "wait for device writes that have begun"
    PAUSE = "pause the guest"
    SAVE_STATE = "save the device state"
    ASK_DIGEST = "ask the destination for its digest"
    RELEASE = "let the destination load the state"
    HAND_OVER = "hand over"
    ASK = "ask the destination, over a new connection, who has the guest"
    COMPARE = "attend to the workers again: they compare"
    FINISH = "finish: the guest runs at the destination"
    GO_ON = "let the guest go on here"
    COMPOSE = "write what is left of the file"
    COMMIT = "give the file its digest and its name"
    ABANDON = "roll back: the guest goes on here"
    GIVE_UP = "stay paused: only the destination knows"


class Instruct(msgspec.Struct, frozen=True):
    """Send *instruction* to worker *worker*."""

    worker: int
    instruction: worker_messages.Instruction


class Replace(msgspec.Struct, frozen=True):
    """Start a worker in place of *worker*, which has died for this *reason*.

    Attributes:
        regions: (source) what nobody knows the state of any more; they are sent anew in the next round.
    """

    worker: int
    reason: str
    regions: tuple[int, ...] = ()


class WriteRecord(msgspec.Struct, frozen=True):
    """Write *state* to the record of the hand-over. ``Recorded`` or ``RecordFailed`` follows."""

    state: RecordState


class Throttle(msgspec.Struct, frozen=True):
    """Let the guest's virtual CPUs run only ``100 - percent`` % of the time. No step waits for it."""

    percent: int


class AskDigests(msgspec.Struct, frozen=True):
    """Ask the destination for digests, as in ``digest_messages.DigestsRequest``."""

    region: int
    first: int


Instruction = Do | Instruct | Replace | Throttle | SetRate | RunHook | AskDigests | WriteRecord
