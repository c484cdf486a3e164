# SPDX-License-Identifier: Apache-2.0
"""Flows in simulated time: each carries its bytes at its fair share, which changes when another one begins or ends."""

from __future__ import annotations

import heapq
import itertools
from collections import defaultdict
from collections.abc import Hashable, Sequence

import msgspec
import simpy

from parmig.experiments.simulation.sharing import FlowKind, Resource, Share, fair_shares

END_BYTES = 1.0
"""A flow that has less than this to carry has ended: the sums are floats."""


class Sample(msgspec.Struct, frozen=True):
    """How much of each resource was in use from an instant on.

    Attributes:
        at_s: since the beginning.
        used: part of the capacity of each resource, 0 to 1.
    """

    at_s: float
    used: tuple[float, ...]


class Flows:
    """All flows of a simulation.

    Args:
        env: the simulated time, in seconds.
        resources: what they share.

    Attributes:
        samples: use of the resources, whenever it changed.
        limited_s: of each owner, how long each limit held its flows back. It adds up to the time with flows.
    """

    def __init__(self, env: simpy.Environment, resources: Sequence[Resource]) -> None:
        self._env = env
        self.resources = tuple(resources)
        self._kinds: list[FlowKind] = []
        self._owners: list[Hashable] = []
        self._counts: list[int] = []
        self._served: list[float] = []
        self._waiting: list[list[tuple[float, int, simpy.Event]]] = []
        self._numbers = itertools.count()
        self._shares: list[Share] = []
        self._known: dict[tuple[int, ...], list[Share]] = {}
        self._since_s = env.now
        self._settling = False
        self._turn = 0
        self.samples: list[Sample] = []
        self.limited_s: dict[Hashable, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        self._used_s = [0.0] * len(self.resources)

    def add_kind(self, kind: FlowKind, owner: Hashable) -> int:
        """Make *kind* known, whose flows belong to *owner*; its number."""
        self._advance()
        self._kinds.append(kind)
        self._owners.append(owner)
        self._counts.append(0)
        self._served.append(0.0)
        self._waiting.append([])
        self._known.clear()
        self._shares = [*self._shares, Share(0.0, "")]
        return len(self._kinds) - 1

    def carry(self, kind: int, size_bytes: float) -> simpy.Event:
        """Begin a flow of *size_bytes* of guest memory; the event happens when it has ended."""
        done = self._env.event()
        if size_bytes < END_BYTES:
            return done.succeed()
        self._advance()
        heapq.heappush(self._waiting[kind], (self._served[kind] + size_bytes, next(self._numbers), done))
        self._counts[kind] += 1
        self._settle_soon()
        return done

    def share(self, kind: int) -> float:
        """What one flow of *kind* carries now, in bytes a second of guest memory."""
        return self._shares[kind].bytes_per_s

    def used_s(self) -> list[float]:
        """How long each resource would have been busy at its full capacity, from the beginning until now."""
        self._advance()
        return list(self._used_s)

    # -- time -----------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Carry what was carried since the last call."""
        passed_s = self._env.now - self._since_s
        if passed_s <= 0:
            return
        self._since_s = self._env.now
        of_owner: dict[Hashable, list[tuple[int, str]]] = defaultdict(list)
        for number, count in enumerate(self._counts):
            if count:
                share = self._shares[number]
                self._served[number] += share.bytes_per_s * passed_s
                of_owner[self._owners[number]].append((count, share.limit))
        for owner, limits in of_owner.items():
            flows = sum(count for count, _ in limits)
            for count, limit in limits:
                self.limited_s[owner][limit] += passed_s * count / flows
        if self.samples:
            for number, used in enumerate(self.samples[-1].used):
                self._used_s[number] += used * passed_s

    def _settle_soon(self) -> None:
        """Compute the shares once all that happens at this instant has happened."""
        if not self._settling:
            self._settling = True
            self._env.timeout(0).callbacks.append(self._settle)

    def _settle(self, _: simpy.Event) -> None:
        self._settling = False
        self._advance()
        counts = tuple(self._counts)
        if counts not in self._known:
            self._known[counts] = fair_shares(self._kinds, counts, self.resources)
        if self._shares is not self._known[counts]:
            self._shares = self._known[counts]
            self._note_use()
        self._turn += 1
        next_s = min(
            (
                (waiting[0][0] - self._served[number]) / self._shares[number].bytes_per_s
                for number, waiting in enumerate(self._waiting)
                if waiting
            ),
            default=None,
        )
        if next_s is not None:
            self._env.timeout(max(0.0, next_s), self._turn).callbacks.append(self._end_due)

    def _end_due(self, timer: simpy.Event) -> None:
        """End the flows that have carried all."""
        if timer.value != self._turn:
            return  # the shares have changed meanwhile
        self._advance()
        for number, waiting in enumerate(self._waiting):
            while waiting and waiting[0][0] - self._served[number] < END_BYTES:
                self._counts[number] -= 1
                heapq.heappop(waiting)[2].succeed()
            if not waiting:
                self._served[number] = 0.0  # sums stay small, so they stay exact
        self._settle_soon()

    def _note_use(self) -> None:
        used = [0.0] * len(self.resources)
        for kind, count, share in zip(self._kinds, self._counts, self._shares, strict=True):
            for resource, amount in kind.needs if count else ():
                used[resource] += count * share.bytes_per_s * amount
        parts = tuple(
            min(1.0, amount / resource.capacity) for amount, resource in zip(used, self.resources, strict=True)
        )
        if self.samples and self.samples[-1].at_s == self._env.now:
            self.samples.pop()
        self.samples.append(Sample(self._env.now, parts))
