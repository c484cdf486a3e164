# SPDX-License-Identifier: Apache-2.0
"""The rounds of a running guest, one after the other, as its working set and the network make them.

What a round finds to send depends on how long ago each region was scanned. Regions are scanned one after the other,
ahead of what is being placed, so in a count that follows a round the last region had little time to be written, and the
first one had all of the round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from parmig.engine.prediction.curve import Curve
from parmig.engine.prediction.setting import PageCosts
from parmig.engine.work.policy import SCANS_OF_PAUSE, RoundFacts
from parmig.ram.blocks import PAGE_BYTES
from parmig.units import NS_PER_S

MOST_STEPS = 20
"""The pages of a round depend on its duration, which depends on its pages. So many steps at most look for the pair that
fits; 5 to 9 are usual."""

CLOSE = 1e-3
"""The pair fits when both durations differ by less than a thousandth."""

PLACES = tuple((place + 0.5) / 8 for place in range(8))
"""Places in the memory for which it is computed how long ago they were scanned. W(t) is smooth, so eight are enough."""

Noise = Callable[[float], float]
"""By which factor the pages written within a time differ from the expected ones in this migration."""


def exactly(_: float) -> float:
    """No noise."""
    return 1.0


class PredictedRound(msgspec.Struct, frozen=True):
    """A round of the running guest: pages sent, its duration, and the dirty pages after it."""

    pages: float
    duration_s: float
    remaining_pages: float
    throttle_percent: int = 0


class Rounds:
    """Plays rounds.

    Args:
        curve: how the guest writes.
        pages: how long its pages take.
        count_s: between the end of a round and the begin of the next.
        noise: how far this migration is off.
        facts: finished rounds, as the policy sees them; they are copied.

    Attributes:
        facts: the same, with those that were played.
        played: those that were played.
        elapsed_s: how long these took.
    """

    def __init__(
        self,
        curve: Curve,
        pages: PageCosts,
        count_s: float,
        *,
        noise: Noise = exactly,
        facts: Sequence[RoundFacts] = (),
    ) -> None:
        self._curve, self._pages, self._count_s, self._noise = curve, pages, count_s, noise
        self.facts = list(facts)
        self.played: list[PredictedRound] = []
        self.elapsed_s = self.wire_bytes = 0.0
        self._last_s = facts[-1].duration_ns / NS_PER_S if facts else 0.0
        self._throttle = facts[-1].throttle_percent if facts else 0
        self._factor = 1.0  # what was written since the last scans, over what was expected

    def first(self, data_pages: float, zero_pages: float) -> None:
        """Play the round that sends all memory."""
        duration_s = self._pages.round_of(data_pages, zero_pages=zero_pages, first=True)
        self.wire_bytes += data_pages * self._pages.first_wire_bytes
        self._end(data_pages, duration_s)

    def next(self, throttle_percent: int) -> None:
        """Play one more round."""
        self._throttle = throttle_percent
        duration_s = self._fitting_s()
        pages = self._written(self._last_s, duration_s)
        self.wire_bytes += pages * self._pages.wire_bytes
        self._end(pages, duration_s)

    def final_s(self) -> float:
        """How long the final round of a pause now would take, and the scan after saving."""
        final_pages = self.facts[-1].remaining_pages
        final_round_s = self._pages.round_of(final_pages, idle_s=self._idle_s) - self._pages.round_s
        return final_round_s + (SCANS_OF_PAUSE - 1) * self._pages.scan_s

    @property
    def _idle_s(self) -> float:
        """For how long nothing is sent between two rounds."""
        return self._pages.round_s + self._count_s

    def _fitting_s(self) -> float:
        """The duration of a round that finds just as many pages as it can send: the Illinois form of false position.

        What a round can send rises with its duration as a line, and what it finds as a concave curve that begins above
        the line, so there is one such duration.
        """
        low_s, high_s = 0.0, self._takes_s(self._curve.most_pages)
        low, high = self._excess_s(low_s), self._excess_s(high_s)
        if high >= 0 or low <= 0:
            return high_s if high >= 0 else low_s
        for _ in range(MOST_STEPS):
            duration_s = (low_s * high - high_s * low) / (high - low)
            excess = self._excess_s(duration_s)
            if abs(excess) <= CLOSE * duration_s:
                return duration_s
            if excess > 0:
                low_s, low, high = duration_s, excess, high / 2
            else:
                high_s, high, low = duration_s, excess, low / 2
        return 0.5 * (low_s + high_s)

    def _excess_s(self, duration_s: float) -> float:
        """How much longer than *duration_s* a round takes that finds what is written until it is scanned."""
        return self._takes_s(self._written(self._last_s, duration_s)) - duration_s

    def _takes_s(self, pages: float) -> float:
        return self._pages.round_of(pages, idle_s=self._idle_s)

    def _end(self, pages: float, duration_s: float) -> None:
        """Count what the guest wrote meanwhile, and note the round."""
        self._factor = self._noise(duration_s)
        remaining = self._written(duration_s, None)
        self.elapsed_s += duration_s + self._count_s
        self._last_s = duration_s
        self.played.append(PredictedRound(pages, duration_s, remaining, self._throttle))
        self.facts.append(
            RoundFacts(
                sent_bytes=round(pages * PAGE_BYTES),
                duration_ns=max(1, round(duration_s * NS_PER_S)),
                scan_ns=round(self._pages.scan_s * NS_PER_S),
                remaining_pages=round(remaining),
                throttle_percent=self._throttle,
            )
        )

    def _written(self, round_s: float, next_s: float | None) -> float:
        """Distinct pages that are written since their scan in a round of *round_s*.

        Args:
            next_s: until their scan in the next round, which takes so long; None: until the count between both.
        """
        speed = 1 - self._throttle / 100
        times_s = since_scans_s(round_s + self._count_s, round_s, next_s, self._pages.lead_s)
        expected = sum(self._curve.within(time_s * speed) for time_s in times_s) / len(PLACES)
        return min(self._curve.most_pages, expected * self._factor)


def since_scans_s(until_s: float, round_s: float, next_s: float | None, lead_s: float) -> list[float]:
    """How long ago each place was scanned in a round of *round_s*, at *until_s* after its begin.

    Args:
        next_s: count until each place is scanned again in a round of this duration, which begins at *until_s*.
        lead_s: as in PageCosts.
    """
    return [
        until_s
        - max(0.0, place * round_s - lead_s)
        + (max(0.0, place * next_s - lead_s) if next_s is not None else 0.0)
        for place in PLACES
    ]
