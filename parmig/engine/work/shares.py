# SPDX-License-Identifier: Apache-2.0
"""Who gets which regions: owners, bundles, and moving work to idle workers. Pure.

Regions keep their owner from round to round (locality; one channel carries a page's history). Where workers remember
what they sent, a region's owner is whoever sent it last. Within a
round they are handed out in bundles; a worker that has run out of its own takes regions that their
owner was not given yet. Nothing is ever taken back, so in each round each region goes to exactly one
worker; and rounds are separated by fences, so a region moves only when all of it has arrived.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Weights = npt.NDArray[np.int64]

BUNDLE_PART = 4
"""A bundle is a quarter of the regions that their owner has left: few messages at first, small pieces at the end, so
that all workers finish together (guided self-scheduling). 64 regions take about 12 bundles."""

STICKY_PART = 4
"""A quarter of the regions stays with an owner that remembers them: sending one elsewhere costs all of its pages, and
its changes are a hundredth of that. A guest that rewrites 100 MiB a second over 300 Mbit/s did not converge with two
workers that took over each other's last regions in each round."""


WHOLE_PAGES = 2048
"""With at most this many dirty pages (8 MiB, some 8 ms of one channel) each worker gets all of its regions at once, and
the fence with them. Twenty bundles and their answers took 10 ms of a pause; the pages themselves took 2."""

ALONE_PAGES, ALONE_DIRTY_PAGES = 1 << 18, 512
"""With at most this much memory (1 GiB, which one worker scans in 0.8 ms) and this many dirty pages (2 MiB), one worker
alone does a round of the pause: waking a second one and its receiver takes longer, and on few cores they wait for
each other, for QEMU and for the coordinator."""


