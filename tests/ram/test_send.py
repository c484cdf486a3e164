# SPDX-License-Identifier: Apache-2.0
"""What is dirty goes out once, with its content, in batches that the destination accepts."""

from __future__ import annotations

import mmap
import os
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parmig.config import SendConfig
from parmig.linux import files
from parmig.ram.bits import Index, bits_for, index_of_runs, runs_of_index, set_bits
from parmig.ram.blocks import EXTENT_PAGES, PAGE_BYTES
from parmig.ram.codecs import registry
from parmig.ram.codecs.batch_encoder import open_encoder
from parmig.ram.codecs.codec import CodecSettings, PageCodec, PageDecoder, PageEncoder, ReadPages
from parmig.ram.codecs.registry import codec
from parmig.ram.dirty_scanner import DirtyRegion
from parmig.ram.outlets.channel import DIRECT_RUNS, ChannelOutlet
from parmig.ram.packets import MAX_RUNS
from parmig.ram.reach.mapped import BlockMapping
from parmig.ram.receive import MigrationRamReceive
from parmig.ram.regions import Region, cut
from parmig.ram.send import MigrationRamSend, pages_of_batch
from parmig.ram.shared import SharedArea
from parmig.ram.trackers.bitmap import BitmapTracker
from parmig.transport.transport import Incoming
from parmig.units import NS_PER_S
from tests.ram.recorder import BATCH_BYTES, BATCH_PAGES, Recorder
from tests.support import content, file_pages, index_of, mapped, pages_below, shared_area

PAGES = (300, 130)


class Source:
    def __init__(
        self,
        mappings: list[BlockMapping],
        shared: SharedArea,
        log_fd: int,
        compress: str,
        waited_ns: int = 0,
        long_bytes: int = 0,
    ) -> None:
        self.mappings = mappings
        self.shared = shared
        self.regions = cut([one.block for one in mappings], 64)
        self.channel = Recorder([one.block.pages for one in mappings], long_bytes)
        self.channel.waiting_ns = waited_ns
        self._log = mmap.mmap(log_fd, 0)
        self.tracker = BitmapTracker(log_fd, [one.block for one in mappings])
        names = registry.codecs_of(compress, registry.names())
        encoder = open_encoder(compress, names, CodecSettings(), shared.codec_counters(0))
        outlet = ChannelOutlet(self.channel, encoder, mappings, self.tracker, shared, long_bytes=long_bytes)  # type: ignore[arg-type]
        self.ram = MigrationRamSend(
            worker=0,
            regions=self.regions,
            blocks=mappings,
            tracker=self.tracker,
            outlet=outlet,
            shared=shared,
            batch_bytes=BATCH_BYTES,
        )

    def mark(self, block: int, pages: set[int]) -> None:
        at = sum(bits_for(one.block.pages) for one in self.mappings[:block])
        bits = np.frombuffer(self._log, dtype=np.uint8)[at : at + bits_for(self.mappings[block].block.pages)]
        set_bits(bits, index_of(pages))

    def round(self, number: int) -> None:
        self.ram.migrate_ram_iterate(number, range(len(self.regions)), first_pass=number == 1)
        self.ram.fence(number)

    def close(self) -> None:
        del self.ram
        self.tracker.close()
        self._log.close()


@contextmanager
def sending(*pages: int, compress: str = "none", waited_ns: int = 0, long_bytes: int = 0) -> Iterator[Source]:
    fd = os.memfd_create("log", os.MFD_CLOEXEC)
    os.ftruncate(fd, sum(map(bits_for, pages)))
    with mapped(*pages) as mappings, shared_area(mappings, cut([one.block for one in mappings], 64)) as shared:
        source = Source(mappings, shared, fd, compress, waited_ns, long_bytes)
        try:
            yield source
        finally:
            source.close()
            os.close(fd)


def write(source: Source, block: int, pages: set[int], tag: int) -> None:
    source.mappings[block].pages[index_of(pages)] = content(tag, len(pages))
    source.mark(block, pages)


def write_zero(source: Source, block: int, pages: set[int]) -> None:
    source.mappings[block].pages[index_of(pages)] = 0
    source.mark(block, pages)


def arrived(source: Source, *, compress: str, long_batches: bool = False) -> list[np.ndarray]:
    """What a destination makes of everything that was sent."""
    with mapped(*(one.block.pages for one in source.mappings)) as mappings, shared_area(mappings, []) as shared:
        ram = MigrationRamReceive(
            worker=0,
            blocks=mappings,
            codecs=[codec(compress)],
            shared=shared,
            batch_bytes=BATCH_BYTES,
            long_batches=long_batches,
        )
        for message in source.channel.messages:
            ram.migrate_ram_receive(Incoming([memoryview(frame) for frame in message]))
        return [file_pages(mapping) for mapping in mappings]


