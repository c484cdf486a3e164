# SPDX-License-Identifier: Apache-2.0
"""What happens in a tortured migration: all that follows from the seed. It does nothing itself."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

WEIGHTS = {
    "kill": 3,
    "stop": 3,
    "cancel": 1,
    "kill_monitor": 1,
    "fill_memory": 1,
    "fill_records": 1,
    "cut": 1,
    "blackhole": 1,
    "slow": 1,
    "flap": 1,
    "flip": 2,
}
"""How often each kind of fault is chosen, relative to the others."""

FAULTS_WITHIN_S = 2.4
"""Faults begin within this time after the sender's first line; its migration takes 1 to 5 s."""

LONGEST_S = 6.0
"""A stopped process goes on, and a broken link comes back, after at most this long."""


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong once.

    Attributes:
        kind: one of WEIGHTS.
        at_s: when, after the sender's first line.
        lasts_s: until it ends, where it can.
        draw: a number below 1 that chooses its victim among those that there are then.
    """

    kind: str
    at_s: float
    lasts_s: float
    draw: float


@dataclass(frozen=True)
class Plan:
    """One run.

    Attributes:
        rates_bytes_per_s: of each link.
        workers: at least one for each link.
        transport: what carries the pages.
        verify: when both memories are compared: ``after`` or ``before``.
        own_space: the destination's memory lies in a file system of its own, which can be full.
        faults: one to three.
    """

    rates_bytes_per_s: tuple[int, ...]
    workers: int
    transport: str
    verify: str
    own_space: bool
    faults: tuple[Fault, ...]

    @property
    def flips(self) -> bool:
        """Whether bytes are changed in flight. Without keys, nothing but a comparison before the hand-over shows it."""
        return any(fault.kind == "flip" for fault in self.faults)

    @property
    def only_cancelled(self) -> bool:
        """Whether the only fault is a cancel."""
        return [fault.kind for fault in self.faults] == ["cancel"]


def draw_plan(seed: int, rates_bytes_per_s: Sequence[int]) -> Plan:
    """The run of *seed*, over links with some of *rates_bytes_per_s*."""
    chance = random.Random(seed)
    faults = tuple(_draw_fault(chance) for _ in range(chance.randint(1, 3)))
    rates = tuple(chance.choice(rates_bytes_per_s) for _ in range(chance.randint(1, 3)))
    return Plan(
        rates_bytes_per_s=rates,
        workers=max(len(rates), chance.randint(1, 4)),
        transport=chance.choice(("tcp", "zmq")),
        verify="before" if any(fault.kind == "flip" for fault in faults) else "after",
        own_space=any(fault.kind == "fill_memory" for fault in faults),
        faults=faults,
    )


def _draw_fault(chance: random.Random) -> Fault:
    return Fault(
        kind=chance.choices(list(WEIGHTS), list(WEIGHTS.values()))[0],
        at_s=chance.uniform(0, FAULTS_WITHIN_S),
        lasts_s=chance.uniform(0.2, LONGEST_S),
        draw=chance.random(),
    )
