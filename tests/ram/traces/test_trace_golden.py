# SPDX-License-Identifier: Apache-2.0
"""Traces that earlier releases recorded are read as they were; `tools/make_golden_trace.py` made the file."""

from __future__ import annotations

from parmig.ram.traces import trace_format
from parmig.ram.traces.trace_file import read_trace
from tools.make_golden_trace import FILE, trace


def test_a_trace_of_an_earlier_release_is_read() -> None:
    expected, found = trace(), read_trace(FILE)
    assert [pages.tolist() for pages in found.written] == [pages.tolist() for pages in expected.written]
    for field in ("interval_ns", "page_size_bytes", "memory_pages", "scanned_ns", "source"):
        assert getattr(found, field) == getattr(expected, field)


def test_the_header_is_a_line_of_text_after_fixed_numbers() -> None:
    content = FILE.read_bytes()
    size_bytes = trace_format.decode_prefix(content[: trace_format.PREFIX.size])
    assert content[: trace_format.PREFIX.size + size_bytes].endswith(b"}\n")
    assert content[-trace_format.DIGEST_BYTES - trace_format.HEAD.size] == trace_format.END
