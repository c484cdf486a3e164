# SPDX-License-Identifier: Apache-2.0
"""Whatever was dirty when: the other memory of this host ends as this one."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from parmig.ram import page_digests
from parmig.ram.bits import bits_for, mask_of_bits, set_bits
from parmig.ram.blocks import PAGE_BYTES
from parmig.ram.credit import credit_bytes
from parmig.ram.flow import SendChannel
from parmig.ram.outlets.direct import MAX_LONG_RUNS, DirectOutlet
from parmig.ram.page_digests import MemoryDigests, PlacedDigests
from parmig.ram.reach.mapped import BlockMapping
from parmig.ram.regions import cut
from parmig.ram.send import MigrationRamSend
from parmig.ram.shared import SharedArea
from parmig.ram.trackers.bitmap import BitmapTracker
from parmig.ram.trackers.digest import DigestTracker, digest_area_bytes
from parmig.ram.trackers.tracker import DirtyTracker
from parmig.transport.transport import parse_uri
from parmig.transport.unix import UnixTransport
from parmig.units import KIB, MIB
from tests.support import (
    PATIENCE_NS,
    allocated_pages,
    content,
    file_pages,
    index_of,
    mapped,
    shared_area,
    while_pumping,
)

PAGES = (300, 130)
BATCH_BYTES = 256 * KIB


class StoppedError(Exception):
    """What the worker's inbox raises when it is asked to stop."""


class Pair:
    """Two blocks here, two there, a dirty log, and one worker's loop without the worker."""

    def __init__(
        self,
        channel: SendChannel,
        here: list[BlockMapping],
        there: list[BlockMapping],
        shared: SharedArea,
        area: SharedArea,
        *,
        digest: bool,
        stack: ExitStack,
    ) -> None:
        self.here, self.there, self.area, self.shared = here, there, area, shared
        blocks = [one.block for one in here]
        self._log_fd = os.memfd_create("log", os.MFD_CLOEXEC)
        stack.callback(os.close, self._log_fd)
        size_bytes = digest_area_bytes(blocks) if digest else sum(bits_for(block.pages) for block in blocks)
        os.ftruncate(self._log_fd, size_bytes)
        self._log = None if digest else mmap.mmap(self._log_fd, 0)
        tracker: DirtyTracker = DigestTracker(self._log_fd, here) if digest else BitmapTracker(self._log_fd, blocks)
        self.regions = cut(blocks, 64)
        self.stopped = False
        self.ram = MigrationRamSend(
            worker=0,
            regions=self.regions,
            blocks=here,
            tracker=tracker,
            outlet=DirectOutlet(0, channel, here, there, tracker, shared, area, attend=self._attend),
            shared=shared,
            batch_bytes=BATCH_BYTES,
        )

    def close(self) -> None:
        """Drop all views of the memories."""
        del self.ram
        if self._log is not None:
            self._log.close()

    def _attend(self) -> None:
        if self.stopped:
            raise StoppedError

    def write(self, block: int, pages: set[int], tag: int) -> None:
        """The guest writes these pages: zeros if *tag* is 0."""
        index = index_of(pages)
        self.here[block].pages[index] = content(tag, len(pages)) if tag else 0
        if self._log is not None:
            at = sum(bits_for(one.block.pages) for one in self.here[:block])
            bits = np.frombuffer(self._log, dtype=np.uint8)[at : at + bits_for(self.here[block].block.pages)]
            set_bits(bits, index)

    def round(self, number: int) -> None:
        self.ram.migrate_ram_iterate(number, range(len(self.regions)), first_pass=number == 1)
        self.ram.fence(number)

    def same(self) -> bool:
        return all(np.array_equal(file_pages(a), file_pages(b)) for a, b in zip(self.here, self.there, strict=True))


@pytest.fixture(params=[False, True], ids=["bitmap", "digest"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    with ExitStack() as stack:
        uri = parse_uri(f"unix://{tmp_path}/socket")
        listener, connector = (UnixTransport("channel", max_message_bytes=MIB) for _ in range(2))
        stack.callback(listener.shutdown)
        stack.callback(connector.shutdown)
        listener.bind(uri)
        while_pumping(lambda: connector.connect(uri, timeout_ns=PATIENCE_NS), lambda: listener.read(5))
        wake_fd = os.eventfd(0)
        stack.callback(os.close, wake_fd)
        channel = SendChannel(
            connector,
            "channel",
            batch_bytes=BATCH_BYTES,
            credit_bytes=credit_bytes(BATCH_BYTES),
            interrupt_fd=wake_fd,
            interrupt=lambda: None,
        )
        here, there = (stack.enter_context(mapped(*PAGES)) for _ in range(2))
        regions = cut([one.block for one in here], 64)
        shared = stack.enter_context(shared_area(here, regions))
        area = SharedArea(-1, workers=1, blocks=[one.block for one in there], regions=len(regions), page_digests=True)
        stack.callback(area.close)
        both = Pair(channel, here, there, shared, area, digest=request.param, stack=stack)
        yield both
        both.close()


def test_every_round_ends_with_the_same_memory(pair: Pair) -> None:
    there = pair.there[0]
    there.pages[200:300] = 7  # older data, also where the source has none
    pair.write(0, set(range(150)) | {160, 162}, tag=1)
    pair.write(1, set(range(100, 130)), tag=2)
    pair.round(1)
    assert pair.same()
    scattered = set(range(1, 300, 2))
    assert len(scattered) > MAX_LONG_RUNS
    for number, pages in ((2, scattered), (3, {5, 6, 7, 299}), (4, set())):
        if pages:
            pair.write(0, pages, tag=number + 1)
        pair.round(number)
        assert pair.same()
    pair.write(0, {0, 1, 2}, tag=0)
    pair.round(5)
    assert pair.same()


def test_what_does_not_exist_is_not_made(pair: Pair) -> None:
    pair.write(0, {3, 4, 90}, tag=1)
    pair.round(1)
    assert allocated_pages(pair.there[0]) == 3
    assert set(np.flatnonzero(mask_of_bits(pair.area.bits[0], 0, PAGES[0]))) == {3, 4, 90}


def test_the_destination_knows_what_was_placed(pair: Pair) -> None:
    """Its counters, and the digests that its own worker answers with."""
    pair.write(0, set(range(150)), tag=1)
    pair.write(1, {9}, tag=2)
    pair.round(1)
    pair.write(1, {9, 10}, tag=3)
    pair.round(2)
    counters = pair.area.counters(0)
    assert counters.sent_pages == pair.ram.counters.sent_pages
    assert counters.wire_bytes == pair.ram.counters.wire_bytes == counters.sent_pages * PAGE_BYTES
    assert pair.area.codec_figures() == pair.shared.codec_figures()
    ours = MemoryDigests(pair.here, pair.shared.bits)
    theirs = PlacedDigests(pair.area, pair.there)
    for block, pages in enumerate(PAGES):
        assert np.array_equal(ours.of_pages(block, 0, pages), theirs.of_pages(block, 0, pages))
    assert page_digests.DIGEST_BYTES == 8


def test_a_worker_that_is_stopped_places_nothing_more(pair: Pair) -> None:
    pair.write(0, set(range(300)), tag=1)
    pair.stopped = True
    with pytest.raises(StoppedError):
        pair.round(1)
    assert not allocated_pages(pair.there[0])
