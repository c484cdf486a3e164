# SPDX-License-Identifier: Apache-2.0
"""How many distinct pages a guest writes within a time, as a concave curve that is fitted to a few observed points.

The curve is a sum of groups of pages. A *random* group of n pages with the time constant T is written at random: it
contributes ``n (1 - exp(-t/T))`` within t. An *ordered* group is written page after page, once in T: ``n min(t/T, 1)``.
Both are concave and saturate, and so is each sum of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]

CONSTANTS_EACH_OCTAVE = 2
"""Time constants of the groups are a factor of 1.41 apart. Both together meet a random group between them to 0.3 %."""

LONGEST = 64.0
"""The slowest group has a time constant this many times the longest observed time: within that time it is a line to
within 0.8 %, which is less than counts scatter."""


RANDOM_ERROR = 0.04
"""Groups that are written at random are enough if they meet each point to 4 %. They miss a guest that writes in order
by more. Groups in order would also meet the points of a random guest, and tell less well what follows the last one."""


class Group(msgspec.Struct, frozen=True):
    """Pages that are written in the same way: at random, or (*ordered*) one after the other."""

    pages: float
    constant_s: float
    ordered: bool = False

    def within(self, time_s: float) -> float:
        """How many of them are written within *time_s*."""
        if self.ordered:
            return self.pages * min(time_s / self.constant_s, 1.0)
        return self.pages * -math.expm1(-time_s / self.constant_s)


class Curve(msgspec.Struct, frozen=True):
    """Distinct pages written within a time: concave, from 0, and never more than *most_pages*."""

    groups: tuple[Group, ...]
    most_pages: float

    def within(self, time_s: float) -> float:
        """How many distinct pages the guest writes within *time_s*."""
        return min(self.most_pages, sum(group.within(time_s) for group in self.groups))


def fit(times_s: Sequence[float], pages: Sequence[float], most_pages: float) -> Curve:
    """The curve nearest to *pages* at *times_s*, in relative terms. Both are positive or zero.

    No points, or points without pages, give a guest that writes nothing.
    """
    points = [(time_s, count) for time_s, count in zip(times_s, pages, strict=True) if time_s > 0]
    if not points or not any(count > 0 for _, count in points):
        return Curve((), most_pages)
    times = np.array([time_s for time_s, _ in points])
    counts = np.array([count for _, count in points])
    constants = _constants(float(times.min()), float(times.max()))
    ratios = times[:, None] / constants[None, :]
    at_random = _fit_columns(-np.expm1(-ratios), counts, constants, ordered=False)
    if at_random.error <= RANDOM_ERROR:
        return Curve(at_random.groups, most_pages)
    # A group that is not done within the longest time looks the same whatever its constant: one of them is enough.
    useful = np.append(constants[0], constants[constants <= times.max()])
    in_order = _fit_columns(np.minimum(times[:, None] / useful[None, :], 1.0), counts, useful, ordered=True)
    return Curve(min(at_random, in_order, key=lambda fitted: fitted.error).groups, most_pages)


class _Fitted(NamedTuple):
    """Groups, and the largest relative error of their sum at a point."""

    groups: tuple[Group, ...]
    error: float


def _constants(shortest_s: float, longest_s: float) -> Numbers:
    """The time constants to choose from, for points between two times; the slowest first, which is taken if all fit."""
    first, last = shortest_s / 2, longest_s * LONGEST
    steps = math.ceil(math.log2(last / first) * CONSTANTS_EACH_OCTAVE)
    constants: Numbers = first * 2 ** (np.arange(steps, -1, -1) / CONSTANTS_EACH_OCTAVE)
    return constants


def _fit_columns(columns: Numbers, counts: Numbers, constants: Numbers, *, ordered: bool) -> _Fitted:
    """Groups whose sum is nearest to *counts*. Each column has what a page of a group contributes at each point."""
    weights = 1 / np.maximum(counts, 1.0)
    scale = columns.max(axis=0)  # a slow group needs many pages for the same effect
    amounts = nonnegative_least_squares(columns / scale * weights[:, None], counts * weights) / scale
    groups = tuple(
        Group(float(amount), float(constant_s), ordered)
        for amount, constant_s in zip(amounts, constants, strict=True)
        if amount > 0
    )
    return _Fitted(groups, float(np.abs((columns @ amounts - counts) * weights).max()))


def nonnegative_least_squares(matrix: Numbers, wanted: Numbers) -> Numbers:
    """The x >= 0 for which ``matrix @ x`` is nearest to *wanted* (the active-set method of Lawson and Hanson)."""
    columns = matrix.shape[1]
    result = np.zeros(columns)
    active = np.zeros(columns, dtype=np.bool_)
    tolerance = 1e-10 * float(np.abs(matrix.T @ wanted).max(initial=0.0))
    for _ in range(3 * columns):
        gradient = matrix.T @ (wanted - matrix @ result)
        gradient[active] = -np.inf
        best = int(gradient.argmax())
        if active.all() or gradient[best] <= tolerance:
            break
        active[best] = True
        while active.any():
            trial = np.zeros(columns)
            trial[active] = np.linalg.lstsq(matrix[:, active], wanted, rcond=None)[0]
            negative = active & (trial <= 0)
            if not negative.any():
                result = trial
                break
            # Go as far towards the trial as nothing becomes negative; what reaches 0 leaves the set.
            share = float((result[negative] / (result[negative] - trial[negative])).min())
            result = result + share * (trial - result)
            active &= result > 1e-12 * max(1.0, float(result.max(initial=0.0)))
            result[~active] = 0
    return result
