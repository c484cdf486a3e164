# SPDX-License-Identifier: Apache-2.0
"""How flows share what carries them: links, processors, memory, locks. Pure.

A flow is what one worker sends. Flows that need the same things are of one kind, so a share is computed for a kind and
not for each flow. Shares are max-min fair: all flows become faster together until something that they need is used up;
those that need it stay there, and the others go on. TCP connections with the same delay share a link about so.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import msgspec


class Resource(msgspec.Struct, frozen=True):
    """What flows share.

    Attributes:
        name: of this one, for people: ``source: NIC 0 out``.
        group: what it counts as when a bottleneck is named: ``NICs of source``.
        capacity: in its own unit a second: bytes of a link, seconds of processors.
    """

    name: str
    group: str
    capacity: float


class FlowKind(msgspec.Struct, frozen=True):
    """What flows of one kind need.

    Attributes:
        needs: number of a resource, and how much of it a byte of guest memory needs.
        most_bytes_per_s: what one flow carries at most, if nothing is shared.
        limit: what that comes from, for people.
        lock: number of the resource that is a lock: only one flow has it at a time; -1: none.
    """

    needs: tuple[tuple[int, float], ...]
    most_bytes_per_s: float
    limit: str
    lock: int = -1


class Share(msgspec.Struct, frozen=True):
    """What each flow of a kind gets, and the name of what keeps it from more."""

    bytes_per_s: float
    limit: str


def fair_shares(kinds: Sequence[FlowKind], counts: Sequence[int], resources: Sequence[Resource]) -> list[Share]:
    """The share of one flow of each of *kinds*.

    Args:
        counts: how many flows of each kind there are now. A kind without flows gets 0.
        resources: those that the needs of a kind have the numbers of, and others.
    """
    shares = [Share(0.0, "")] * len(kinds)
    most = [_most(kind, kinds, counts, resources) for kind in kinds]
    left = {number: resources[number].capacity for kind in kinds for number, _ in kind.needs}
    growing = [number for number, count in enumerate(counts) if count]
    reached = 0.0
    while growing:
        used: dict[int, float] = defaultdict(float)
        for number in growing:
            for resource, amount in kinds[number].needs:
                used[resource] += counts[number] * amount
        step, full = min(
            ((left[resource] / amount, resource) for resource, amount in used.items() if amount),
            default=(math.inf, -1),
        )
        next_cap = min(most[number][0] for number in growing)
        if next_cap - reached <= step:
            step, full = max(0.0, next_cap - reached), -1
        reached += step
        for resource, amount in used.items():
            left[resource] = max(0.0, left[resource] - step * amount)
        stays = []
        for number in growing:
            if full >= 0 and any(resource == full for resource, _ in kinds[number].needs):
                shares[number] = Share(reached, resources[full].group)
            elif full < 0 and most[number][0] <= reached:
                shares[number] = Share(*most[number])
            else:
                stays.append(number)
        growing = stays
    return shares


def _most(
    kind: FlowKind, kinds: Sequence[FlowKind], counts: Sequence[int], resources: Sequence[Resource]
) -> tuple[float, str]:
    """What one flow of *kind* carries at most beside the others that take its lock, and what that comes from."""
    if kind.lock < 0:
        return kind.most_bytes_per_s, kind.limit
    holders = sum(count for other, count in zip(kinds, counts, strict=True) if other.lock == kind.lock)
    held_s = next(amount for number, amount in kind.needs if number == kind.lock)
    alone = kind.most_bytes_per_s
    together = locked_bytes_per_s(max(1, holders), max(0.0, 1 / alone - held_s), held_s) / max(1, holders)
    return (together, resources[kind.lock].group) if together < alone * (1 - 1e-9) else (alone, kind.limit)


def locked_bytes_per_s(workers: int, free_s: float, held_s: float) -> float:
    """What *workers* carry together, each of which needs one lock for a part of its work.

    It is the mean value analysis of a closed queue: a worker that wants the lock waits for those that it finds there,
    and it finds what one worker less would leave. The rate thus grows slower and slower, towards ``1 / held_s``.

    Args:
        workers: at least one.
        free_s: time for a byte outside the lock.
        held_s: time for a byte with the lock.
    """
    waiting = rate = 0.0
    for count in range(1, workers + 1):
        at_lock_s = held_s * (1 + waiting)
        rate = count / (free_s + at_lock_s)
        waiting = rate * at_lock_s
    return rate
