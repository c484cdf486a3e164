# SPDX-License-Identifier: Apache-2.0
"""Batch headers arrive as they were sent, and nothing but ProtocolError comes of any other bytes."""

from __future__ import annotations

import struct
from contextlib import nullcontext

import msgspec
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from parmig.errors import ProtocolError
from parmig.ram.bits import NO_RUNS, Runs
from parmig.ram.blocks import PAGE_BYTES
from parmig.ram.credit import LONG_BATCH_RUNS
from parmig.ram.packets import MAX_RUN_PAGES, MAX_RUNS, MAX_ZERO_PAGES, BatchHeader, decode_batch
from tests.support import pages_below, runs_of

HEADER = struct.Struct(">BBHIQIIII")
BLOCK_PAGES = 2048
BATCH_BYTES = 1024 * PAGE_BYTES


def decode(
    frame: bytes,
    *,
    blocks_pages: list[int] | None = None,
    max_raw_bytes: int = BATCH_BYTES,
    max_long_bytes: int = 0,
) -> BatchHeader:
    return decode_batch(
        memoryview(frame),
        blocks_pages=blocks_pages or [BLOCK_PAGES, 64],
        max_raw_bytes=max_raw_bytes,
        max_long_bytes=max_long_bytes,
    )


def header(data: set[int], zero: set[int], **fields: int) -> BatchHeader:
    raw_bytes = len(data) * PAGE_BYTES
    values = {"codec": 0, "block": 0, "round": 1, "sequence": 1, "raw_bytes": raw_bytes, "payload_bytes": raw_bytes}
    return BatchHeader(**{**values, **fields}, data_runs=runs_of(data), zero_runs=runs_of(zero))


def entry(kind: int, pages: int, first: int) -> int:
    return kind << 62 | pages << 40 | first


def frame(*entries: int, **fields: int) -> bytes:
    """A frame of two data pages unless *fields* say otherwise."""
    values = {"kind": 3, "codec": 0, "block": 0, "round": 1, "sequence": 1, "runs": len(entries)}
    values |= {"raw": 2 * PAGE_BYTES, "payload": 2 * PAGE_BYTES, "reserved": 0, **fields}
    return HEADER.pack(*values.values()) + b"".join(struct.pack(">Q", one) for one in entries)


TWO_PAGES = entry(1, 2, 5)


@st.composite
def headers(draw: st.DrawFn) -> BatchHeader:
    block = draw(st.integers(0, 1))
    limit = (BLOCK_PAGES, 64)[block]
    data, zero = draw(pages_below(min(limit, 1000))), draw(pages_below(limit))
    if not data and not zero:
        zero = {0}
    codec = draw(st.integers(0, 255)) if data else 0
    raw_bytes = len(data) * PAGE_BYTES
    payload_bytes = draw(st.integers(0, raw_bytes)) if codec else raw_bytes
    return header(
        data,
        zero,
        codec=codec,
        block=block,
        round=draw(st.integers(0, (1 << 32) - 1)),
        sequence=draw(st.integers(0, (1 << 64) - 1)),
        payload_bytes=payload_bytes,
    )


def same(one: BatchHeader, other: BatchHeader) -> bool:
    return all(
        np.array_equal(a, b) for a, b in zip(msgspec.structs.astuple(one), msgspec.structs.astuple(other), strict=True)
    )


@given(headers())
def test_a_header_arrives_as_it_was_sent(sent: BatchHeader) -> None:
    assert same(decode(sent.encode()), sent)


@given(headers())
def test_a_run_costs_eight_bytes(sent: BatchHeader) -> None:
    assert len(sent.encode()) == HEADER.size + 8 * (len(sent.data_runs) + len(sent.zero_runs))


@given(st.binary(max_size=200))
@example(frame(TWO_PAGES)[:-1])
def test_arbitrary_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(data)


