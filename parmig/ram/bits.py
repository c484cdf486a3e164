# SPDX-License-Identifier: Apache-2.0
"""Sets of pages in the four forms that the page path uses, and vectorised conversions between them.

- *runs*: int64, shape (n, 2): first and past-the-last page, ascending, not touching;
- *index*: int64, shape (n,): page numbers, ascending;
- *mask*: bool, shape (pages,): one entry a page of some span;
- *bits*: uint8, one bit a page, bit ``i % 8`` of byte ``i // 8`` (the bytes of little-endian 64-bit
  words, the vhost-user log layout).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

Runs = npt.NDArray[np.int64]
Index = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Bits = npt.NDArray[np.uint8]

NO_RUNS: Runs = np.empty((0, 2), dtype=np.int64)
NO_INDEX: Index = np.empty(0, dtype=np.int64)
NO_MASK: Mask = np.empty(0, dtype=np.bool_)


def runs_of_mask(mask: Mask) -> Runs:
    """The runs of set entries of *mask*."""
    edges = np.flatnonzero(np.diff(mask.view(np.int8), prepend=np.int8(0), append=np.int8(0)))
    return edges.reshape(-1, 2)


def ascending(index: Index) -> Index:
    """The pages *index* in ascending order, each once. Those that come so are not sorted: 5 in place of 110 µs."""
    return index if len(index) < 2 or bool((index[1:] > index[:-1]).all()) else np.unique(index)


def runs_of_index(index: Index) -> Runs:
    """The runs of consecutive pages in *index*."""
    if not len(index):
        return NO_RUNS
    if is_one_run(index):
        return np.array([[index[0], index[-1] + 1]])
    breaks = np.flatnonzero(np.diff(index) != 1)
    runs = np.empty((len(breaks) + 1, 2), dtype=np.int64)
    runs[0, 0] = index[0]
    runs[1:, 0] = index[breaks + 1]
    runs[:-1, 1] = index[breaks] + 1
    runs[-1, 1] = index[-1] + 1
    return runs


def run_count(index: Index) -> int:
    """How many runs the ascending, non-empty *index* has."""
    return 1 if is_one_run(index) else int(np.count_nonzero(np.diff(index) != 1)) + 1


def is_one_run(index: Index) -> bool:
    """Whether the ascending, non-empty *index* has no gap: most batches of a first round."""
    return int(index[-1]) - int(index[0]) == len(index) - 1


def index_of_runs(runs: Runs) -> Index:
    """Every page of *runs*, in their order."""
    if len(runs) == 1:
        return np.arange(runs[0, 0], runs[0, 1])
    lengths = runs[:, 1] - runs[:, 0]
    total = int(lengths.sum())
    if not total:
        return NO_INDEX
    # Each page is its run's first page plus its place in the run.
    before = np.cumsum(lengths) - lengths
    return np.repeat(runs[:, 0] - before, lengths) + np.arange(total)


def bits_for(pages: int) -> int:
    """Bytes of a bitmap for *pages* pages, rounded up to whole 64-bit words."""
    return (pages + 63) // 64 * 8


def mask_of_bits(bits: Bits, first: int, pages: int) -> Mask:
    """Entries ``[first, first + pages)`` of *bits*; *first* must be a multiple of 8."""
    return np.unpackbits(bits[first // 8 : (first + pages + 7) // 8], count=pages, bitorder="little").view(np.bool_)


def put_mask(bits: Bits, first: int, mask: Mask) -> None:
    """Set entries ``[first, first + len(mask))`` of *bits* to *mask*; *first* must be a multiple of 8.

    The rest of the last byte becomes zero.
    """
    bits[first // 8 : (first + len(mask) + 7) // 8] = np.packbits(mask, bitorder="little")


def test_bits(bits: Bits, index: Index) -> Mask:
    """Whether each page of *index* is set in *bits*."""
    is_set: Mask = ((bits[index >> 3] >> (index & 7).astype(np.uint8)) & 1).view(np.bool_)
    return is_set


def _bytes_of(index: Index) -> tuple[Index, Bits]:
    """The bytes that *index* touches, and the bits of each that it means."""
    places = index >> 3
    starts = np.concatenate(([0], np.flatnonzero(np.diff(places)) + 1))
    values = np.left_shift(np.uint8(1), (index & 7).astype(np.uint8), dtype=np.uint8)
    return places[starts], np.bitwise_or.reduceat(values, starts)


def _whole_bytes(index: Index) -> slice | None:
    """The bytes that *index* fills, if it is one run that begins and ends on the border of a byte."""
    first, end = int(index[0]), int(index[-1]) + 1
    return slice(first >> 3, end >> 3) if is_one_run(index) and not (first | end) & 7 else None


def set_bits(bits: Bits, index: Index) -> None:
    """Set the pages of *index* (ascending) in *bits*."""
    if not len(index):
        return
    whole = _whole_bytes(index)
    if whole is not None:
        bits[whole] = 0xFF
    else:
        places, values = _bytes_of(index)
        bits[places] |= values


def clear_bits(bits: Bits, index: Index) -> None:
    """Clear the pages of *index* (ascending) in *bits*."""
    if not len(index):
        return
    whole = _whole_bytes(index)
    if whole is not None:
        bits[whole] = 0
    else:
        places, values = _bytes_of(index)
        bits[places] &= ~values


LONG_RUN_PAGES = 512
"""Runs of at least this many pages are handled one by one, shorter ones as single pages. Looking at the bits of a long
run takes 1 µs and 64 bytes, and numbering its 512 pages 2 µs and 4 KiB."""


def long_and_short(runs: Runs) -> tuple[Runs, Runs]:
    """The runs of at least LONG_RUN_PAGES, and the others."""
    is_long = runs[:, 1] - runs[:, 0] >= LONG_RUN_PAGES
    return runs[is_long], runs[~is_long]


def page_count(runs: Runs) -> int:
    """The number of pages of *runs*."""
    return int((runs[:, 1] - runs[:, 0]).sum())


def join_runs(parts: Sequence[Runs]) -> Runs:
    """Runs that do not overlap, in any order, as one ascending list in which no two touch."""
    runs = np.concatenate(parts) if parts else NO_RUNS
    if len(runs) < 2:
        return runs
    runs = runs[np.argsort(runs[:, 0])]
    begins = np.flatnonzero(np.concatenate(([True], runs[1:, 0] != runs[:-1, 1])))
    ends = np.append(begins[1:], len(runs)) - 1
    return np.stack((runs[begins, 0], runs[ends, 1]), axis=1)


def portions(runs: Runs, max_pages: int, max_runs: int) -> Iterator[Runs]:
    """*runs* in portions of at most *max_pages* pages and *max_runs* runs; longer runs are cut."""
    for first, end in runs[runs[:, 1] - runs[:, 0] > max_pages].tolist():
        for begin in range(first, end, max_pages):
            yield np.array([[begin, min(begin + max_pages, end)]])
    runs = runs[runs[:, 1] - runs[:, 0] <= max_pages]
    pages_before = np.concatenate(([0], np.cumsum(runs[:, 1] - runs[:, 0])))
    begin = 0
    while begin < len(runs):
        fits = int(np.searchsorted(pages_before, pages_before[begin] + max_pages, side="right")) - 1
        end = min(begin + max_runs, fits)
        yield runs[begin:end]
        begin = end


def any_set(bits: Bits, first: int, end: int) -> bool:
    """Whether any page of ``[first, end)`` is set in *bits*."""
    if not bits[first >> 3 : (end + 7) >> 3].any():
        return False
    return bool(mask_of_bits(bits, first & ~7, end - (first & ~7))[first & 7 :].any())


def clear_runs(bits: Bits, runs: Runs) -> None:
    """Clear the pages of *runs* in *bits*."""
    long, short = long_and_short(runs)
    for first, end in long.tolist():
        inner_first, inner_end = -(-first // 8), end // 8
        bits[inner_first:inner_end] = 0
        if first & 7:
            bits[first // 8] &= (1 << (first & 7)) - 1
        if end & 7:
            bits[end // 8] &= 0xFF << (end & 7) & 0xFF
    clear_bits(bits, index_of_runs(short))
