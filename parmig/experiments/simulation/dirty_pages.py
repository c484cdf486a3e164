# SPDX-License-Identifier: Apache-2.0
"""Which pages of a simulated guest are dirty, by the time for which it has run. Pure.

The time of a guest stands still while the guest is paused, and goes slower while it is throttled.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from parmig.experiments.simulation.scenario import SCATTERED, Guests
from parmig.guests.synthetic.options import SyntheticOptions
from parmig.guests.synthetic.patterns import BURST_NS, HOT_TENTHS, hot_pages
from parmig.ram.blocks import PAGE_BYTES
from parmig.units import NS_PER_S

Numbers = npt.NDArray[np.int64]

_BURST_S = BURST_NS / NS_PER_S


class Writes(msgspec.Struct, frozen=True):
    """Writes to a number of pages, all of which are as likely, or come in order.

    Attributes:
        writes_per_s: pages that are written in a second; a page counts each time.
        in_order: each page once, then from the first one again.
        first_page: where they begin, if they are neighbours; -1: they are scattered over the whole memory.
    """

    pages: int
    writes_per_s: float
    in_order: bool = False
    first_page: int = -1


def writes_of(guests: Guests, memory_bytes: int, rate_bytes_per_s: int) -> tuple[Writes, ...]:
    """What one of *guests*, of this size, writes at this rate. It writes as a synthetic guest does."""
    pages = share_pages(guests.touched, memory_bytes)
    rate = rate_bytes_per_s / PAGE_BYTES
    if not rate or not pages:
        return ()
    scattered = guests.layout == SCATTERED
    hot = hot_pages(pages)
    if guests.pattern != "hot" or hot == pages:
        return (Writes(pages, rate, guests.pattern == "sequential", -1 if scattered else 0),)
    hot_rate = rate * HOT_TENTHS / 10
    return (
        Writes(hot, hot_rate, first_page=-1 if scattered else 0),
        Writes(pages - hot, rate - hot_rate, first_page=-1 if scattered else hot),
    )


def share_pages(share: str, memory_bytes: int) -> int:
    """The pages that *share* of the memory means: ``50%``, or a size, of which no more than there is."""
    options = SyntheticOptions(memory_bytes=memory_bytes, touched=share)
    return min(options.touched_pages, memory_bytes // PAGE_BYTES)


class DirtyPages(ABC):
    """The dirty log of a guest. Regions have numbers from 0 on."""

    @abstractmethod
    def scan(self, numbers: Sequence[int], at_s: float) -> float:
        """How many pages of these regions are dirty when the guest has run for *at_s*; none of them is then."""

    @abstractmethod
    def count(self, numbers: Sequence[int], at_s: float) -> float:
        """The same, without a change."""


class RandomDirtyPages(DirtyPages):
    """What writes at random leave dirty: the mean, or as many as chance has it.

    Args:
        writes: to pages of which none is the same.
        firsts: the first page of each region, and the end of the last one.
        bursts: the guest writes in bursts.
        chance: draws how far a number is from its mean; None: all are means. Rounds of a guest that is as fast as its
            link differ by little else, and so does the round in which they stop getting smaller.
    """

    def __init__(
        self,
        writes: Sequence[Writes],
        firsts: Numbers,
        *,
        bursts: bool = False,
        chance: np.random.Generator | None = None,
    ) -> None:
        self._writes = writes
        self._chance = chance
        self._bursts = bursts
        self._pages = [_pages_of(each, firsts) for each in writes]
        self._scanned_s = np.zeros(len(firsts) - 1)

    def scan(self, numbers: Sequence[int], at_s: float) -> float:
        chosen = _chosen(numbers)
        dirty = self._dirty(chosen, at_s)
        self._scanned_s[chosen] = self._written_s(at_s)
        return dirty

    def count(self, numbers: Sequence[int], at_s: float) -> float:
        return self._dirty(_chosen(numbers), at_s)

    def _dirty(self, chosen: slice | Numbers, at_s: float) -> float:
        since_s = self._written_s(at_s) - self._scanned_s[chosen]
        total = most = variance = 0.0
        for each, pages in zip(self._writes, self._pages, strict=True):
            times = since_s * (each.writes_per_s / each.pages)
            part = np.minimum(times, 1) if each.in_order else -np.expm1(-times)
            total += float(pages[chosen] @ part)
            most += float(pages[chosen].sum())
            variance += 0.0 if each.in_order else float(pages[chosen] @ (part * (1 - part)))
        if self._chance is None:
            return total
        return min(most, max(0.0, total + math.sqrt(variance) * float(self._chance.standard_normal())))

    def _written_s(self, at_s: float) -> float:
        """For how long the guest has written at its rate."""
        if not self._bursts:
            return at_s
        turns, rest_s = divmod(at_s, 2 * _BURST_S)
        return turns * 2 * _BURST_S + 2 * min(rest_s, _BURST_S)


class TracedDirtyPages(DirtyPages):
    """What a trace says: the same pages in the same intervals, from the start again at its end.

    Within an interval pages are written in an order that is drawn, evenly over its time.

    Args:
        written: the pages that were written in each interval.
        interval_s: length of an interval.
        firsts: as above.
        seed: of the order.
    """

    def __init__(
        self, written: Sequence[npt.NDArray[np.integer]], interval_s: float, firsts: Numbers, seed: int
    ) -> None:
        end, order = int(firsts[-1]), np.random.default_rng(seed)
        self._written = [order.permutation(pages[pages < end]) for pages in written]
        self._interval_s = interval_s
        self._firsts = firsts
        self._dirty = np.zeros(end, dtype=np.bool_)
        self._place = (0, 0)  # interval, and how many of its pages are written

    def scan(self, numbers: Sequence[int], at_s: float) -> float:
        self._write_until(at_s)
        total = 0
        for pages in self._stretches(numbers):
            total += int(np.count_nonzero(self._dirty[pages]))
            self._dirty[pages] = False
        return float(total)

    def count(self, numbers: Sequence[int], at_s: float) -> float:
        self._write_until(at_s)
        return float(sum(int(np.count_nonzero(self._dirty[pages])) for pages in self._stretches(numbers)))

    def _write_until(self, at_s: float) -> None:
        last = int(at_s / self._interval_s)
        interval, done = self._place
        if last - interval > len(self._written):  # what a whole turn writes is written by one
            interval, done = last - len(self._written), 0
        while interval < last:
            self._dirty[self._written[interval % len(self._written)][done:]] = True
            interval, done = interval + 1, 0
        pages = self._written[last % len(self._written)]
        until = round(len(pages) * min(1.0, at_s / self._interval_s - last))
        self._dirty[pages[done:until]] = True
        self._place = last, max(done, until)

    def _stretches(self, numbers: Sequence[int]) -> list[slice]:
        each = np.sort(np.asarray(numbers, dtype=np.int64))
        parts = np.split(each, np.flatnonzero(np.diff(each) != 1) + 1)
        return [slice(int(self._firsts[part[0]]), int(self._firsts[part[-1] + 1])) for part in parts if len(part)]


def _pages_of(writes: Writes, firsts: Numbers) -> npt.NDArray[np.float64]:
    """How many of the pages of *writes* each region has."""
    if writes.first_page < 0:
        return np.diff(firsts) * (writes.pages / int(firsts[-1]))
    ends = np.minimum(firsts[1:], writes.first_page + writes.pages)
    pages: npt.NDArray[np.float64] = np.maximum(0.0, ends - np.maximum(firsts[:-1], writes.first_page))
    return pages


def _chosen(numbers: Sequence[int]) -> slice | Numbers:
    """*numbers* as an index; neighbours as a slice, which numpy does not copy."""
    if numbers and (end := max(numbers) + 1) - (first := min(numbers)) == len(numbers):
        return slice(first, end)
    return np.asarray(numbers, dtype=np.int64)