@given(headers(), st.data())
def test_altered_bytes_are_refused_or_still_within_what_was_agreed(sent: BatchHeader, data: st.DataObject) -> None:
    altered = bytearray(sent.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        altered[data.draw(st.integers(0, len(altered) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        found = decode(bytes(altered))
    except ProtocolError:
        return
    limit = (BLOCK_PAGES, 64)[found.block]
    for runs in (found.data_runs, found.zero_runs):
        assert ((runs[:, 0] >= 0) & (runs[:, 0] < runs[:, 1]) & (runs[:, 1] <= limit)).all()
    assert pages_in(found.data_runs) * PAGE_BYTES == found.raw_bytes <= BATCH_BYTES
    assert found.payload_bytes <= found.raw_bytes


def pages_in(runs: Runs) -> int:
    return int((runs[:, 1] - runs[:, 0]).sum())


@given(headers(), st.integers(1, 60))
def test_a_frame_that_was_cut_is_refused(sent: BatchHeader, cut: int) -> None:
    encoded = sent.encode()
    with pytest.raises(ProtocolError):
        decode(encoded[: max(0, len(encoded) - cut)])


def test_the_frame_that_the_cases_below_spoil_is_right() -> None:
    assert decode(frame(TWO_PAGES)).data_runs.tolist() == [[5, 7]]
    assert decode(frame(entry(1, 1, 0), entry(2, 9, 1), entry(1, 1, 99))).zero_runs.tolist() == [[1, 10]]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "has 0 bytes, expected 32"),
        (frame(TWO_PAGES)[:31], "has 31 bytes, expected 32"),
        (frame(TWO_PAGES, kind=4), "kind 4 is not a batch"),
        (frame(TWO_PAGES, kind=0), "kind 0 is not a batch"),
        (frame(TWO_PAGES, reserved=1), "reserved"),
        (frame(TWO_PAGES, block=2), "block number 2, agreed are 2"),
        (frame(TWO_PAGES, block=65535), "block number 65535"),
        (frame(raw=0, payload=0), "0 runs"),
        (frame(runs=MAX_RUNS + 1), f"{MAX_RUNS + 1} runs"),
        (frame(TWO_PAGES, runs=(1 << 32) - 1), "runs"),
        (frame(TWO_PAGES, runs=2), "do not hold a table of 2 runs"),
        (frame(TWO_PAGES) + b"x", "do not hold a table of 1 runs"),
        (frame(entry(1, 1025, 0), raw=1025 * PAGE_BYTES, payload=1), f"agreed are {BATCH_BYTES}"),
        (frame(TWO_PAGES, codec=1, payload=2 * PAGE_BYTES + 1), "longer than its pages"),
        (frame(TWO_PAGES, payload=2 * PAGE_BYTES - 1), "as they are"),
        (frame(TWO_PAGES, payload=0), "as they are"),
        (frame(TWO_PAGES, raw=PAGE_BYTES, payload=PAGE_BYTES), "2 data pages are not 4096 bytes"),
        (frame(entry(0, 2, 0)), "neither data nor zero"),
        (frame(entry(3, 2, 0)), "neither data nor zero"),
        (frame(TWO_PAGES, entry(2, 0, 0)), "no pages"),
        (frame(entry(1, 2, BLOCK_PAGES - 1)), f"past the block's {BLOCK_PAGES} pages"),
        (frame(entry(1, 2, 63), block=1), "past the block's 64 pages"),
        (frame(entry(2, MAX_RUN_PAGES, (1 << 40) - 1), raw=0, payload=0), "past the block's"),
    ],
    ids=lambda value: value if isinstance(value, str) else "frame",
)
def test_what_does_not_add_up_is_refused_by_name(data: bytes, words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        decode(data)


def test_zero_pages_are_limited_however_large_the_block_is() -> None:
    huge = [1 << 30]
    fits = frame(entry(2, MAX_ZERO_PAGES, 0), raw=0, payload=0)
    assert pages_in(decode(fits, blocks_pages=huge).zero_runs) == MAX_ZERO_PAGES
    with pytest.raises(ProtocolError, match="zero pages"):
        decode(frame(entry(2, MAX_ZERO_PAGES, 0), entry(2, 1, MAX_ZERO_PAGES), raw=0, payload=0), blocks_pages=huge)


def test_runs_at_the_ends_of_their_fields_arrive() -> None:
    first = (1 << 40) - 2
    sent = BatchHeader(0, 0, 0, 1, 0, 0, NO_RUNS, np.array([[first, first + 1]], dtype=np.int64))
    assert decode(sent.encode(), blocks_pages=[1 << 40]).zero_runs.tolist() == [[first, first + 1]]


def test_as_many_bytes_of_pages_as_agreed_arrive_and_no_more() -> None:
    sent = frame(TWO_PAGES)
    assert decode(sent, max_raw_bytes=2 * PAGE_BYTES).raw_bytes == 2 * PAGE_BYTES
    with pytest.raises(ProtocolError, match=f"agreed are {2 * PAGE_BYTES - 1}"):
        decode(sent, max_raw_bytes=2 * PAGE_BYTES - 1)


def test_the_numbers_of_pages_are_whole() -> None:
    found = decode(frame(TWO_PAGES, entry(2, 3, 9)))
    assert (found.data_runs.dtype, found.zero_runs.dtype) == (np.int64, np.int64)


def test_as_many_runs_as_allowed_arrive() -> None:
    zero = np.arange(0, 2 * MAX_RUNS, 2, dtype=np.int64)
    sent = BatchHeader(0, 0, 0, 1, 0, 0, NO_RUNS, np.stack((zero, zero + 1), axis=1))
    assert np.array_equal(decode(sent.encode(), blocks_pages=[2 * MAX_RUNS]).zero_runs, sent.zero_runs)


@given(pages_below(64), st.integers(0, 64), st.integers(0, 128), st.sampled_from([0, 1]))
def test_only_few_runs_of_pages_as_they_are_make_a_batch_longer_than_others(
    data: set[int], usual: int, long: int, codec: int
) -> None:
    sent = header(data, {64, 66, 68, 70, 72}, codec=codec)
    fits = len(data) <= usual or (len(data) <= long and codec == 0 and len(sent.data_runs) <= LONG_BATCH_RUNS)
    with nullcontext() if fits else pytest.raises(ProtocolError, match="agreed are"):
        decoded = decode(sent.encode(), max_raw_bytes=usual * PAGE_BYTES, max_long_bytes=long * PAGE_BYTES)
        assert np.array_equal(decoded.data_runs, sent.data_runs)
