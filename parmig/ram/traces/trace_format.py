# SPDX-License-Identifier: Apache-2.0
"""The bytes of a trace file: ``docs/traces.md`` has the layout. It does no I/O.

A file comes from anywhere. So every number is checked before anything of its size is allocated, and the digest at the
end covers all bytes before it.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import msgspec
import numpy as np
import zstandard

from parmig.errors import TraceError
from parmig.ram.bits import NO_INDEX, Index, index_of_runs, runs_of_index
from parmig.ram.blocks import PAGE_BYTES
from parmig.ram.traces.trace import TraceSource
from parmig.units import NS_PER_MS, NS_PER_S

MAGIC = b"parmig-trace\n"
VERSION = 1

PREFIX = struct.Struct("<13sHI")
"""The magic, the version, and how many bytes of header follow."""

HEAD = struct.Struct("<B3xIQQQ")
"""The head of a record: kind, bytes that follow, pages, runs, nanoseconds."""

INTERVAL, END = 1, 2
DIGEST_BYTES = 8

HEADER_BYTES_MAX = 1 << 20
MEMORY_PAGES_MAX = 1 << 40
INTERVALS_MAX = 1 << 20
WRITTEN_PAGES_MAX = 1 << 27
"""Pages of all intervals together. In memory they take 8 bytes each: 1 GiB."""

INTERVAL_NS_RANGE = (NS_PER_MS, 3600 * NS_PER_S)
DURATION_NS_MAX = 1 << 62

_RUN_BYTES = 16
_WINDOW_BYTES = 8 << 20
_LEVEL = 3
"""Of zstd. From 50,000 random pages of a million, levels 1, 3 and 9 make 39.3, 39.0 and 38.2 kB in 0.8, 0.8 and
2.5 ms."""


class TraceHeader(msgspec.Struct, frozen=True, kw_only=True):
    """The header, in JSON. The fields are those of :class:`~parmig.ram.traces.trace.Trace`."""

    interval_ns: int
    page_size_bytes: int
    memory_pages: int
    source: TraceSource

    def check(self) -> None:
        """Refuse what no recorder writes.

        Raises:
            TraceError: a value is out of its range.
        """
        low, high = INTERVAL_NS_RANGE
        if not low <= self.interval_ns <= high:
            raise TraceError(f"the trace has an interval of {self.interval_ns} ns, expected {low} to {high}")
        if self.page_size_bytes != PAGE_BYTES:
            raise TraceError(f"the trace has pages of {self.page_size_bytes} bytes, expected {PAGE_BYTES}")
        if not 1 <= self.memory_pages <= MEMORY_PAGES_MAX:
            raise TraceError(f"the trace is of {self.memory_pages} pages, expected 1 to {MEMORY_PAGES_MAX}")
        blocks = self.source.blocks
        if blocks and (min(block.pages for block in blocks) < 1 or self._pages_of_blocks != self.memory_pages):
            raise TraceError(
                f"the blocks of the trace have {self._pages_of_blocks} pages, expected {self.memory_pages} and one or "
                "more in each"
            )

    @property
    def _pages_of_blocks(self) -> int:
        return sum(block.pages for block in self.source.blocks)


class Head(NamedTuple):
    """The head of a record.

    Attributes:
        kind: INTERVAL or END.
        packed_bytes: how many bytes follow the head.
        pages: of this interval; at the end: of all intervals together.
        runs: of this interval; at the end: how many intervals there are.
        at_ns: when the scan ended, since the recording began; at the end: of the last interval.
    """

    kind: int
    packed_bytes: int
    pages: int
    runs: int
    at_ns: int


def encode_header(header: TraceHeader) -> bytes:
    """Everything before the first record.

    Raises:
        TraceError: a value is out of its range.
    """
    header.check()
    text = msgspec.json.encode(header) + b"\n"
    return PREFIX.pack(MAGIC, VERSION, len(text)) + text


def decode_prefix(prefix: bytes) -> int:
    """How many bytes of header follow *prefix*, the first bytes of a file.

    Raises:
        TraceError: it is no trace, or of another version.
    """
    if not prefix or not prefix.startswith(MAGIC[: len(prefix)]):
        raise TraceError("the file is no trace: its first bytes are not parmig-trace; give one of parmig trace record")
    if len(prefix) < PREFIX.size:
        raise truncated()
    _, version, size_bytes = PREFIX.unpack(prefix)
    if version != VERSION:
        raise TraceError(f"the trace has version {version}, expected {VERSION}; record it with this version of parmig")
    if size_bytes > HEADER_BYTES_MAX:
        raise TraceError(f"the trace has a header of {size_bytes} bytes, expected at most {HEADER_BYTES_MAX}")
    return int(size_bytes)


def decode_header(text: bytes) -> TraceHeader:
    """The header that *text* has.

    Raises:
        TraceError: it is damaged, or a value is out of its range.
    """
    try:
        header = msgspec.json.decode(text, type=TraceHeader)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise TraceError(f"the header of the trace is damaged: {error}; record it again") from error
    header.check()
    return header


def encode_interval(pages: Index, at_ns: int) -> bytes:
    """The record of an interval in which *pages* were written: ascending numbers, each once."""
    runs = runs_of_index(pages)
    if not len(runs):
        return HEAD.pack(INTERVAL, 0, 0, 0, at_ns)
    ends = np.concatenate(([0], runs[:-1, 1]))
    gaps_and_lengths = np.concatenate((runs[:, 0] - ends, runs[:, 1] - runs[:, 0])).astype("<u8")
    planes = np.ascontiguousarray(gaps_and_lengths.view(np.uint8).reshape(-1, 8).T)
    packed = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=False).compress(planes.data.cast("B"))
    return HEAD.pack(INTERVAL, len(packed), len(pages), len(runs), at_ns) + packed


def encode_end(pages: int, intervals: int, at_ns: int) -> bytes:
    """The head of the last record, which the digest follows."""
    return HEAD.pack(END, DIGEST_BYTES, pages, intervals, at_ns)


def decode_head(data: bytes, memory_pages: int) -> Head:
    """The head of a record in a trace of a guest with *memory_pages* pages.

    Raises:
        TraceError: no record begins like this.
    """
    if len(data) < HEAD.size:
        raise truncated()
    head = Head(*HEAD.unpack(data))
    if head.at_ns > DURATION_NS_MAX:
        raise damaged(f"a scan ended after {head.at_ns} ns")
    if head.kind == END:
        if head.packed_bytes != DIGEST_BYTES:
            raise damaged(f"the digest has {head.packed_bytes} bytes")
    elif head.kind != INTERVAL:
        raise damaged(f"a record has kind {head.kind}")
    elif not head.runs <= head.pages <= memory_pages or bool(head.runs) != bool(head.pages):
        raise damaged(f"{head.pages} of {memory_pages} pages are in {head.runs} runs")
    elif head.packed_bytes > _most_packed_bytes(head.runs):
        raise damaged(f"{head.runs} runs take {head.packed_bytes} bytes")
    return head


def decode_interval(head: Head, packed: bytes, memory_pages: int) -> Index:
    """The pages of an interval.

    Args:
        head: checked by :func:`decode_head`; its pages are not more than the caller wants to hold.

    Raises:
        TraceError: the bytes are damaged.
    """
    if not head.pages:
        return NO_INDEX
    size_bytes = head.runs * _RUN_BYTES
    try:
        if zstandard.frame_content_size(packed) != size_bytes:  # before memory of that size is allocated
            raise damaged(f"{head.runs} runs are packed in another size than {size_bytes} bytes")
        unpacker = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES)
        planes = unpacker.decompress(packed, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise damaged(f"an interval cannot be unpacked ({error})") from error
    if len(planes) != size_bytes:
        raise damaged(f"{head.runs} runs are packed in {len(planes)} bytes, not in {size_bytes}")
    values = np.ascontiguousarray(np.frombuffer(planes, np.uint8).reshape(8, -1).T).view("<u8").reshape(-1)
    if float(values.sum(dtype=np.float64)) > memory_pages:  # as floats, because the sum may exceed 64 bits
        raise damaged("an interval has pages past the end of the memory")
    gaps, lengths = np.split(values.astype(np.int64), 2)
    if (gaps[1:] < 1).any() or (lengths < 1).any() or int(lengths.sum()) != head.pages:
        raise damaged("the pages of an interval do not ascend, or are not as many as its head has")
    ends = np.cumsum(gaps + lengths)
    return index_of_runs(np.stack((ends - lengths, ends), axis=1))


def truncated() -> TraceError:
    """The error for a file that ends too early."""
    return TraceError("the trace ends too early; copy the whole file, or record it again")


def damaged(what: str) -> TraceError:
    """The error for a file in which *what* is wrong."""
    return TraceError(f"the trace is damaged: {what}; copy the file again, or record it again")


def _most_packed_bytes(runs: int) -> int:
    """More bytes than zstd makes of *runs* runs (ZSTD_COMPRESSBOUND)."""
    return runs * _RUN_BYTES + runs * _RUN_BYTES // 256 + 1024
