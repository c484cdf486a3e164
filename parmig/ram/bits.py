# SPDX-License-Identifier: Apache-2.0
"""Sets of pages in the four forms that the page path uses, and vectorised conversions between them.

- *runs*: int64, shape (n, 2): first and past-the-last page, ascending, not touching;
- *index*: int64, shape (n,): page numbers, ascending;
- *mask*: bool, shape (pages,): one entry a page of some span;
- *bits*: uint8, one bit a page, bit ``i % 8`` of byte ``i // 8`` (the bytes of little-endian 64-bit
  words, the vhost-user log layout).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Runs = npt.NDArray[np.int64]
Index = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Bits = npt.NDArray[np.uint8]

NO_RUNS: Runs = np.empty((0, 2), dtype=np.int64)
NO_INDEX: Index = np.empty(0, dtype=np.int64)


def runs_of_mask(mask: Mask) -> Runs:
    """The runs of set entries of *mask*."""
    edges = np.flatnonzero(np.diff(mask.view(np.int8), prepend=np.int8(0), append=np.int8(0)))
    return edges.reshape(-1, 2)


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
