# SPDX-License-Identifier: Apache-2.0
"""Figures of a trace: its working set, and how much is written again. Pure."""

from __future__ import annotations

import msgspec
import numpy as np

from parmig.ram.bits import Index
from parmig.ram.traces.trace import Trace


class WorkingSet(msgspec.Struct, frozen=True):
    """One point of the working-set curve: what the guest writes within a time.

    Attributes:
        intervals: how many intervals follow one another.
        pages: how many different pages are written in them: the mean over all such stretches of the trace, each
            interval in one of them.
    """

    intervals: int
    pages: float


def working_set_curve(trace: Trace) -> list[WorkingSet]:
    """Different pages within 1, 2, 4, ... intervals, up to as many as the trace has."""
    curve = []
    stretches, intervals = trace.written, 1
    while stretches:
        curve.append(WorkingSet(intervals, sum(map(len, stretches)) / len(stretches)))
        pairs = zip(stretches[::2], stretches[1::2], strict=False)  # an odd one at the end is left out
        stretches, intervals = [_union(first, second) for first, second in pairs], intervals * 2
    return curve


def pages_per_interval(trace: Trace) -> list[int]:
    """How many pages were written in each interval."""
    return [len(pages) for pages in trace.written]


def different_pages(trace: Trace) -> int:
    """How many pages were written at all."""
    parts = list(trace.written)
    while len(parts) > 1:
        odd = parts[-1:] if len(parts) % 2 else []
        parts = [_union(first, second) for first, second in zip(parts[::2], parts[1::2], strict=False)] + odd
    return len(parts[0]) if parts else 0


def rewritten_share(trace: Trace) -> float:
    """The share of all pages of all intervals that an earlier interval has, too; 0 to 1."""
    pages = sum(pages_per_interval(trace))
    return 1 - different_pages(trace) / pages if pages else 0.0


def _union(first: Index, second: Index) -> Index:
    """The pages of either, ascending, each once."""
    return np.union1d(first, second)
