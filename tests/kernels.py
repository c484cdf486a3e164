# SPDX-License-Identifier: Apache-2.0
"""PAGEMAP_SCAN as other kernels answer it, and what it was asked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest

from parmig.linux import pagemap
from parmig.units import MIB

_TABLE_BYTES = 2 * MIB
_MISSING = pagemap.PAGE_IS_PRESENT | pagemap.PAGE_IS_SWAPPED


class Asked(NamedTuple):
    """One walk; *matches* says whether an entry of some categories is of interest to it."""

    flags: int
    mask: int
    inverted: int
    anyof: int

    @property
    def arms(self) -> bool:
        return bool(self.flags & pagemap.PM_SCAN_WP_MATCHING)

    def matches(self, categories: int) -> bool:
        found = categories ^ self.inverted
        return found & self.mask == self.mask and (not self.anyof or bool(found & self.anyof))


def record(monkeypatch: pytest.MonkeyPatch) -> list[Asked]:
    """All walks from here on, in their order."""
    asked: list[Asked] = []
    real = pagemap.scan

    def scan(*where: Any, flags: int = pagemap.PM_SCAN_CHECK_WPASYNC, **how: int) -> Iterator[pagemap.PageRegions]:
        asked.append(Asked(flags, *(how.get(name, 0) for name in ("mask", "inverted", "anyof"))))
        return real(*where, flags=flags, **how)

    monkeypatch.setattr(pagemap, "scan", scan)
    return asked


def without_page_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answer as Linux 6.7 to the middle of 2026: a page table that is missing is no category at all, so that a walk
    for WRITTEN neither tells nor arms what it would cover."""
    real = pagemap.scan

    def scan(
        fd: int, start: int, end: int, vector: pagemap.PageRegions | None, *, flags: int = 2, **how: int
    ) -> Iterator[pagemap.PageRegions]:
        asked = Asked(flags, *(how.get(name, 0) for name in ("mask", "inverted", "anyof")))
        scratch = np.zeros(1 << 12, dtype=pagemap.PAGE_REGION_DTYPE)
        holes = [(end, end)]
        for regions in real(fd, start, end, scratch, inverted=_MISSING, mask=_MISSING, returned=_MISSING):
            for low, high in zip(regions["start"].tolist(), regions["end"].tolist(), strict=True):
                first, past = -(-low // _TABLE_BYTES) * _TABLE_BYTES, high // _TABLE_BYTES * _TABLE_BYTES
                if first < past:
                    holes.append((first, past))
        for first, past in sorted(holes):
            yield from real(fd, start, first, vector, flags=flags, **how)
            if asked.matches(0):
                for regions in real(fd, first, past, vector, flags=flags, **how):
                    regions["categories"] &= np.uint64(pagemap.PAGE_IS_PRESENT | pagemap.PAGE_IS_SWAPPED)
                    yield regions
            start = past

    monkeypatch.setattr(pagemap, "scan", scan)
