# SPDX-License-Identifier: Apache-2.0
"""The comparison of both memories after the hand-over. Pure: it is a part of either side's plan.

The source asks for the digests of all regions as they were placed, while its workers compute those of its frozen
memory. For the first regions that differ it asks for the digests of their pages, to name these. Nothing of this changes
where the guest runs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from parmig.engine.messages import peer_messages
from parmig.engine.messages.digest_messages import ALL_REGIONS, MAX_DIGESTS, Digests, DigestsRequest
from parmig.engine.messages.worker_messages import DigestPages, DigestRegions
from parmig.engine.plan import destination_events, events
from parmig.engine.plan.events import AskDigests, Do, Event, Instruct, Instruction
from parmig.engine.plan.plan import EXPLANATION_NS
from parmig.engine.reporting import error_reports
from parmig.engine.work.shares import assign
from parmig.errors import LimitExceededError, NotVerifiedError, ParmigError, ProtocolError
from parmig.ram import page_digests
from parmig.ram.blocks import PAGE_BYTES, RamBlock
from parmig.ram.page_digests import DIGEST_BYTES, pack, unpack
from parmig.ram.region_digest import combine
from parmig.ram.regions import Region
from parmig.units import NS_PER_S

SILENCE_LIMIT_NS = 60 * NS_PER_S
"""How long the comparison may go on without an answer of a worker or of the destination. Each answer of a worker is for
BUNDLE regions, usually at most 1 GiB, which takes under a second, or half a minute if it was swapped out."""

BUNDLE = 16
"""Regions that a worker digests at a time."""

MAX_NAMED, MAX_LOOKED = 8, 4
"""A message names at most so many pages, of so many regions."""


class Comparison:
    """The source's part.

    Args:
        regions: all regions of all blocks.
        blocks: by number, for the message.
        workers: how many send workers.
        in_place: whether other memory of the guest was not copied, so that only the destination can run it.

    Attributes:
        over: whether the result is known, or will never be.
        source_digest, peer_digest: of all memory, once known.
        error: None: the memories are equal.
    """

    def __init__(
        self, regions: Sequence[Region], blocks: Sequence[RamBlock], workers: int, *, in_place: bool = False
    ) -> None:
        self._regions = regions
        self._blocks = blocks
        self._workers = workers
        self._in_place = in_place
        self._left: list[Sequence[int]] = []
        self._source_digests: dict[int, int] = {}
        self._placed_digests: dict[int, int] = {}
        self._differ: list[int] = []
        self._looked = 0
        self._asked = DigestsRequest(ALL_REGIONS, 0)
        self._source_pages: page_digests.Digests | None = None
        self._placed_pages: page_digests.Digests | None = None
        self._named: list[str] = []
        self._since_ns = 0
        self._suspected: tuple[ParmigError, int] | None = None  # and since when; its cause may follow
        self.over = False
        self.source_digest: str | None = None
        self.peer_digest: str | None = None
        self.error: ParmigError | None = None

    def begin(self, now_ns: int) -> list[Instruction]:
        """Ask the destination and all workers."""
        self._since_ns = now_ns
        self._left = assign([region.pages for region in self._regions], self._workers)
        work = [instruction for worker in range(self._workers) for instruction in self._next_bundle(worker)]
        return [Do.COMPARE, AskDigests(ALL_REGIONS, 0), *work]

    def handle(self, event: Event, now_ns: int) -> list[Instruction]:
        """Take one event and return what to do next. What was not asked for is ignored."""
        match event:
            case events.Failed(error=error) | events.WorkerDied(error=error):
                return self._end(error)
            case events.Suspected(error=error):
                self._suspected = self._suspected or (error, now_ns)
                return []
            case events.Tick() if self._suspected and now_ns - self._suspected[1] >= EXPLANATION_NS:
                return self._end(self._suspected[0])
            case events.CancelAsked():
                return self._end(ParmigError("it was cancelled"))
            case events.Tick():
                silent = now_ns - self._since_ns >= SILENCE_LIMIT_NS
                limit = f"nothing was heard of it for {SILENCE_LIMIT_NS // NS_PER_S} s"
                return self._end(LimitExceededError(limit)) if silent else []
        self._since_ns = now_ns
        match event:
            case events.WorkerDigested(worker=worker, digests=digests):
                self._source_digests |= digests
                return self._next_bundle(worker) or self._sum_up()
            case events.PeerDigests() if (event.region, event.first) == (self._asked.region, self._asked.first):
                return self._hear(event)
            case events.WorkerDigestedPages() if (event.region, event.first) == (self._asked.region, self._asked.first):
                self._source_pages = unpack(event.digests)
                return self._compare_pages()
        return []

    # -- regions --------------------------------------------------------------------------------

    def _next_bundle(self, worker: int) -> list[Instruction]:
        bundle, self._left[worker] = self._left[worker][:BUNDLE], self._left[worker][BUNDLE:]
        return [Instruct(worker, DigestRegions(tuple(bundle), by_page=True))] if bundle else []

    def _hear(self, answer: events.PeerDigests) -> list[Instruction]:
        count = _portion(self._regions, self._asked)
        if len(answer.digests) != count * DIGEST_BYTES:
            size = f"{len(answer.digests)} bytes of digests, expected {count * DIGEST_BYTES}"
            return self._end(ProtocolError(f"the destination sent {size}"))
        digests = unpack(answer.digests)
        if answer.region != ALL_REGIONS:
            self._placed_pages = digests
            return self._compare_pages()
        self._placed_digests |= zip(range(answer.first, answer.first + count), digests.tolist(), strict=True)
        if len(self._placed_digests) < len(self._regions):
            return self._ask(ALL_REGIONS, len(self._placed_digests))
        return self._sum_up()

    def _ask(self, region: int, first: int) -> list[Instruction]:
        self._asked = DigestsRequest(region, first)
        return [AskDigests(region, first)]

    def _sum_up(self) -> list[Instruction]:
        count = len(self._regions)
        if self.source_digest is not None or min(len(self._source_digests), len(self._placed_digests)) < count:
            return []
        self.source_digest, self.peer_digest = (
            combine(self._source_digests, count),
            combine(self._placed_digests, count),
        )
        self._differ = [
            number for number in range(count) if self._source_digests[number] != self._placed_digests[number]
        ]
        return self._look(self._differ[0], 0) if self._differ else self._end(None)

    # -- pages of regions that differ -------------------------------------------------------------

    def _look(self, region: int, first: int) -> list[Instruction]:
        asked = self._ask(region, first)
        self._source_pages = self._placed_pages = None
        return [*asked, Instruct(0, DigestPages(region, first, _portion(self._regions, self._asked)))]

    def _compare_pages(self) -> list[Instruction]:
        here, there, number = self._source_pages, self._placed_pages, self._asked.region
        if here is None or there is None:
            return []
        region = self._regions[number]
        for page in np.flatnonzero(here != there)[: MAX_NAMED - len(self._named)].tolist():
            self._named.append(self._name(region, self._asked.first + page))
        first = self._asked.first + len(here)
        if first < region.pages and len(self._named) < MAX_NAMED:
            return self._look(number, first)
        self._looked += 1
        if self._looked < min(MAX_LOOKED, len(self._differ)) and len(self._named) < MAX_NAMED:
            return self._look(self._differ[self._looked], 0)
        return self._end(None)

    def _name(self, region: Region, page: int) -> str:
        block, offset = self._blocks[region.block], (region.first_page + page) * PAGE_BYTES
        seen = [r.gpa + offset - r.offset_bytes for r in block.ranges if 0 <= offset - r.offset_bytes < r.size_bytes]
        return f"block {block.name!r} byte {offset:#x}" + (f" (guest physical {seen[0]:#x})" if seen else "")

    # -- the end --------------------------------------------------------------------------------

    def _end(self, reason: ParmigError | None) -> list[Instruction]:
        """End. *reason* is why it ends early, if it does."""
        self.over = True
        advice = (
            "the guest runs at the destination, and the source is paused and still has its memory as it was handed over"
        )
        if self._differ:
            more = f"{len(self._differ)} of {len(self._regions)} regions differ"
            where = f", with the pages at {'; '.join(self._named)}" if self._named else ""
            end = f"{advice}: see whether it is right there"
            if self._in_place:
                end = "the guest runs at the destination, with memory that stayed in place: see whether it is right"
            else:
                end += "; only if it is not, stop it there first, and continue it here"
            self.error = NotVerifiedError(f"the memories are not the same, expected equal ones: {more}{where}; {end}")
        elif reason is not None:
            self.error = NotVerifiedError(
                f"the memories were not compared to the end: {reason}; {advice}; "
                "look there whether the guest is right, or use --verify=before"
            )
        if self.error is not None:
            self.error.__cause__ = reason
            self.error.phase = "comparing the memories"
        return [Do.FINISH]


def _portion(regions: Sequence[Region], asked: DigestsRequest) -> int:
    """How many digests the answer has; less than 1: *asked* asks for something that is not there."""
    total = len(regions) if asked.region == ALL_REGIONS else regions[asked.region].pages
    return min(MAX_DIGESTS, total - asked.first)


class PlacedAnswers:
    """The destination's part: it answers what the source asks.

    Args:
        regions: all regions of all blocks.
        owned: region numbers by worker.
        kept: whether the workers keep digests of what they place.

    Attributes:
        begun: whether the source has asked.
        digest: of all memory as it was placed, once known.
    """

    def __init__(self, regions: Sequence[Region], owned: Sequence[Sequence[int]], *, kept: bool) -> None:
        self._regions = regions
        self._owned = owned
        self._kept = kept
        self._asked: DigestsRequest | None = None
        self._refused = False
        self._waiting: set[int] = set()
        self._digests: dict[int, int] = {}
        self.begun = False
        self.digest: str | None = None

    def handle(self, event: Event) -> list[destination_events.Instruction]:
        """Take one event and return what to do next."""
        match event:
            case destination_events.Heard(message=DigestsRequest() as asked):
                return self._hear(asked)
            case events.WorkerDigested(worker=worker, digests=digests) if worker in self._waiting:
                self._waiting.discard(worker)
                self._digests |= digests
                if self._waiting:
                    return []
                self.digest = combine(self._digests, len(self._regions))
                return self._answer_regions()
            case events.WorkerDigestedPages(region=region, first=first, digests=digests):
                return [destination_events.SendMessage(Digests(region, first, digests))]
            case events.Failed(error=error) | events.WorkerDied(error=error) if self.begun:
                return self._refuse(error)
        return []

    def _hear(self, asked: DigestsRequest) -> list[destination_events.Instruction]:
        if not self._kept or asked.region >= len(self._regions) or _portion(self._regions, asked) < 1:
            return self._refuse(ProtocolError(f"there are no digests for {asked}"))
        if asked.region != ALL_REGIONS:
            return [Instruct(0, DigestPages(asked.region, asked.first, _portion(self._regions, asked)))]
        self._asked = asked
        if self.begun:
            return self._answer_regions()
        self.begun = True
        self._waiting = set(range(len(self._owned)))
        work = [
            Instruct(worker, DigestRegions(tuple(numbers), by_page=True)) for worker, numbers in enumerate(self._owned)
        ]
        return [destination_events.Act.COMPARE, *work]

    def _refuse(self, error: ParmigError) -> list[destination_events.Instruction]:
        if self._refused:
            return []
        self._refused = True
        return [destination_events.SendMessage(peer_messages.Failure(error_reports.describe_error(error)))]

    def _answer_regions(self) -> list[destination_events.Instruction]:
        asked = self._asked
        if asked is None or self._waiting:
            return []
        self._asked = None
        numbers = range(asked.first, asked.first + _portion(self._regions, asked))
        digests = np.array([self._digests[number] for number in numbers], dtype=np.uint64)
        return [destination_events.SendMessage(Digests(ALL_REGIONS, asked.first, pack(digests)))]