block_sets = st.tuples(pages_below(PAGES[0]), pages_below(PAGES[1]))


@settings(deadline=None, max_examples=60)
@given(block_sets, block_sets, block_sets, st.sampled_from(["none", "lz4"]))
def test_every_dirty_page_is_sent_once_with_its_content(
    first: tuple[set[int], set[int]],
    second: tuple[set[int], set[int]],
    zeroed: tuple[set[int], set[int]],
    compress: str,
) -> None:
    with sending(*PAGES, compress=compress) as source:
        for block in (0, 1):
            write(source, block, first[block], 1)
        source.round(1)
        everything = {(block, page) for block in (0, 1) for page in range(PAGES[block])}
        data = {(block, page) for block in (0, 1) for page in first[block]}
        assert source.channel.pages("data") == Counter(data)
        assert source.channel.pages("zero") == Counter(everything - data)

        source.channel.headers.clear()
        for block in (0, 1):
            write(source, block, second[block], 2)
            write_zero(source, block, zeroed[block])
        source.round(2)
        still = {(block, page) for block in (0, 1) for page in second[block] - zeroed[block]}
        assert source.channel.pages("data") == Counter(still)
        # The destination hears of a zero page only where it holds something else.
        told = {(block, page) for block in (0, 1) for page in zeroed[block] & first[block]}
        assert source.channel.pages("zero") == Counter(told)
        for here, there in zip(source.mappings, arrived(source, compress=compress), strict=True):
            assert np.array_equal(file_pages(here), there)
        assert source.channel.buffers_out == 0


class ToyCodec(PageCodec, PageEncoder, PageDecoder):
    """A codec that parmig does not have; it keeps nothing from batch to batch."""

    name = "toy"
    number = 77

    def encoder(self, settings: CodecSettings) -> PageEncoder:
        return self

    def decoder(self, read: ReadPages) -> PageDecoder:
        return self

    def encode(self, block: int, index: Index, raw: memoryview) -> bytes:
        return zlib.compress(raw)

    def decode(self, block: int, index: Index, payload: memoryview, raw_bytes: int) -> memoryview:
        return memoryview(zlib.decompress(payload))


def test_a_codec_that_is_registered_carries_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_CODECS", dict(registry._CODECS))
    registry.register("toy", f"{__name__}:ToyCodec")
    SendConfig(compress="toy").check()
    with sending(*PAGES, compress="toy") as source:
        for block in (0, 1):
            source.mappings[block].pages[:64] = 7
            source.mark(block, set(range(64)))
        source.round(1)
        assert {header.codec for header in source.channel.headers if header.raw_bytes} == {ToyCodec.number}
        for here, there in zip(source.mappings, arrived(source, compress="toy"), strict=True):
            assert np.array_equal(file_pages(here), there)


@settings(deadline=None, max_examples=30)
@given(block_sets)
def test_what_was_sent_is_what_is_counted(written: tuple[set[int], set[int]]) -> None:
    with sending(*PAGES) as source:
        for block in (0, 1):
            write(source, block, written[block], 1)
        source.round(1)
        counters = source.shared.counters(0)
        assert counters.sent_pages == sum(map(len, written))
        assert (
            counters.sent_pages + counters.zero_pages + counters.skipped_pages == counters.handled_pages == sum(PAGES)
        )
        assert counters.wire_bytes == sum(len(frame) for message in source.channel.messages for frame in message)


def test_pages_that_were_given_back_are_told_once() -> None:
    with sending(*PAGES) as source:
        write(source, 0, set(range(20)), 1)
        source.round(1)
        given_back = set(range(3, 9))
        for round_, told in ((2, given_back), (3, set()), (4, set())):
            source.channel.headers.clear()
            files.punch_hole(source.mappings[0].fd, 3 * PAGE_BYTES, 6 * PAGE_BYTES)
            source.mark(0, given_back)
            source.round(round_)
            assert source.channel.pages("zero") == Counter((0, page) for page in told)
            assert source.channel.pages("data") == Counter()


def test_a_fence_follows_everything_of_its_round() -> None:
    with sending(*PAGES) as source:
        write(source, 0, set(range(100)), 1)
        source.ram.migrate_ram_iterate(1, [0, 1], first_pass=True)
        sent = sum(source.channel.pages("data").values())
        assert sent == BATCH_PAGES  # the rest waits for a full batch or the fence
        source.ram.fence(1)
        assert sum(source.channel.pages("data").values()) == 100
        assert source.channel.fences == [(1, len(source.channel.messages))]
        assert {header.round for header in source.channel.headers} == {1}
        assert [header.sequence for header in source.channel.headers] == list(range(1, len(source.channel.headers) + 1))


