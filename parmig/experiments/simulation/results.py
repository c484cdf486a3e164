# SPDX-License-Identifier: Apache-2.0
"""What a simulation gives: figures of each guest and each host, and the bottleneck. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from parmig.engine.reporting.report import RoundReport
from parmig.experiments.simulation.flows import Sample
from parmig.experiments.simulation.sharing import Resource

SETUP, SCANS, FENCES = "set-up and end", "the dirty log", "fences and hand-over"
"""The limits of the time in which no page is under way."""

IN_USE = 0.005
"""Resources that are used less are left out of the table."""


class GuestResult(msgspec.Struct, frozen=True, kw_only=True):
    """One migration. Its times are seconds of the simulation.

    Attributes:
        began_s: when its turn came.
        ended_s: when its command had ended.
        setup_s: until its first round.
        paused_s: when the guest was paused; null: never.
        downtime_s: how long the guest stood still; null: it was never paused.
        error: why it failed; null: it did not.
        limited_s: how long each limit held it back; the sum is the total time.
    """

    name: str
    source: str
    destination: str
    memory_bytes: int
    began_s: float
    ended_s: float
    setup_s: float
    paused_s: float | None
    downtime_s: float | None
    sent_bytes: int
    wire_bytes: int
    max_throttle_percent: int
    rounds: tuple[RoundReport, ...]
    error: str | None
    limited_s: Mapping[str, float]

    @property
    def total_s(self) -> float:
        """From the begin of its command to the end."""
        return self.ended_s - self.began_s


class Use(msgspec.Struct, frozen=True):
    """How much a resource was used.

    Attributes:
        mean: part of its capacity, over the whole simulation.
        most: the highest part.
    """

    name: str
    group: str
    mean: float
    most: float


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """A simulation.

    Attributes:
        total_s: until the last guest has moved.
        bottleneck: what held the guests back for most of their time.
        bottleneck_part: of the time of all guests together.
        advice: what would make it faster.
        limited: all limits, with their part of that time; the largest first.
        use: of the resources that were used.
    """

    description: str
    total_s: float
    moved: int
    failed: int
    bottleneck: str
    bottleneck_part: float
    advice: str
    limited: Mapping[str, float]
    guests: tuple[GuestResult, ...]
    use: tuple[Use, ...]


class Timeline(msgspec.Struct, frozen=True):
    """What a picture shows beside the result."""

    resources: tuple[Resource, ...]
    samples: tuple[Sample, ...]


def limited_parts(guests: Iterable[GuestResult]) -> dict[str, float]:
    """Each limit with its part of the time of all guests, the largest first."""
    total: dict[str, float] = defaultdict(float)
    for guest in guests:
        for limit, seconds in guest.limited_s.items():
            total[limit] += seconds
    everything = sum(total.values()) or 1.0
    return {limit: total[limit] / everything for limit in sorted(total, key=lambda name: (-total[name], name))}


def uses(
    resources: Sequence[Resource], samples: Sequence[Sample], used_s: Mapping[int, float], total_s: float
) -> list[Use]:
    """The use of all *resources* that were used."""
    most: dict[int, float] = defaultdict(float)
    for sample in samples:
        for number, used in sample.used.items():
            most[number] = max(most[number], used)
    return [
        Use(resources[number].name, resources[number].group, used_s[number] / total_s, most[number])
        for number in sorted(used_s)
        if most[number] >= IN_USE
    ]


def advice(limit: str) -> str:
    """What helps against *limit*."""
    for begin, words in _ADVICE.items():
        if limit.startswith(begin):
            return words
    return ""


_ADVICE = {
    "one processor of": "more workers, or a codec that needs less processor time",
    "processors of": "more processors, or a codec that needs less processor time",
    "NICs of": "more or faster NICs, or a codec",
    "memory of": "faster memory: neither workers nor NICs help",
    "memory lock": "guests with several RAM blocks, or more guests at once",
    "credit": "more workers, or a shorter delay",
    "max-bandwidth": "a higher max-bandwidth",
    SETUP: "fewer workers, or more guests at once",
    SCANS: "more workers, or memory in huge pages: each scan looks at all of the memory",
    FENCES: "a longer downtime-limit, so that there are fewer rounds, or more guests at once",
}
"""The begin of a limit's name, and what helps."""
