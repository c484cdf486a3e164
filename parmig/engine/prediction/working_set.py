# SPDX-License-Identifier: Apache-2.0
"""How a guest writes, as far as a migration depends on it: W(t), the distinct pages written within a time t."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from parmig.engine.prediction.curve import Curve, Group, fit
from parmig.engine.prediction.write_history import Counts, WriteHistory
from parmig.guests.synthetic.patterns import HOT_TENTHS, hot_pages
from parmig.ram.blocks import PAGE_BYTES

ALTERNATIVES = 40
"""How many curves the observation also allows: enough for an interval of 90 %, and 0.1 s of processor time."""


class WorkingSet(msgspec.Struct, frozen=True):
    """What was learned of a guest's writes.

    Attributes:
        curve: the most likely W(t).
        alternatives: curves of resampled observations: how sure W(t) is.
        scales_s: ascending lengths of windows for which ``spread`` is known.
        spread: by scale, the standard deviation of a single window, as a share of the mean.
        observed_s: for how long the guest was observed; 0: it was not.
    """

    curve: Curve
    alternatives: tuple[Curve, ...] = ()
    scales_s: tuple[float, ...] = ()
    spread: tuple[float, ...] = ()
    observed_s: float = 0.0

    def pages_within(self, time_s: float) -> float:
        """W(*time_s*): how many distinct pages the guest is expected to write in it."""
        return self.curve.within(time_s)

    def spread_within(self, time_s: float) -> float:
        """The standard deviation of the pages written within *time_s*, as a share of their number."""
        if not self.scales_s or time_s <= 0:
            return 0.0
        return float(np.interp(np.log(time_s), np.log(self.scales_s), self.spread))

    def sample(self, time_s: float, random: np.random.Generator) -> float:
        """How many distinct pages one window of *time_s* may have, drawn at random."""
        factor = 1 + self.spread_within(time_s) * float(random.standard_normal())
        return min(self.curve.most_pages, self.curve.within(time_s) * max(0.0, factor))

    def resampled(self, random: np.random.Generator) -> WorkingSet:
        """The same guest with one of the other curves, drawn at random."""
        if not self.alternatives:
            return self
        chosen = self.alternatives[int(random.integers(len(self.alternatives)))]
        return msgspec.structs.replace(self, curve=chosen, alternatives=())


def working_set_of_pattern(pattern: str, rate_bytes_per_s: float, touched_pages: int) -> WorkingSet:
    """A guest that writes as a synthetic one does, with one of PATTERNS: random, sequential, hot or burst.

    Args:
        rate_bytes_per_s: pages that it touches in a second, each time it touches them, in bytes.
        touched_pages: how many pages it writes to at all.
    """
    rate = rate_bytes_per_s / PAGE_BYTES
    if rate <= 0 or touched_pages <= 0:
        return WorkingSet(Curve((), touched_pages))
    groups = [Group(touched_pages, touched_pages / rate, ordered=pattern == "sequential")]
    hot = hot_pages(touched_pages)
    if pattern == "hot" and hot < touched_pages:
        hot_rate, cold = rate * HOT_TENTHS / 10, touched_pages - hot
        groups = [Group(hot, hot / hot_rate), Group(cold, cold / (rate - hot_rate))]
    return WorkingSet(Curve(tuple(groups), touched_pages))


def fit_points(times_s: Sequence[float], pages: Sequence[float], most_pages: float) -> WorkingSet:
    """What a few counts say: *pages* were written within *times_s*. It has no alternatives and no spread."""
    return WorkingSet(fit(times_s, pages, most_pages), observed_s=max(times_s, default=0.0))


def fit_history(history: WriteHistory, interval_s: float, most_pages: int, seed: int = 1) -> WorkingSet:
    """What an observation says.

    Args:
        history: all its intervals.
        interval_s: their mean length.
        most_pages: pages of the guest.
        seed: of what is drawn at random. The same observation gives the same result.
    """
    lengths = _lengths(len(history))
    windows = [history.windows(length) for length in lengths]
    times_s = [length * interval_s for length in lengths]
    curve = fit(times_s, [float(counts.mean()) for counts in windows], most_pages)
    random = np.random.default_rng(seed)
    alternatives = []
    for _ in range(ALTERNATIVES if len(history) > 1 else 0):
        anchors = random.random(len(history))
        means = [_resampled_mean(counts, length, anchors) for counts, length in zip(windows, lengths, strict=True)]
        alternatives.append(fit(times_s, means, most_pages))
    measured = [
        (time_s, float(counts.std() / max(1.0, counts.mean())))
        for time_s, length, counts in zip(times_s, lengths, windows, strict=True)
        if 2 * length <= len(history)
    ]
    return WorkingSet(
        curve,
        tuple(alternatives),
        tuple(time_s for time_s, _ in measured),
        tuple(spread for _, spread in measured),
        len(history) * interval_s,
    )


def _lengths(intervals: int) -> list[int]:
    """Lengths of windows: 1, 2, 3, 4, 6, 8, ... intervals, and all of them."""
    lengths = {intervals}
    step = 1
    while step <= intervals:
        lengths |= {step, min(intervals, step * 3 // 2)}
        step *= 2
    return sorted(length for length in lengths if length)


def _resampled_mean(counts: Counts, length: int, anchors: np.ndarray) -> float:
    """The mean of as many windows as fit into the observation side by side, at places drawn at random.

    All scales use the same *anchors*, so that a busy stretch of time counts in all of them.
    """
    wanted = max(1, (len(counts) + length - 1) // length)
    return float(counts[(anchors[:wanted] * len(counts)).astype(np.int64)].mean())
