# SPDX-License-Identifier: Apache-2.0
"""The work of one round after the other: which worker gets which regions and when, and its fence. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto

import numpy as np

from parmig.engine.messages.worker_messages import Fence, SendRegions
from parmig.engine.plan.events import Instruct, Instruction
from parmig.engine.work.homes import Homes, Nearness, assign_near, nearness
from parmig.engine.work.pace import COUNTED_WIRE_PART, MIN_WIRE_PART, Pace
from parmig.engine.work.shares import Shares, Weights, assign, shares_of_round
from parmig.ram.ack_rate import ChannelLoad
from parmig.ram.blocks import PAGE_BYTES
from parmig.ram.regions import Region

UNEQUAL = 1.25
"""Owners get stretches in proportion to their speeds if the fastest is that many times as fast as the slowest. Speeds
of equal paths differ by less, and then regions stay where they are."""


EMPTY_PART = 1 / 1024
"""In the first round, a region without memory is expected to cost this part of a full one. It costs next to nothing,
but the guest may write to it meanwhile, so a bundle has at most so much more memory than the worker sends in 0.25 s. By
simulation, 12 TiB with 64 GiB in one place take 2,440 instructions to 64 workers, with 1/64 they take 13,270."""


class RoundKind(Enum):
    """What a round is for."""

    RUNNING = auto()
    FINAL = auto()
    """The first one of the paused guest."""
    RESCAN = auto()
    """The one after saving."""


class RoundWork:
    """Hands out the regions of each round.

    Args:
        regions: all regions of all blocks.
        workers: how many send workers.
        remembering: workers remember what they have sent, so regions stay with their last sender.

    Attributes:
        owned: region numbers by worker.
        lost: regions of workers that have died in a round. The next round sends them as if for the first time.
        total_pages: of all regions.
    """

    def __init__(self, regions: Sequence[Region], workers: int, *, remembering: bool) -> None:
        self._weights = [region.pages for region in regions]
        self._workers = workers
        self._remembering = remembering
        self._homes: Homes | None = None
        self.owned = self._assign()
        self.total_pages = sum(self._weights)
        self._region_bytes = self.total_pages * PAGE_BYTES // max(1, len(regions))
        self.lost: set[int] = set()
        self._again: set[int] = set()
        self._counted: dict[int, Weights] = {}
        self._expected: Weights | None = None
        self._shares = Shares([])
        self._pace = Pace(workers)
        self._waiting, self._fencing, self._resting = set[int](), set[int](), set[int]()
        self._round, self._kind, self._scanned = 0, RoundKind.RUNNING, False

    def settle(self, homes: Homes | None) -> list[Nearness]:
        """Give workers regions of their own NUMA nodes from now on; returns how much of it was possible."""
        self._homes = homes
        if homes is None:
            return []
        self.owned = self._assign()
        return nearness(self._weights, homes, self.owned)

    def _assign(self, speeds: Sequence[float] | None = None) -> list[Sequence[int]]:
        if self._homes is None:
            return assign(self._weights, self._workers, speeds)
        return assign_near(self._weights, self._homes, speeds)

    def expect(self, begun: bytes) -> None:
        """Cut the first round by which regions have memory.

        Args:
            begun: which regions have any memory, one byte each; empty: not known.
        """
        if len(begun) == len(self._weights):
            full_bytes = np.array(self._weights, dtype=np.int64) * PAGE_BYTES
            exists = np.frombuffer(begun, dtype=np.bool_)
            self._expected = np.where(exists, full_bytes, np.maximum(1, (full_bytes * EMPTY_PART).astype(np.int64)))

    def counted(self, worker: int, by_region: bytes) -> None:
        """Worker *worker* has counted the dirty pages of each region that it owns; so the next round is cut by them.

        Args:
            by_region: int32 each, in the order of the regions.
        """
        pages = np.frombuffer(by_region, dtype=np.int32)
        if len(pages) == len(self.owned[worker]):
            self._counted[worker] = pages.astype(np.int64)

    def _take_weights(self) -> Weights | None:
        """What each region is expected to cost in bytes on the wire; None: it is not known.

        A region without dirty pages costs its look-up, and others may have become dirty meanwhile.
        """
        counted, self._counted = self._counted, {}
        expected, self._expected = self._expected, None
        if self.lost or self._again:
            return None
        if expected is not None:
            return expected
        if len(counted) < sum(len(owned) > 0 for owned in self.owned):
            return None
        weights = np.full(len(self._weights), round(self._region_bytes * MIN_WIRE_PART), dtype=np.int64)
        for worker, pages in counted.items():
            numbers = np.asarray(self.owned[worker], dtype=np.int64)
            weights[numbers] = np.maximum(weights[numbers], pages * PAGE_BYTES)
        return weights

    @property
    def stolen(self) -> Sequence[int]:
        """How many regions each worker has taken over in this round."""
        return self._shares.stolen

    def begin(
        self, round_: int, kind: RoundKind, dirty_pages: int, now_ns: int, *, scanned: bool = False
    ) -> list[Instruction]:
        """Begin a round; returns the first instructions.

        Args:
            dirty_pages: how many were dirty at the last count.
            scanned: the workers have scanned all regions.
        """
        self._round, self._kind, self._scanned = round_, kind, scanned
        absent = self.lost | self._again
        weights = self._take_weights()
        self._shares = shares_of_round(
            [[number for number in owned if number not in absent] for owned in self.owned] if absent else self.owned,
            dirty_pages,
            self.total_pages,
            paused=kind is not RoundKind.RUNNING,
            rescan=kind is RoundKind.RESCAN,
            sticky=self._remembering and round_ > 1,
            weights=weights,
        )
        if weights is None:
            self._pace.begin_round(dirty_pages / max(1, self.total_pages))
        else:
            self._pace.begin_round(1.0, COUNTED_WIRE_PART)
        self._waiting, self._fencing, self._resting = set(self._shares.workers), set(), set()
        instructions = self._send_anew(sorted(self._again - self.lost), now_ns)
        # A second bundle each, so that no worker waits for an answer.
        for _ in range(1 if self._shares.whole else 2):
            for worker in self._shares.workers:
                instructions += self._feed(worker, now_ns)
        return instructions

    def idle(self, worker: int, load: ChannelLoad | None, now_ns: int) -> list[Instruction]:
        """A worker has done one bundle."""
        self._pace.done(worker, load, now_ns)
        return self._feed(worker, now_ns) + self.look_again(now_ns)

    def look_again(self, now_ns: int) -> list[Instruction]:
        """Time has passed: give workers that rest something after all, if others have become slower than expected."""
        return [instruction for worker in sorted(self._resting) for instruction in self._feed(worker, now_ns)]

    def take_up(self) -> None:
        """A round is about to begin: it sends anew what is lost until now."""
        self._again, self.lost = self.lost, set()

    def _send_anew(self, lost: Sequence[int], now_ns: int) -> list[Instruction]:
        """Give each worker a part of the *lost* regions, besides its share. No round of the pause has any."""
        instructions: list[Instruction] = []
        for worker in range(self._workers):
            part = tuple(lost[worker :: self._workers])
            if part:
                self._shares.taken[worker] += part
                self._pace.gave(worker, len(part) * self._region_bytes, now_ns)
                instructions.append(Instruct(worker, SendRegions(self._round, part, True, True, self._scanned)))
        return instructions

    def takes_part(self, worker: int) -> bool:
        """Whether *worker* has not ended its part of the round."""
        return worker in self._waiting

    def drop(self, worker: int) -> tuple[int, ...]:
        """A worker has died: it takes no part in this round any more. Returns the regions that are lost with it."""
        lost = self._shares.drop(worker)
        self.lost.update(lost)
        self._pace.drop(worker)
        self._fencing.add(worker)
        self._resting.discard(worker)
        return tuple(lost)

    def fenced(self, worker: int) -> bool:
        """A worker has ended its part of the round; returns whether all have."""
        self._waiting.discard(worker)
        if self._waiting:
            return False
        if self._remembering:
            self.owned = [sorted(regions) for regions in self._shares.taken]
            if self.lost:  # some may have been given to nobody
                left = self.lost.difference(*self._shares.taken)
                self.owned[0] = sorted([*self.owned[0], *left])
        elif self._kind is RoundKind.RUNNING:
            speeds = self._pace.speeds()
            if speeds is not None and max(speeds) > UNEQUAL * min(speeds):
                self.owned = self._assign(speeds)
        return True

    def _feed(self, worker: int, now_ns: int) -> list[Instruction]:
        """What *worker* gets next: regions, its fence, or nothing for now."""
        if self._rests(worker, now_ns):
            self._resting.add(worker)
            return []
        self._resting.discard(worker)
        shares = self._shares
        most_bytes = self._pace.bundle_bytes(worker, shares.weight_left * self._weight_bytes, now_ns)
        most = None if most_bytes is None else most_bytes // self._weight_bytes
        regions = shares.take(worker, most)
        if regions:
            self._pace.gave(worker, shares.weight_of(regions) * self._weight_bytes, now_ns)
            if shares.whole:
                self._fencing.add(worker)
            # The last scan need not wait until the last pages are in place: each region stays with its worker.
            last = shares.whole and self._kind is RoundKind.FINAL
            holes = self._kind is not RoundKind.RESCAN
            first_pass, fence = self._round == 1, shares.whole and not last
            order = SendRegions(self._round, regions, first_pass, holes, self._scanned, last, fence)
            return [Instruct(worker, order)]
        if worker in self._fencing:
            return []
        # No regions are left for this worker, so the fence may follow what it still has.
        self._fencing.add(worker)
        return [Instruct(worker, Fence(self._round))]

    def _rests(self, worker: int, now_ns: int) -> bool:
        """Whether *worker* should leave what is left to others."""
        if self._shares.whole or not self._shares.spare:
            return False
        left_bytes = self._shares.weight_left * self._weight_bytes
        return self._pace.should_rest(worker, left_bytes // max(1, self._shares.left), left_bytes, now_ns)

    @property
    def _weight_bytes(self) -> int:
        """How many bytes a weight of 1 means."""
        return max(1, self._region_bytes) if self._shares.weights is None else 1
