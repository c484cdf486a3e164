# SPDX-License-Identifier: Apache-2.0
"""What tests of the page path share: messages, blocks in memory files, and strategies for sets of pages."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from hypothesis import strategies as st

from parmig.ram.bits import Index, Runs
from parmig.ram.blocks import PAGE_BYTES, BlockMemory, RamBlock
from parmig.ram.reach.mapped import BlockMapping
from parmig.ram.regions import Region
from parmig.ram.shared import SharedArea
from parmig.transport.security.curve_keys import CurveKeys, caller_keys, listener_keys
from parmig.transport.transport import Buffer, Endpoint, Incoming, MigrationTransport
from parmig.units import NS_PER_S

PATIENCE_S = 60.0
"""How long a test waits for a condition that must come true. No test passes by its passing."""

PATIENCE_NS = int(PATIENCE_S * NS_PER_S)
"""The same, for connections that must come about."""


def wait_until(condition: Callable[[], bool], what: str, limit_s: float = PATIENCE_S) -> None:
    until = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < until, f"waited {limit_s} s for {what}"
        time.sleep(0.001)


def next_message(transport: MigrationTransport) -> list[bytes]:
    """The frames of the next message, which must come."""
    found: list[list[bytes]] = []

    def read() -> bool:
        message = transport.read(100)
        if message is not None:
            found.append([bytes(frame) for frame in message])
        return bool(found)

    wait_until(read, "a message")
    return found[0]


def while_pumping(work: Callable[[], object], pump: Callable[[], object]) -> None:
    """Run *work* in a thread, *pump* here until it is done; raise what *work* raised."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    while thread.is_alive():
        pump()
    thread.join()
    if errors:
        raise errors[0]


def curve_keys() -> tuple[CurveKeys, CurveKeys]:
    """Keys of a listening and of a connecting end."""
    session = os.urandom(16)
    return listener_keys(session, 0), caller_keys(session, 0)


class Sink(bytearray):
    """A sink for device state that keeps everything."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append *data*."""
        self.extend(data)


class FakeTransport(MigrationTransport):
    """A connected channel without anything behind it; tests override what matters to them."""

    def __init__(self) -> None:
        super().__init__("fake", max_message_bytes=1 << 20)

    def bind(self, endpoint: Endpoint) -> Endpoint:
        return endpoint

    def connect(self, endpoint: Endpoint, *, local: str = "", timeout_ns: int) -> None: ...

    def write(self, frames: Sequence[Buffer], *, kept: bool = False) -> None: ...

    def receive(self, timeout_ms: int = 0) -> Incoming | None:
        return None

    def accept(self) -> None: ...

    def pollables(self) -> list[int]:
        return []

    def shutdown(self, linger_ms: int = 0) -> None: ...


@contextmanager
def mapped(*pages: int, offset_pages: int = 0) -> Iterator[list[BlockMapping]]:
    """Blocks of so many pages, each in an empty memory file of its own."""
    mappings = []
    for number, count in enumerate(pages):
        fd = os.memfd_create(f"test-{number}", os.MFD_CLOEXEC)
        os.ftruncate(fd, (offset_pages + count) * PAGE_BYTES)
        block = RamBlock(f"ram{number}", count * PAGE_BYTES)
        mappings.append(BlockMapping(BlockMemory(block, fd, offset_pages * PAGE_BYTES)))
    try:
        yield mappings
    finally:
        for mapping in mappings:
            mapping.close()
            os.close(mapping.fd)


@contextmanager
def shared_area(mappings: Sequence[BlockMapping], regions: Sequence[Region], workers: int = 1) -> Iterator[SharedArea]:
    area = SharedArea(-1, workers=workers, blocks=[mapping.block for mapping in mappings], regions=len(regions))
    try:
        yield area
    finally:
        area.close()


def allocated_pages(mapping: BlockMapping) -> int:
    """How many pages the memory file really has."""
    return os.fstat(mapping.fd).st_blocks * 512 // PAGE_BYTES


def content(tag: int, pages: int = 1) -> np.ndarray:
    """Pages that no other tag has, none of them zero, shape (pages, 4096)."""
    return np.random.default_rng(tag).integers(1, 256, (pages, PAGE_BYTES), dtype=np.uint8)


def file_pages(mapping: BlockMapping) -> np.ndarray:
    """A copy of the block, read without allocating anything."""
    data = os.pread(mapping.fd, mapping.block.size_bytes, mapping.file_offset_bytes)
    return np.frombuffer(data, dtype=np.uint8).reshape(-1, PAGE_BYTES)


def index_of(pages: set[int] | Sequence[int]) -> Index:
    return np.array(sorted(pages), dtype=np.int64)


def runs_of(pages: set[int]) -> Runs:
    """The runs of *pages*, by a plain loop."""
    runs: list[list[int]] = []
    for page in sorted(pages):
        if runs and runs[-1][1] == page:
            runs[-1][1] += 1
        else:
            runs.append([page, page + 1])
    return np.array(runs, dtype=np.int64).reshape(-1, 2)


def pages_below(limit: int) -> st.SearchStrategy[set[int]]:
    """Sets of pages, scattered ones and runs mixed."""
    run = st.tuples(st.integers(0, limit - 1), st.integers(1, max(1, limit // 3)))
    scattered = st.sets(st.integers(0, limit - 1))
    return st.tuples(scattered, st.lists(run, max_size=3)).map(
        lambda drawn: drawn[0] | {page for first, count in drawn[1] for page in range(first, min(limit, first + count))}
    )


@st.composite
def sized_pages(draw: st.DrawFn, most: int = 300) -> tuple[int, set[int]]:
    """A number of pages, often no multiple of 8, and a set of pages below it."""
    limit = draw(st.integers(1, most))
    return limit, draw(pages_below(limit))
