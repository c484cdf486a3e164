# SPDX-License-Identifier: Apache-2.0
"""Looks at a sample of a guest's pages: how many are zero, and what codecs make of them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence

import numpy as np

from parmig.engine.prediction.costs import CodecCosts, Costs
from parmig.engine.prediction.setting import MemoryFacts
from parmig.ram.bits import NO_INDEX, Index
from parmig.ram.blocks import PAGE_BYTES, BlockMemory, Pages
from parmig.ram.codecs.codec import CodecSettings, PageEncoder
from parmig.ram.codecs.registry import codec
from parmig.ram.reach.open_reach import open_reach
from parmig.ram.reach.reach import Reach
from parmig.ram.regions import SPAN_PAGES
from parmig.units import GIB

SAMPLE_PAGES = 2048
"""Pages that are looked at: 8 MiB, which takes 30 ms with zstd. A share of 1/2 is known to 2 % then."""

BATCH_PAGES = 256
"""Pages that a codec gets at once: 1 MiB, between the sample of 16 pages and the batch of 1024 that parmig uses."""

REWRITTEN_PAGES = 1024
"""Written pages that are kept, to see later what was changed in them: 4 MiB."""


class MemorySample:
    """Looks at the memory of one guest; a context manager. It reads pages that exist, and allocates none.

    Args:
        memory: the guest's blocks; the descriptors are used, not owned.
        codecs: names of those to be measured.
        seed: of the sample.

    Raises:
        ParmigError: the memory cannot be reached.
    """

    def __init__(self, memory: Sequence[BlockMemory], codecs: Sequence[str], seed: int = 1) -> None:
        self._opened = contextlib.ExitStack()
        self._random = np.random.default_rng(seed)
        self._reaches: list[Reach] = []
        self._codecs = [name for name in codecs if name != "none"]
        self._delta: PageEncoder | None = None
        self._kept = NO_INDEX
        self._rewritten = NO_INDEX
        self._ratios: dict[str, tuple[float, float]] = {}
        try:
            for item in memory:
                reach = open_reach(item)
                self._opened.callback(reach.close)
                self._reaches.append(reach)
        except BaseException:
            self._opened.close()
            raise
        self._firsts = np.cumsum([0, *(reach.block.pages for reach in self._reaches)])

    def look(self) -> MemoryFacts:
        """What the memory holds now. Call it before the writes are tracked, which makes pages seem to exist."""
        existing = [self._existing(reach) for reach in self._reaches]
        count = sum(map(len, existing))
        sampled = zero = 0
        data: list[Pages] = []
        for reach, index in zip(self._reaches, existing, strict=True):
            share = min(len(index), round(SAMPLE_PAGES * len(index) / max(1, count)))
            chosen = np.sort(self._random.choice(index, share, replace=False)) if share else NO_INDEX
            mask = reach.zero_mask(chosen) if share else np.zeros(0, dtype=np.bool_)
            sampled, zero = sampled + share, zero + int(mask.sum())
            if not mask.all():
                data.append(reach.look(chosen[~mask]).copy())
        if data:
            pages = np.concatenate(data)
            self._ratios = {name: self._measure(name, pages) for name in self._codecs}
        zero_pages = round(count * zero / max(1, sampled))
        return MemoryFacts(int(self._firsts[-1]), count - zero_pages, zero_pages)

    def _existing(self, reach: Reach) -> Index:
        """The pages of a block that exist."""
        pages = reach.block.pages
        parts = [
            np.flatnonzero(reach.allocated(first, min(SPAN_PAGES, pages - first))) + first
            for first in range(0, pages, SPAN_PAGES)
            if reach.has_data(first, min(SPAN_PAGES, pages - first))
        ]
        return np.concatenate(parts) if parts else NO_INDEX

    def _measure(self, name: str, pages: Pages) -> tuple[float, float]:
        """The encoded share of *pages*, and the seconds for a GiB of them. delta has no page to compare with yet."""
        encoder = codec("zstd" if name == "delta" else name).encoder(CodecSettings())
        return _encoded(encoder, 0, np.arange(len(pages)), pages) if encoder is not None else (1.0, 0.0)

    def wrote(self, pages: Index) -> None:
        """The guest has written *pages*, numbered over all blocks. The first ones are kept as they are now."""
        if len(self._kept):
            self._rewritten = np.union1d(self._rewritten, np.intersect1d(self._kept, pages, assume_unique=True))
        elif len(pages) and self._codecs:
            share = min(len(pages), REWRITTEN_PAGES)
            self._kept = np.sort(self._random.choice(pages, share, replace=False))
            if "delta" in self._codecs:
                self._delta = codec("delta").encoder(CodecSettings(delta_cache_bytes=16 * REWRITTEN_PAGES * PAGE_BYTES))
            if self._delta is not None:
                for block, index in self._by_block(self._kept):
                    copies = self._reaches[block].look(index).copy()
                    self._delta.sent(block, 1, index, memoryview(copies.data).cast("B"))

    def _by_block(self, pages: Index) -> list[tuple[int, Index]]:
        blocks = np.searchsorted(self._firsts, pages, side="right") - 1
        return [(int(block), pages[blocks == block] - self._firsts[block]) for block in np.unique(blocks)]

    def codec_costs(self, costs: Costs) -> dict[str, CodecCosts]:
        """What the codecs make of the pages of this guest; decoding takes what *costs* say.

        A codec whose effect on rewritten pages was not seen has its effect on all pages there, too.
        """
        measured = {"none": CodecCosts()}
        for name, (ratio, encode_s) in self._ratios.items():
            rewritten = self._rewritten_ratio(name)
            measured[name] = CodecCosts(
                ratio, ratio if rewritten is None else rewritten, encode_s, costs.codec(name).decode_s_per_gib
            )
        return measured

    def _rewritten_ratio(self, name: str) -> float | None:
        """The encoded share of pages that were written again; None: no page was."""
        encoder = self._delta if name == "delta" else codec(name).encoder(CodecSettings())
        if encoder is None or not len(self._rewritten):
            return None
        shares = []
        for block, index in self._by_block(self._rewritten):
            pages = self._reaches[block].look(index).copy()
            shares.append((_encoded(encoder, block, index, pages)[0], len(index)))
        return sum(share * count for share, count in shares) / sum(count for _, count in shares)

    def close(self) -> None:
        """Release everything."""
        self._opened.close()

    def __enter__(self) -> MemorySample:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _encoded(encoder: PageEncoder, block: int, index: Index, raw: Pages) -> tuple[float, float]:
    """The encoded share of some pages of a block, and the seconds that a GiB of them takes."""
    encoded_bytes = 0
    began_ns = time.thread_time_ns()
    for first in range(0, len(index), BATCH_PAGES):
        part = memoryview(np.ascontiguousarray(raw[first : first + BATCH_PAGES]).data).cast("B")
        packed = encoder.encode(block, index[first : first + BATCH_PAGES], part)
        encoded_bytes += len(part) if packed is None else len(packed)
    took_s = (time.thread_time_ns() - began_ns) / 1e9
    size_bytes = len(index) * PAGE_BYTES
    return encoded_bytes / size_bytes, took_s * GIB / size_bytes
