# SPDX-License-Identifier: Apache-2.0
"""Who gets which regions: owners, bundles, and moving work to idle workers. Pure.

Regions keep their owner from round to round (locality; one channel carries a page's history). Where workers remember
what they sent, a region's owner is whoever sent it last. Within a
round they are handed out in bundles; a worker that has run out of its own takes regions that their
owner was not given yet. Nothing is ever taken back, so in each round each region goes to exactly one
worker; and rounds are separated by fences, so a region moves only when all of it has arrived.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

BUNDLE_PART = 4
"""A bundle is a quarter of the regions that their owner has left: few messages at first, small pieces at the end, so
that all workers finish together (guided self-scheduling). 64 regions take about 12 bundles."""

STICKY_PART = 4
"""A quarter of the regions stays with an owner that remembers them: sending one elsewhere costs all of its pages, and
its changes are a hundredth of that. A guest that rewrites 100 MiB a second over 300 Mbit/s did not converge with two
workers that took over each other's last regions in each round."""


def assign(weights: Sequence[int], workers: int) -> list[list[int]]:
    """Give each worker a contiguous stretch of regions of about equal weight.

    Args:
        weights: one a region (its pages).

    Returns:
        region numbers by worker; every region exactly once. Workers beyond the regions get none.
    """
    total = sum(weights)
    owned: list[list[int]] = [[] for _ in range(workers)]
    passed = 0
    for region, weight in enumerate(weights):
        # The middle of the region decides whose stretch it belongs to.
        owner = min(workers - 1, (2 * passed + weight) * workers // (2 * total)) if total else 0
        owned[owner].append(region)
        passed += weight
    return owned


class Shares:
    """The regions of one round, handed out until none is left.

    Args:
        owned: region numbers by worker.
        whole: hand each worker all of its own at once (few dirty pages: a message costs more).
        sticky: a worker remembers what it sent of its regions, so another one takes over only what would keep the
            owner busy for long: it leaves the owner STICKY_PART of its regions.

    Attributes:
        stolen: how many regions each worker has taken over.
        taken: the regions that each worker has got.
    """

    def __init__(self, owned: Sequence[Sequence[int]], *, whole: bool = False, sticky: bool = False) -> None:
        self._left = [deque(regions) for regions in owned]
        self._kept = [len(regions) // STICKY_PART if sticky else 0 for regions in owned]
        self._whole = whole
        self.stolen = [0] * len(owned)
        self.taken: list[list[int]] = [[] for _ in owned]

    def take(self, worker: int) -> tuple[int, ...]:
        """The next regions for *worker*, its own first, else from whoever has most to give; empty: none left."""
        left = self._left[worker]
        if left:
            count = len(left) if self._whole else max(1, len(left) // BUNDLE_PART)
            regions = tuple(left.popleft() for _ in range(count))
        else:
            regions = self._steal(worker)
        self.taken[worker] += regions
        return regions

    def _steal(self, worker: int) -> tuple[int, ...]:
        """Regions of another worker for *worker*."""
        spare = [len(left) - kept for left, kept in zip(self._left, self._kept, strict=True)]
        source = max(range(len(spare)), key=spare.__getitem__)
        if spare[source] <= 0:
            return ()
        left = self._left[source]
        count = min(spare[source], max(1, len(left) // (2 * BUNDLE_PART)))
        self.stolen[worker] += count
        # From the far end: the owner works from the front and keeps its neighbourhood.
        return tuple(reversed([left.pop() for _ in range(count)]))
