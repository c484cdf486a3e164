# SPDX-License-Identifier: Apache-2.0
"""The messages between the coordinator and its workers, over a pipe on one host."""

from __future__ import annotations

import msgspec

from parmig.engine.messages.message import Message
from parmig.engine.reporting.report import ErrorReport
from parmig.ram.ack_rate import ChannelLoad
from parmig.ram.dirty_log import DirtyLog
from parmig.ram.shared import WorkerCounters

MAX_LOG_TEXT = 1000
"""The most characters of a worker's log line."""

# -- coordinator to workers ---------------------------------------------------------------------


class StartTracking(Message, frozen=True):
    """Coordinator: this is the dirty log. With *has_fd* its descriptor follows on the pipe."""

    log: DirtyLog
    has_fd: bool


class SendRegions(Message, frozen=True):
    """Coordinator: scan these regions and send what is dirty.

    Attributes:
        first_pass: these regions were never sent.
        holes: look for pages that were given back, too. Needless once the paused guest was scanned.
        scanned: send what ScanRegions has found; else scan the regions now.
        last: no more regions follow in this round, so all of it is passed on, and the answer is Sent. A later round, in
            which this worker sends the same regions, ends with the fence.
        fence: no more regions follow in this round, so a Fence is part of this; the answer is Fenced alone.
    """

    round: int
    regions: tuple[int, ...]
    first_pass: bool
    holes: bool = True
    scanned: bool = False
    last: bool = False
    fence: bool = False


class ScanRegions(Message, frozen=True):
    """Coordinator: scan and re-arm these regions, and keep the result for SendRegions, which any worker may get."""

    regions: tuple[int, ...]


class Fence(Message, frozen=True):
    """Coordinator: no more regions in this round; answer Fenced when all of it is placed."""

    round: int


class CountDirty(Message, frozen=True):
    """Coordinator: how many pages are dirty in these regions now?"""

    regions: tuple[int, ...]


class DigestRegions(Message, frozen=True):
    """Coordinator: send the digests of these regions.

    Attributes:
        by_page: those that are made of the digests of their pages; at the destination, of the pages as placed.
    """

    regions: tuple[int, ...]
    by_page: bool = False


class DigestPages(Message, frozen=True):
    """Coordinator: send the digests of the next *pages* pages from page *first* of a region on.

    Attributes:
        held: (destination) of the memory as it is now; else of the pages as they were placed.
    """

    region: int
    first: int
    pages: int
    held: bool = False


class CheckHeld(Message, frozen=True):
    """Coordinator: the destination holds pages with these digests, 8 bytes each, from page *first* of a region on."""

    region: int
    first: int
    digests: bytes


class PlaceRegions(Message, frozen=True):
    """Coordinator: make these regions of memory equal to the snapshot, in which each page has its own place."""

    regions: tuple[int, ...]


class PlaceStream(Message, frozen=True):
    """Coordinator: read all pages of the sequential snapshot and place them. With *check_only*, only follow them."""

    check_only: bool


class Stop(Message, frozen=True):
    """Coordinator: end now."""


Instruction = (
    StartTracking
    | ScanRegions
    | SendRegions
    | Fence
    | CountDirty
    | DigestRegions
    | DigestPages
    | CheckHeld
    | PlaceRegions
    | PlaceStream
    | Stop
)


# -- workers to the coordinator ----------------------------------------------------------------


class WorkerReady(Message, frozen=True):
    """Worker: connected (send) or listening at *port* (receive)."""

    port: int = 0


class WorkerConnected(Message, frozen=True):
    """Receive worker: its send worker has sent its hello. It is process *pid* of this host; 0: that is not known."""

    pid: int = 0


class ChannelLost(Message, frozen=True):
    """Worker: the connection of my channel is lost; I connect, or listen, again."""

    reason: str


class ChannelResumed(Message, frozen=True):
    """Worker: my channel has a connection again, after *lasted_ns*.

    Attributes:
        again_bytes: (send worker) how much was sent again.
        route: (send worker) the way that the new connection takes.
    """

    lasted_ns: int
    again_bytes: int = 0
    route: str = ""


class RegionsScanned(Message, frozen=True):
    """Send worker: the answer to ScanRegions."""


class RegionsDone(Message, frozen=True):
    """Send worker: one SendRegions is done, apart from what waits for a batch to fill.

    Attributes:
        load: of its channel; None: it writes to a file.
    """

    load: ChannelLoad | None = None


class Sent(Message, frozen=True):
    """Send worker: everything of this round was passed on; not all of it need be placed."""

    round: int
    counters: WorkerCounters


class Fenced(Message, frozen=True):
    """Send worker: everything of this round has been placed by the destination."""

    round: int
    counters: WorkerCounters


class Counted(Message, frozen=True):
    """Send worker: the answer to CountDirty.

    Attributes:
        by_region: pages of each region that was asked for, int32 each.
    """

    pages: int
    by_region: bytes = b""


class RegionDigests(Message, frozen=True):
    """Worker: the answer to DigestRegions, digest by region number."""

    digests: dict[int, int]


class PagesDigested(Message, frozen=True):
    """Worker: the answer to DigestPages, 8 bytes a page."""

    region: int
    first: int
    digests: bytes


class HeldChecked(Message, frozen=True):
    """Send worker: the answer to CheckHeld; see ``held_pages.Checked``."""

    region: int
    proven_pages: int
    again_pages: int
    unarmed: bool


class Placed(Message, frozen=True):
    """Worker: the answer to PlaceRegions and PlaceStream. The pages of a stream end at byte *end_bytes*."""

    counters: WorkerCounters
    end_bytes: int = 0


class WorkerLog(Message, frozen=True):
    """Worker: a line for the log."""

    level: int
    logger: str
    text: str


class WorkerFailed(Message, frozen=True):
    """Worker: I failed and end.

    Attributes:
        died: the pool says this: it ended without a word, for no reason of its own. Another one may do its work.
    """

    error: ErrorReport
    died: bool = False


WorkerEvent = (
    WorkerReady
    | WorkerConnected
    | ChannelLost
    | ChannelResumed
    | RegionsScanned
    | RegionsDone
    | Sent
    | Fenced
    | Counted
    | RegionDigests
    | PagesDigested
    | HeldChecked
    | Placed
    | WorkerFailed
    | WorkerLog
)

instruction_decoder = msgspec.msgpack.Decoder(Instruction)
event_decoder = msgspec.msgpack.Decoder(WorkerEvent)
