# SPDX-License-Identifier: Apache-2.0
"""Flows in simulated time: each carries its bytes at its fair share, which changes when another one begins or ends."""

from __future__ import annotations

import heapq
import itertools
from collections import defaultdict
from collections.abc import Sequence

import msgspec
import simpy

from parmig.experiments.simulation.sharing import FlowKind, Resource, Share, fair_shares

END_BYTES = 1.0
"""A flow that has less than this to carry has ended: the sums are floats."""


MOST_KNOWN = 4096
"""Shares of so many sets of flows are remembered: a worker that takes its next bundle leads back to the same set."""


class Sample(msgspec.Struct, frozen=True):
    """How much of each resource was in use from an instant on.

    Attributes:
        at_s: since the beginning.
        used: number of a resource to the part of its capacity, 0 to 1; the others were not in use.
    """

    at_s: float
    used: dict[int, float]


class Flow(msgspec.Struct, frozen=True):
    """A flow that has begun.

    Attributes:
        end: how much each flow of its kind must have carried when it ends.
        done: happens then.
    """

    kind: int
    end: float
    done: simpy.Event


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
        self._owners: list[str] = []
        self._waiting: list[list[tuple[float, int, simpy.Event, bool]]] = []
        self._counts: list[int] = []
        # Of kinds that have flows: what each flow has carried since there were some, and its share.
        self._served: dict[int, float] = {}
        self._shares: dict[int, Share] = {}
        self._known: dict[tuple[tuple[int, int], ...], dict[int, Share]] = {}
        self._numbers = itertools.count()
        self._since_s = env.now
        self._settling = False
        self._turn = 0
        self.samples: list[Sample] = []
        self.limited_s: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        self._used_s: dict[int, float] = defaultdict(float)

    def add_kind(self, kind: FlowKind, owner: str) -> int:
        """Make *kind* known, whose flows belong to *owner*; its number."""
        self._kinds.append(kind)
        self._owners.append(owner)
        self._waiting.append([])
        self._counts.append(0)
        return len(self._kinds) - 1

    def carry(self, kind: int, size_bytes: float) -> Flow:
        """Begin a flow of *size_bytes* of guest memory."""
        self._advance()
        flow = Flow(kind, self._served.setdefault(kind, 0.0) + size_bytes, self._env.event())
        self._counts[kind] += 1
        self._wait(flow, 0.0, flow.done, ends=True)
        return flow

    def notify(self, flow: Flow, left_bytes: float, reached: simpy.Event) -> None:
        """Let *reached* happen when *flow* has at most *left_bytes* to carry."""
        if self.left(flow) - left_bytes < END_BYTES:
            reached.succeed()
        else:
            self._wait(flow, left_bytes, reached, ends=False)

    def left(self, flow: Flow) -> float:
        """What *flow* has still to carry."""
        self._advance()
        return 0.0 if flow.done.triggered else max(0.0, flow.end - self._served[flow.kind])

    def share(self, kind: int) -> float:
        """What a flow of *kind* carries now, in bytes a second; 0: there is none, or it has only just begun."""
        return self._shares[kind].bytes_per_s if kind in self._shares else 0.0

    def _wait(self, flow: Flow, left_bytes: float, reached: simpy.Event, *, ends: bool) -> None:
        entry = flow.end - left_bytes, next(self._numbers), reached, ends
        heapq.heappush(self._waiting[flow.kind], entry)
        self._settle_soon()

    def used_s(self) -> dict[int, float]:
        """How long each resource would have been busy at its full capacity, from the beginning until now."""
        self._advance()
        return dict(self._used_s)

    # -- time -----------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Carry what was carried since the last call."""
        passed_s = self._env.now - self._since_s
        if passed_s <= 0:
            return
        self._since_s = self._env.now
        of_owner: dict[str, list[tuple[int, str]]] = defaultdict(list)
        for kind in self._served:
            share = self._shares[kind]
            self._served[kind] += share.bytes_per_s * passed_s
            of_owner[self._owners[kind]].append((self._counts[kind], share.limit))
        for owner, limits in of_owner.items():
            flows = sum(count for count, _ in limits)
            for count, limit in limits:
                self.limited_s[owner][limit] += passed_s * count / flows
        if self.samples:
            for number, used in self.samples[-1].used.items():
                self._used_s[number] += used * passed_s

    def _settle_soon(self) -> None:
        """Compute the shares once all that happens at this instant has happened."""
        if not self._settling:
            self._settling = True
            self._env.timeout(0).callbacks.append(self._settle)

    def _settle(self, _: simpy.Event) -> None:
        self._settling = False
        self._advance()
        counts = tuple((kind, self._counts[kind]) for kind in sorted(self._served))
        if counts not in self._known:
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            kinds = [self._kinds[kind] for kind, _ in counts]
            shares = fair_shares(kinds, [count for _, count in counts], self.resources)
            self._known[counts] = {kind: share for (kind, _), share in zip(counts, shares, strict=True)}
        if self._shares is not self._known[counts]:
            self._shares = self._known[counts]
            self._note_use()
        self._turn += 1
        next_s = min(
            (
                (self._waiting[kind][0][0] - served) / self._shares[kind].bytes_per_s
                for kind, served in self._served.items()
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
        for kind in list(self._served):
            waiting = self._waiting[kind]
            while waiting and waiting[0][0] - self._served[kind] < END_BYTES:
                _, _, reached, ends = heapq.heappop(waiting)
                self._counts[kind] -= ends
                reached.succeed()
            if not self._counts[kind]:
                del self._served[kind]
        self._settle_soon()

    def _note_use(self) -> None:
        used: dict[int, float] = defaultdict(float)
        for kind, share in self._shares.items():
            for resource, amount in self._kinds[kind].needs:
                used[resource] += self._counts[kind] * share.bytes_per_s * amount
        parts = {number: min(1.0, amount / self.resources[number].capacity) for number, amount in used.items()}
        if self.samples and self.samples[-1].at_s == self._env.now:
            self.samples.pop()
        self.samples.append(Sample(self._env.now, parts))
