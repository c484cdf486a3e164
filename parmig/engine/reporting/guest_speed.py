# SPDX-License-Identifier: Apache-2.0
"""What the guest feels of a migration, from what it has noted of its own speed: a part of the report. Pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import msgspec

from parmig.guests.pulse import Pulse
from parmig.units import NS_PER_MS, NS_PER_S

BEFORE_NS = NS_PER_S
"""How much of the time before the migration counts, at most."""

POINT_NS = 50 * NS_PER_MS
POINTS_MAX = 200
"""The curve has a point for each 50 ms, the time of five or ten samples; a long migration has fewer points."""


class Stretch(msgspec.Struct, frozen=True):
    """A time of the migration, in ms since its start."""

    began_ms: float
    duration_ms: float


class GuestSpeedReport(msgspec.Struct, kw_only=True):
    """How fast the guest wrote to its memory, by its own count; a page counts each time. Null: nothing is known.

    ``asked_bytes_per_s`` is how fast it would write if nothing held it back; null also: as fast as it can. The others
    are how fast it wrote: in the second before the migration, while both sides were set up, in the rounds until the
    pause, in each of these rounds, and (destination) once it ran there. ``longest_stall_ms`` is the longest time in
    which it did not run, from the start of the migration to the pause, or (destination) from then on. ``curve`` is a
    list of points: ms since the start of the migration, and bytes a second until then from the point before.
    """

    asked_bytes_per_s: float | None = None
    before_bytes_per_s: float | None = None
    setup_bytes_per_s: float | None = None
    rounds_bytes_per_s: float | None = None
    per_round_bytes_per_s: list[float | None] = []
    after_bytes_per_s: float | None = None
    longest_stall_ms: float | None = None
    curve: list[tuple[float, float]] = []

    @property
    def slow_down_percent(self) -> float | None:
        """How much slower it was in the rounds than before; negative: faster. None: nothing is known, or it rested."""
        if not self.before_bytes_per_s or self.rounds_bytes_per_s is None:
            return None
        return 100 * (1 - self.rounds_bytes_per_s / self.before_bytes_per_s)


def speed_until_pause(
    pulse: Pulse, began_ns: int, setup_ms: float, rounds: Sequence[Stretch], stopped_ns: int
) -> GuestSpeedReport | None:
    """What the source's guest has noted until its pause; None: nothing.

    Args:
        began_ns: when the migration began.
        setup_ms: how long both sides were set up.
        rounds: while the guest ran.
        stopped_ns: when the guest stopped, or until when to look at it.
    """
    if not len(pulse.at_ns):
        return None
    active_ns = began_ns + round(setup_ms * NS_PER_MS)
    before_ns = max(began_ns - BEFORE_NS, int(pulse.at_ns[0]))
    ends_ns = [began_ns + round((one.began_ms + one.duration_ms) * NS_PER_MS) for one in rounds]
    begins_ns = [began_ns + round(one.began_ms * NS_PER_MS) for one in rounds]
    return GuestSpeedReport(
        asked_bytes_per_s=pulse.asked_bytes_per_s,
        before_bytes_per_s=pulse.bytes_per_s(before_ns, began_ns),
        setup_bytes_per_s=pulse.bytes_per_s(began_ns, active_ns),
        rounds_bytes_per_s=pulse.bytes_per_s(begins_ns[0], stopped_ns) if rounds else None,
        per_round_bytes_per_s=[pulse.bytes_per_s(*ends) for ends in zip(begins_ns, ends_ns, strict=True)],
        longest_stall_ms=pulse.longest_stall_ns(max(began_ns, int(pulse.at_ns[0])), stopped_ns) / NS_PER_MS,
        curve=_curve(pulse, began_ns, before_ns, stopped_ns),
    )


def note_arrival(report: GuestSpeedReport | None, pulse: Pulse) -> GuestSpeedReport | None:
    """*report*, if there is one, with what the guest has noted at the destination."""
    if len(pulse.at_ns) < 2:
        return report
    began_ns, ended_ns = int(pulse.at_ns[0]), int(pulse.at_ns[-1])
    after = pulse.bytes_per_s(began_ns, ended_ns)
    if report is not None:
        report.after_bytes_per_s = after
        return report
    stall_ms = pulse.longest_stall_ns(began_ns, ended_ns) / NS_PER_MS
    return GuestSpeedReport(
        asked_bytes_per_s=pulse.asked_bytes_per_s, after_bytes_per_s=after, longest_stall_ms=stall_ms
    )


def _curve(pulse: Pulse, began_ns: int, first_ns: int, last_ns: int) -> list[tuple[float, float]]:
    """Points from *first_ns* to *last_ns*, of which the last may be up to half a step too early or too late."""
    step_ns = max(POINT_NS, math.ceil((last_ns - first_ns) / POINTS_MAX))
    count = max(1, round((last_ns - first_ns) / step_ns))
    edges_ns = [*(first_ns + step_ns * number for number in range(count)), last_ns]
    return [
        ((end_ns - began_ns) / NS_PER_MS, pulse.bytes_per_s(begin_ns, end_ns) or 0.0)
        for begin_ns, end_ns in itertools.pairwise(edges_ns)
    ]
