# SPDX-License-Identifier: Apache-2.0
"""Batches on the wire: a header, an index table of 8 bytes a run, then the pages.

A batch is one message of several frames. The first frame is the header and the table, all integers
big-endian; the frames after it are the payload: the data pages in the order of the table, as they
are or encoded by a codec::

    u8  kind (3, batch)      u8  codec           u16 block          u32 round
    u64 sequence             u32 runs            u32 raw_bytes      u32 payload_bytes   u32 reserved (0)
    runs x u64:  2 bits kind (1 data, 2 zero) | 22 bits pages | 40 bits first page

40 bits of page number cover 4 PiB of a block, and 22 bits of length cover 16 GiB of a run.
"""

from __future__ import annotations

import struct

import msgspec
import numpy as np

from parmig.errors import ProtocolError
from parmig.ram.bits import NO_RUNS, Runs
from parmig.ram.blocks import PAGE_BYTES
from parmig.ram.credit import LONG_BATCH_RUNS

BATCH = 3
"""Kind of a batch among the messages of a data channel (see ``ram.flow``)."""

_HEADER = struct.Struct(">BBHIQIIII")
_DATA, _ZERO = 1, 2
_LENGTH_BITS, _FIRST_BITS = 22, 40
MAX_RUN_PAGES = (1 << _LENGTH_BITS) - 1
MAX_RUNS = 1 << 16
"""Most entries of the table of one batch, so that a table has at most 512 KiB."""
MAX_ZERO_PAGES = 1 << 18
"""Most zero pages of one batch (1 GiB). It bounds what the receiver computes for one message (2 MiB)."""


class BatchHeader(msgspec.Struct, frozen=True):
    """One batch without its pages. The runs are page numbers of the block; data runs come before zero runs.

    Attributes:
        codec: number of the codec of the payload; 0: it is not encoded.
        raw_bytes: size of the data pages before encoding: pages times 4096.
        payload_bytes: size of all payload frames together.
    """

    codec: int
    block: int
    round: int
    sequence: int
    raw_bytes: int
    payload_bytes: int
    data_runs: Runs = NO_RUNS
    zero_runs: Runs = NO_RUNS

    def encode(self) -> bytes:
        """The first frame."""
        runs = len(self.data_runs) + len(self.zero_runs)
        head = _HEADER.pack(
            BATCH, self.codec, self.block, self.round, self.sequence, runs, self.raw_bytes, self.payload_bytes, 0
        )
        return head + _table(_DATA, self.data_runs) + _table(_ZERO, self.zero_runs)


def _table(kind: int, runs: Runs) -> bytes:
    if not len(runs):
        return b""
    unsigned = runs.astype(np.uint64)
    entries = np.uint64(kind << (_LENGTH_BITS + _FIRST_BITS)) | (
        (unsigned[:, 1] - unsigned[:, 0]) << np.uint64(_FIRST_BITS)
    )
    return (entries | unsigned[:, 0]).astype(">u8").tobytes()


def decode_batch(
    frame: memoryview, *, blocks_pages: list[int], max_raw_bytes: int, max_long_bytes: int = 0
) -> BatchHeader:
    """The header in *frame*. Every field is checked against what both sides agreed.

    Args:
        blocks_pages: pages of each agreed block.
        max_raw_bytes: the agreed batch size.
        max_long_bytes: the agreed size of a long batch; 0: none is agreed.

    Raises:
        ProtocolError: a field does not fit; the message names it.
    """
    if len(frame) < _HEADER.size:
        raise ProtocolError(f"a batch header has {len(frame)} bytes, expected {_HEADER.size}")
    kind, codec, block, round_, sequence, runs, raw_bytes, payload_bytes, reserved = _HEADER.unpack_from(frame)
    _require(kind == BATCH, f"message kind {kind} is not a batch")
    _require(reserved == 0, f"reserved field is {reserved:#x}, not 0")
    _require(block < len(blocks_pages), f"block number {block}, agreed are {len(blocks_pages)}")
    _require(0 < runs <= MAX_RUNS, f"{runs} runs, allowed are 1 to {MAX_RUNS}")
    _require(len(frame) == _HEADER.size + 8 * runs, f"{len(frame)} bytes do not hold a table of {runs} runs")
    most = max(max_raw_bytes, max_long_bytes)
    _require(raw_bytes <= most, f"{raw_bytes} bytes of pages, agreed are {most}")
    _require(payload_bytes <= raw_bytes, f"payload of {payload_bytes} bytes is longer than its pages ({raw_bytes})")
    _require(
        codec != 0 or payload_bytes == raw_bytes,
        f"payload of {payload_bytes} bytes for {raw_bytes} bytes of pages as they are",
    )
    data_runs, zero_runs = _check_table(frame[_HEADER.size :], blocks_pages[block], raw_bytes)
    _require(
        raw_bytes <= max_raw_bytes or (codec == 0 and len(data_runs) <= LONG_BATCH_RUNS),
        f"{raw_bytes} bytes of pages in {len(data_runs)} runs by codec {codec}, agreed are {max_raw_bytes}",
    )
    return BatchHeader(codec, block, round_, sequence, raw_bytes, payload_bytes, data_runs, zero_runs)


def _check_table(table: memoryview, block_pages: int, raw_bytes: int) -> tuple[Runs, Runs]:
    entries = np.frombuffer(table, dtype=">u8").astype(np.uint64)
    kinds = entries >> np.uint64(_LENGTH_BITS + _FIRST_BITS)
    lengths = ((entries >> np.uint64(_FIRST_BITS)) & np.uint64(MAX_RUN_PAGES)).astype(np.int64)
    runs = np.empty((len(entries), 2), dtype=np.int64)
    runs[:, 0] = entries & np.uint64((1 << _FIRST_BITS) - 1)
    runs[:, 1] = runs[:, 0] + lengths
    data, zero = kinds == _DATA, kinds == _ZERO
    _require(bool((data | zero).all()), "a run is neither data nor zero")
    _require(bool((lengths > 0).all()), "a run of no pages")
    _require(bool((runs[:, 1] <= block_pages).all()), f"a run ends past the block's {block_pages} pages")
    data_pages = int(lengths[data].sum())
    _require(data_pages * PAGE_BYTES == raw_bytes, f"{data_pages} data pages are not {raw_bytes} bytes")
    zero_pages = int(lengths[zero].sum())
    _require(zero_pages <= MAX_ZERO_PAGES, f"{zero_pages} zero pages, allowed are {MAX_ZERO_PAGES}")
    return runs[data], runs[zero]


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ProtocolError(f"bad batch: {what}")
