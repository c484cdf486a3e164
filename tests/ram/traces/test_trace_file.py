# SPDX-License-Identifier: Apache-2.0
"""Traces arrive as they were written, and nothing but TraceError comes of damage."""

from __future__ import annotations

import io
from pathlib import Path

import msgspec
import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from parmig.errors import TraceError
from parmig.ram.traces import trace_format
from parmig.ram.traces.trace import Trace, TraceBlock, TraceSource
from parmig.ram.traces.trace_file import TraceWriter, load_trace, read_trace, write_trace
from tools.make_golden_trace import FILE

GOLDEN = FILE.read_bytes()
MEMORY_PAGES = 1 << 20
HEADER = trace_format.TraceHeader(
    interval_ns=10**8, page_size_bytes=4096, memory_pages=MEMORY_PAGES, source=TraceSource()
)


def written(*intervals: set[int], header: trace_format.TraceHeader = HEADER) -> io.BytesIO:
    file = io.BytesIO()
    writer = TraceWriter(file, header)
    for number, pages in enumerate(intervals):
        writer.add(np.array(sorted(pages), dtype=np.int64), number)
    writer.end()
    return file


@given(st.lists(st.sets(st.integers(0, MEMORY_PAGES - 1), max_size=50), max_size=6))
def test_what_was_written_is_read(intervals: list[set[int]]) -> None:
    found = load_trace(written(*intervals))
    assert [set(pages.tolist()) for pages in found.written] == intervals
    assert all((np.diff(pages) > 0).all() for pages in found.written)
    assert found.scanned_ns == list(range(len(intervals)))
    assert (found.interval_ns, found.page_size_bytes, found.memory_pages) == (10**8, 4096, MEMORY_PAGES)


@pytest.mark.parametrize("size_bytes", [0, 1, 12, 13, 18, 19, 100, len(GOLDEN) - 9, len(GOLDEN) - 8, len(GOLDEN) - 1])
def test_a_truncated_file_is_refused(size_bytes: int) -> None:
    with pytest.raises(TraceError, match="ends too early" if size_bytes else "no trace"):
        load_trace(io.BytesIO(GOLDEN[:size_bytes]))


@given(st.integers(0, len(GOLDEN) - 1))
def test_any_truncation_is_refused(size_bytes: int) -> None:
    with pytest.raises(TraceError):
        load_trace(io.BytesIO(GOLDEN[:size_bytes]))


@given(st.integers(0, len(GOLDEN) * 8 - 1))
def test_any_bit_that_flips_is_noticed(bit: int) -> None:
    content = bytearray(GOLDEN)
    content[bit // 8] ^= 1 << bit % 8
    with pytest.raises(TraceError):
        load_trace(io.BytesIO(content))


@given(st.binary(max_size=200), st.integers(0, len(GOLDEN)))
def test_any_bytes_in_place_of_the_rest_are_refused(rest: bytes, kept_bytes: int) -> None:
    content = GOLDEN[:kept_bytes] + rest
    if content != GOLDEN:
        with pytest.raises(TraceError):
            load_trace(io.BytesIO(content))


def test_bytes_after_the_end_are_refused() -> None:
    with pytest.raises(TraceError, match="1 bytes follow its end"):
        load_trace(io.BytesIO(GOLDEN + b"x"))


def test_a_later_version_is_named() -> None:
    content = bytearray(GOLDEN)
    content[len(trace_format.MAGIC)] = 2
    with pytest.raises(TraceError, match="version 2, expected 1"):
        load_trace(io.BytesIO(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"interval_ns": 0}, "interval of 0 ns"),
        ({"page_size_bytes": 8192}, "pages of 8192 bytes"),
        ({"memory_pages": 0}, "of 0 pages"),
        ({"source": TraceSource(blocks=(TraceBlock(name="ram", pages=5),))}, "have 5 pages"),
    ],
)
def test_a_header_that_no_recorder_writes_is_refused(change: dict[str, object], message: str) -> None:
    header = msgspec.structs.replace(HEADER, **change)
    with pytest.raises(TraceError, match=message):
        TraceWriter(io.BytesIO(), header)
    text = msgspec.json.encode(header)
    with pytest.raises(TraceError, match=message):
        trace_format.decode_header(text)


def record(pages: int, *values: int, packed: bytes | None = None) -> io.BytesIO:
    """A trace whose only interval says that it has so many *pages*, in runs of these gaps and lengths."""
    planes = np.array(values, "<u8").view(np.uint8).reshape(-1, 8).T.tobytes()
    body = zstandard.ZstdCompressor().compress(planes) if packed is None else packed
    head = trace_format.HEAD.pack(trace_format.INTERVAL, len(body), pages, len(values) // 2, 0)
    return io.BytesIO(trace_format.encode_header(HEADER) + head + body)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (record(1, MEMORY_PAGES, 1), "past the end"),
        (record(2, 0, (1 << 64) - 1, 1, 1), "past the end"),
        (record(2, 5, 0, 1, 1), "do not ascend"),
        (record(3, 5, 1, 1, 1), "not as many"),
        (record(0, 5, 1), "0 of 1048576 pages are in 1 runs"),
        (record(2 * MEMORY_PAGES, 5, 1), "pages are in 1 runs"),
        (record(1, 5, 1, packed=bytes(5000)), "1 runs take 5000 bytes"),
        (record(1, 5, 1, packed=bytes(50)), "cannot be unpacked"),
        (record(1, 5, 1, packed=zstandard.ZstdCompressor().compress(bytes(1 << 24))), "another size than 16"),
    ],
)
def test_runs_that_cannot_be_are_refused_before_they_take_memory(file: io.BytesIO, message: str) -> None:
    with pytest.raises(TraceError, match=message):
        load_trace(file)


def test_more_pages_than_the_caller_wants_to_hold_are_refused() -> None:
    with pytest.raises(TraceError, match="has 3 pages or more in 2 intervals, expected at most 2"):
        load_trace(written({1, 2}, {3}), pages_max=2)


def test_a_trace_in_memory_is_written_as_one_that_is_recorded() -> None:
    file = io.BytesIO()
    trace = Trace(interval_ns=10**6, memory_pages=9, written=[np.array([1, 8])])
    write_trace(file, trace)
    assert load_trace(file).scanned_ns == [10**6]
    assert load_trace(file).written[0].tolist() == [1, 8]
    with pytest.raises(ValueError):
        write_trace(io.BytesIO(), msgspec.structs.replace(trace, scanned_ns=[1, 2]))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"none.trace cannot be read: No such file"):
        read_trace(tmp_path / "none.trace")
    (tmp_path / "text").write_text("hello\n")
    with pytest.raises(TraceError, match=r"text: the file is no trace"):
        read_trace(tmp_path / "text")
