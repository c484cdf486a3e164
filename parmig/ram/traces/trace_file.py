# SPDX-License-Identifier: Apache-2.0
"""Writes and reads trace files."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import xxhash

from parmig.errors import TraceError
from parmig.ram.bits import Index
from parmig.ram.traces import trace_format as f
from parmig.ram.traces.trace import Trace

_DIGEST = struct.Struct("<Q")


class TraceWriter:
    """Writes a trace to a file, interval by interval, so that a long recording needs little memory.

    Args:
        file: where to write, from its beginning; not owned.
        header: of the trace.

    Attributes:
        pages: of all intervals so far.
        intervals: how many were written so far.

    Raises:
        TraceError: the header has a value that is out of its range.
        OSError: the file cannot be written. All methods raise this.
    """

    def __init__(self, file: BinaryIO, header: f.TraceHeader) -> None:
        self._file = file
        self._digest = xxhash.xxh3_64()
        self._at_ns = 0
        self.pages = 0
        self.intervals = 0
        self._put(f.encode_header(header))

    def add(self, pages: Index, at_ns: int) -> None:
        """Add an interval.

        Args:
            pages: that were written in it: ascending numbers, each once.
            at_ns: when its scan ended, since the recording began.

        Raises:
            TraceError: the trace would have more pages or intervals than a reader takes.
        """
        if self.pages + len(pages) > f.WRITTEN_PAGES_MAX or self.intervals == f.INTERVALS_MAX:
            raise TraceError(
                f"the trace has {self.pages + len(pages)} pages in {self.intervals + 1} intervals, expected at most "
                f"{f.WRITTEN_PAGES_MAX} in {f.INTERVALS_MAX}; record for a shorter --duration, or with a longer "
                "--interval"
            )
        self._put(f.encode_interval(pages, at_ns))
        self.pages += len(pages)
        self.intervals += 1
        self._at_ns = at_ns

    def end(self) -> None:
        """Write the end, without which nobody reads the file."""
        self._put(f.encode_end(self.pages, self.intervals, self._at_ns))
        self._file.write(_DIGEST.pack(self._digest.intdigest()))
        self._file.flush()

    def _put(self, data: bytes) -> None:
        self._digest.update(data)
        self._file.write(data)


def read_trace(path: str | Path) -> Trace:
    """Read the trace in the file at *path*.

    Raises:
        TraceError: the file cannot be read, is no trace, or is damaged; the message names it.
    """
    with _opened(path) as file:
        return load_trace(file)


def read_header(path: str | Path) -> f.TraceHeader:
    """Read only the header of the trace in the file at *path*.

    Raises:
        TraceError: the file cannot be read, or does not begin like a trace; the message names it.
    """
    with _opened(path) as file:
        return _Reader(file, 0).header()


@contextmanager
def _opened(path: str | Path) -> Iterator[BinaryIO]:
    """The file at *path*; errors in the context get its name."""
    try:
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        raise TraceError(f"trace {path} cannot be read: {error.strerror}") from error
    except TraceError as error:
        raise TraceError(f"{path}: {error}") from error


def write_trace(file: BinaryIO, trace: Trace) -> None:
    """Write *trace* to *file*, from its beginning.

    Raises:
        TraceError: the trace has a value that is out of its range.
        OSError: the file cannot be written.
    """
    header = f.TraceHeader(
        interval_ns=trace.interval_ns,
        page_size_bytes=trace.page_size_bytes,
        memory_pages=trace.memory_pages,
        source=trace.source,
    )
    instants = trace.scanned_ns or [trace.interval_ns * (number + 1) for number in range(len(trace.written))]
    writer = TraceWriter(file, header)
    for pages, at_ns in zip(trace.written, instants, strict=True):
        writer.add(pages, at_ns)
    writer.end()


def load_trace(file: BinaryIO, pages_max: int = f.WRITTEN_PAGES_MAX) -> Trace:
    """Read a trace from the beginning of *file*, which is seekable and ends with it.

    Args:
        pages_max: the most pages to hold in memory, of all intervals together.

    Raises:
        TraceError: it is no trace, or is damaged.
        OSError: the file cannot be read.
    """
    return _Reader(file, pages_max).read()


class _Reader:
    """Reads one file, and digests what it has read."""

    def __init__(self, file: BinaryIO, pages_max: int) -> None:
        self._file = file
        self._pages_max = pages_max
        self._left_bytes = file.seek(0, os.SEEK_END)
        self._digest = xxhash.xxh3_64()
        file.seek(0)

    def header(self) -> f.TraceHeader:
        prefix = self._take(min(f.PREFIX.size, self._left_bytes))
        return f.decode_header(self._take(f.decode_prefix(prefix)))

    def read(self) -> Trace:
        header = self.header()
        written: list[Index] = []
        scanned_ns: list[int] = []
        pages = 0
        while (head := f.decode_head(self._take(f.HEAD.size), header.memory_pages)).kind == f.INTERVAL:
            pages += head.pages
            if pages > self._pages_max or len(written) == f.INTERVALS_MAX:
                raise TraceError(
                    f"the trace has {pages} pages or more in {len(written) + 1} intervals, expected at most "
                    f"{self._pages_max} in {f.INTERVALS_MAX}; record a shorter one"
                )
            written.append(f.decode_interval(head, self._take(head.packed_bytes), header.memory_pages))
            scanned_ns.append(head.at_ns)
        digest = self._check_end(head, pages, len(written))
        return Trace(
            interval_ns=header.interval_ns,
            page_size_bytes=header.page_size_bytes,
            memory_pages=header.memory_pages,
            written=written,
            scanned_ns=scanned_ns,
            source=header.source,
            digest=digest,
        )

    def _check_end(self, head: f.Head, pages: int, intervals: int) -> int:
        """The digest of the file, which is right."""
        expected = self._digest.intdigest()
        (digest,) = _DIGEST.unpack(self._take(_DIGEST.size))
        if digest != expected or (head.pages, head.runs) != (pages, intervals):
            raise f.damaged("its digest is not that of its bytes")
        if self._left_bytes:
            raise f.damaged(f"{self._left_bytes} bytes follow its end")
        return expected

    def _take(self, size_bytes: int) -> bytes:
        if size_bytes > self._left_bytes:  # before memory of that size is allocated
            raise f.truncated()
        data = self._file.read(size_bytes)
        if len(data) != size_bytes:
            raise f.truncated()
        self._left_bytes -= size_bytes
        self._digest.update(data)
        return data