def assign(weights: Sequence[int], workers: int, speeds: Sequence[float] | None = None) -> list[Sequence[int]]:
    """Give each worker a contiguous stretch of regions, of about equal weight or in proportion to *speeds*.

    Args:
        weights: one a region (its pages).
        speeds: of the workers, none of them 0; None: all are equal.

    Returns:
        ranges of region numbers by worker; every region exactly once. Workers beyond the regions get none.
    """
    each = np.asarray(weights, dtype=np.int64)
    total = int(each.sum())
    # The middle of the region decides whose stretch it belongs to.
    middles = 2 * np.cumsum(each) - each
    if total and speeds is not None:
        borders = np.cumsum(speeds) * (2 * total / sum(speeds))
        owners = np.minimum(workers - 1, np.searchsorted(borders, middles, side="right"))
    else:
        owners = np.minimum(workers - 1, middles * workers // (2 * total)) if total else 0 * each
    ends = np.searchsorted(owners, np.arange(workers), side="right").tolist()
    return [range(first, end) for first, end in itertools.pairwise((0, *ends))]


class Shares:
    """The regions of one round, handed out until none is left.

    Args:
        owned: region numbers by worker.
        whole: hand each worker all of its own at once (few dirty pages: a message costs more).
        sticky: a worker remembers what it sent of its regions, so another one takes over only what would keep the
            owner busy for long: it leaves the owner STICKY_PART of its regions.
        weights: what each region is expected to cost, by its number; None: all cost 1.

    Attributes:
        stolen: how many regions each worker has taken over.
        taken: the regions that each worker has got.
        workers: who takes part in the round.
    """

    def __init__(
        self,
        owned: Sequence[Sequence[int]],
        *,
        whole: bool = False,
        sticky: bool = False,
        weights: Weights | None = None,
    ) -> None:
        self._left = list(owned)  # parts of ranges are ranges: nothing is copied
        self.weights = weights
        self._weight_left = [self.weight_of(regions) for regions in owned]
        self._kept = [len(regions) // STICKY_PART if sticky else 0 for regions in owned]
        self.whole = whole
        self.stolen = [0] * len(owned)
        self.taken: list[list[int]] = [[] for _ in owned]
        self.workers = range(len(owned))

    def take(self, worker: int, most: int | None = None) -> tuple[int, ...]:
        """The next regions for *worker*, its own first, else from whoever has most to give; empty: none left.

        Args:
            most: take regions of at most this weight, but one at least; None: as many as there are.
        """
        most = sys.maxsize if most is None else most
        left = self._left[worker]
        if left:
            part = left if self.whole else left[: max(1, len(left) // BUNDLE_PART)]
            most = most if self.whole else min(most, self._weight_left[worker] // BUNDLE_PART)
            count = len(left) if self.whole else self._fitting(part, most)
            regions, self._left[worker] = tuple(left[:count]), left[count:]
            self._weight_left[worker] -= self.weight_of(regions)
        else:
            regions = self._steal(worker, most)
        self.taken[worker] += regions
        return regions

    def _fitting(self, regions: Sequence[int], most: int) -> int:
        """How many of the first *regions* weigh at most *most* together; one at least."""
        if self.weights is None:
            return max(1, min(len(regions), most))
        sums = np.cumsum(self.weights[_numbers(regions)])
        return max(1, int(np.searchsorted(sums, most, side="right")))

    def weight_of(self, regions: Sequence[int]) -> int:
        """What *regions* are expected to cost together."""
        return len(regions) if self.weights is None else int(self.weights[_numbers(regions)].sum())

    def drop(self, worker: int) -> list[int]:
        """*worker* is gone: nobody gets the rest of its regions in this round. Returns them, and those that it got."""
        self.taken[worker] += self._left[worker]
        self._left[worker], self._kept[worker], self._weight_left[worker] = (), 0, 0
        return self.taken[worker]

    @property
    def left(self) -> int:
        """How many regions nobody has got yet."""
        return sum(map(len, self._left))

    @property
    def weight_left(self) -> int:
        """What these are expected to cost together."""
        return sum(self._weight_left)

    @property
    def spare(self) -> int:
        """How many of them any worker may take."""
        return sum(max(0, len(left) - kept) for left, kept in zip(self._left, self._kept, strict=True))

    def _steal(self, worker: int, most: int) -> tuple[int, ...]:
        """Regions of another worker for *worker*."""
        spare = [len(left) - kept for left, kept in zip(self._left, self._kept, strict=True)]
        most_left = spare if self.weights is None else self._weight_left
        source = max(range(len(spare)), key=lambda owner: (spare[owner] > 0, most_left[owner]))
        if spare[source] <= 0:
            return ()
        left = self._left[source]
        part = left[-min(spare[source], max(1, len(left) // (2 * BUNDLE_PART))) :]
        count = self._fitting(part[::-1], min(most, self._weight_left[source] // (2 * BUNDLE_PART)))
        self.stolen[worker] += count
        self._weight_left[source] -= self.weight_of(left[-count:])
        # From the far end: the owner works from the front and keeps its neighbourhood.
        self._left[source] = left[:-count]
        return tuple(left[-count:])


def _numbers(regions: Sequence[int]) -> npt.NDArray[np.int64]:
    if isinstance(regions, range):
        return np.arange(regions.start, regions.stop, regions.step)
    return np.asarray(regions, dtype=np.int64)


def shares_of_round(
    owned: Sequence[Sequence[int]],
    dirty_pages: int,
    total_pages: int,
    *,
    paused: bool,
    rescan: bool = False,
    sticky: bool = False,
    weights: Weights | None = None,
) -> Shares:
    """How the regions of one round are handed out.

    Args:
        owned: region numbers by worker.
        dirty_pages: how many were dirty at the last count.
        total_pages: of all regions.
        paused: whether the guest stands still meanwhile.
        rescan: whether it is the round after saving, which finds little. If the final round was handed out whole, each
            worker gets the same regions as in that.
        sticky, weights: as for :class:`Shares`.
    """
    if rescan:
        dirty_pages = min(dirty_pages, WHOLE_PAGES)
    if not paused or sticky or dirty_pages > ALONE_DIRTY_PAGES or total_pages > ALONE_PAGES:
        return Shares(owned, whole=dirty_pages <= WHOLE_PAGES, sticky=sticky, weights=weights)
    everything = [number for regions in owned for number in regions]
    shares = Shares([everything, *([] for _ in owned[1:])], whole=True)
    shares.workers = range(1)
    return shares