def data_frames(source: Source) -> list[int]:
    """Sizes of the payload frames of the only batch that has data."""
    (sent,) = [
        one for one, header in zip(source.channel.messages, source.channel.headers, strict=True) if header.raw_bytes
    ]
    return [len(frame) for frame in sent[1:]]


def test_pages_that_lie_together_go_out_from_where_they_are() -> None:
    with sending(*PAGES) as source:
        write(source, 0, set(range(40)) | set(range(50, 70)), 1)
        source.round(1)
        assert data_frames(source) == [40 * PAGE_BYTES, 20 * PAGE_BYTES]
        assert source.channel._buffers == []  # none was ever needed


def test_isolated_pages_are_gathered_into_one_frame() -> None:
    with sending(*PAGES) as source:
        write(source, 0, set(range(0, 2 * (DIRECT_RUNS + 1), 2)), 1)
        source.round(1)
        assert data_frames(source) == [(DIRECT_RUNS + 1) * PAGE_BYTES]
        assert source.channel.buffers_out == 0


def test_batches_are_full_before_the_fence() -> None:
    with sending(*PAGES) as source:
        write(source, 0, set(range(0, 300, 2)), 1)
        source.round(1)
        sizes = [header.raw_bytes for header in source.channel.headers if header.raw_bytes]
        assert sizes == [BATCH_BYTES, BATCH_BYTES, (150 - 2 * BATCH_PAGES) * PAGE_BYTES]


def test_what_does_not_shrink_goes_out_as_it_is() -> None:
    with sending(*PAGES, compress="lz4") as source:
        write(source, 0, {1, 2}, 1)
        source.mappings[1].pages[5] = 3
        source.round(1)
        assert [header.codec for header in source.channel.headers if header.raw_bytes] == [0, 1]
        assert source.channel.headers[-1].payload_bytes < PAGE_BYTES
        assert source.channel.buffers_out == 0


@pytest.mark.parametrize("step", [1, 2, 3])
def test_any_number_of_scattered_zero_pages_fits_what_the_destination_takes(step: int) -> None:
    """Nothing but holes, more of them than a batch may have runs."""
    pages = 8 * MAX_RUNS
    with sending(pages) as source:
        holes = np.arange(0, pages, step, dtype=np.int64)
        runs = runs_of_index(holes)
        span = Region(0, 0, pages)
        source.ram.migrate_ram_send(DirtyRegion(span, np.zeros(pages, dtype=np.bool_), runs, 0), first_pass=True)
        source.ram.migrate_ram_send(
            DirtyRegion(span, np.zeros(pages, dtype=np.bool_), runs_of_index(holes[:5]), 0), first_pass=True
        )
        source.ram.fence(1)
        told = np.concatenate([index_of_runs(header.zero_runs) for header in source.channel.headers])
        assert np.array_equal(np.sort(told), np.sort(np.concatenate((holes, holes[:5]))))


def test_counting_consumes_nothing() -> None:
    with sending(*PAGES) as source:
        source.mappings[0].pages[:] = 1
        source.round(1)
        source.mark(0, {1, 2, 77})
        numbers = range(len(source.regions))
        for _ in range(2):
            count = source.ram.migrate_dirty_bitmap_sync(numbers)
            assert (count.pages, count.by_region.tolist()) == (3, [1] * 5 + [0] * 3)  # they are scanned together
        source.mark(0, {200})
        count = source.ram.migrate_dirty_bitmap_sync([1, 3, 4, 6])
        assert (count.pages, count.by_region.tolist()) == (2, [1, 1, 1, 0])


def test_waiting_before_there_was_a_dirty_log_is_not_taken_from_the_busy_time() -> None:
    began_ns = time.monotonic_ns()
    with sending(64, waited_ns=NS_PER_S) as source:
        write(source, 0, {1}, 1)
        source.round(1)
        source.channel.waiting_ns += 1  # as if credit had been short
        source.round(2)
        counters = source.shared.counters(0)
        assert counters.waiting_ns == NS_PER_S + 1
        assert 0 < counters.busy_ns < time.monotonic_ns() - began_ns


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 2000), st.integers(1, 3000), st.sampled_from([256, 512, 1024]))
def test_a_batch_ends_at_a_border_of_huge_pages_if_it_does_not_become_too_short(
    first: int, pages: int, batch_pages: int
) -> None:
    pending = np.arange(first, first + pages)
    sizes = []
    while len(pending) >= batch_pages:
        size = pages_of_batch(pending, batch_pages)
        assert batch_pages // 2 <= size <= batch_pages
        end = int(pending[size - 1]) + 1
        assert end % EXTENT_PAGES == 0 or size == batch_pages
        sizes.append(size)
        pending = pending[size:]
    if batch_pages == 1024:
        assert all(size == 1024 for size in sizes[1:])  # from the second on, they lie on borders
