# SPDX-License-Identifier: Apache-2.0
"""Codecs that remember pages, where regions move between workers and pages become zero."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parmig.ram.bits import bits_for, set_bits
from parmig.ram.blocks import PAGE_BYTES
from parmig.ram.codecs import registry
from parmig.ram.codecs.batch_encoder import open_encoder
from parmig.ram.codecs.codec import CodecSettings
from parmig.ram.codecs.sent_pages import SLOT_BYTES
from parmig.ram.outlets.channel import ChannelOutlet
from parmig.ram.receive import MigrationRamReceive
from parmig.ram.regions import cut
from parmig.ram.send import MigrationRamSend
from parmig.ram.trackers.bitmap import BitmapTracker
from parmig.transport.transport import Incoming
from tests.ram.recorder import BATCH_BYTES, Recorder
from tests.support import content, file_pages, index_of, mapped, pages_below, shared_area

PAGES = (260, 130)
WORKERS = 2


class Pair:
    """Two send workers, their receive workers, and the memory on both sides."""

    def __init__(self, compress: str, cache_pages: int, mappings: list, there: list, areas: list, log_fd: int) -> None:
        here, away = areas
        self.mappings, self.there = mappings, there
        self.regions = cut([mapping.block for mapping in mappings], 64)
        self._log = mmap.mmap(log_fd, 0)
        self.trackers = [BitmapTracker(log_fd, [mapping.block for mapping in mappings]) for _ in range(WORKERS)]
        names = registry.codecs_of(compress, registry.names())
        cache = CodecSettings(delta_cache_bytes=cache_pages * SLOT_BYTES)
        self.channels, self.senders, self.receivers = [], [], []
        for worker, tracker in enumerate(self.trackers):
            channel = Recorder([mapping.block.pages for mapping in mappings])
            encoder = open_encoder(compress, names, cache, here.codec_counters(worker))
            self.channels.append(channel)
            self.senders.append(
                MigrationRamSend(
                    worker=worker,
                    regions=self.regions,
                    blocks=mappings,
                    tracker=tracker,
                    outlet=ChannelOutlet(channel, encoder, mappings, tracker, here),  # type: ignore[arg-type]
                    shared=here,
                    batch_bytes=BATCH_BYTES,
                )
            )
            self.receivers.append(
                MigrationRamReceive(
                    worker=worker,
                    blocks=there,
                    codecs=[registry.codec(name) for name in registry.names()],
                    shared=away,
                    batch_bytes=BATCH_BYTES,
                )
            )

    def write(self, block: int, pages: set[int], tag: int, *, how: str) -> None:
        index = index_of(pages)
        memory = self.mappings[block].pages
        if how == "new":
            memory[index] = content(tag, len(pages))
        elif how == "zero":
            memory[index] = 0
        else:
            memory[index, tag % PAGE_BYTES] ^= 1
        at = sum(bits_for(mapping.block.pages) for mapping in self.mappings[:block])
        bits = np.frombuffer(self._log, dtype=np.uint8)[at : at + bits_for(self.mappings[block].block.pages)]
        set_bits(bits, index)

    def round(self, number: int, owners: list[int]) -> None:
        """One round, in which region *n* is sent by worker ``owners[n]``, and all of it is placed."""
        for worker, (sender, channel, receiver) in enumerate(
            zip(self.senders, self.channels, self.receivers, strict=True)
        ):
            numbers = [region for region, owner in enumerate(owners) if owner == worker]
            sender.migrate_ram_iterate(number, numbers, first_pass=number == 1)
            sender.fence(number)
            messages, channel.sent_before = channel.messages[channel.sent_before :], len(channel.messages)
            for message in messages:
                receiver.migrate_ram_receive(Incoming([memoryview(frame) for frame in message]))
        for here, there in zip(self.mappings, self.there, strict=True):
            assert np.array_equal(file_pages(here), file_pages(there))

    def close(self) -> None:
        del self.senders, self.receivers
        for tracker in self.trackers:
            tracker.close()
        self._log.close()


@contextmanager
def pair(compress: str, cache_pages: int) -> Iterator[Pair]:
    fd = os.memfd_create("log", os.MFD_CLOEXEC)
    os.ftruncate(fd, sum(map(bits_for, PAGES)))
    with (
        mapped(*PAGES) as mappings,
        mapped(*PAGES) as there,
        shared_area(mappings, cut([mapping.block for mapping in mappings], 64), WORKERS) as here,
        shared_area(there, [], WORKERS) as away,
    ):
        both = Pair(compress, cache_pages, mappings, there, [here, away], fd)
        try:
            yield both
        finally:
            both.close()
            os.close(fd)


REGIONS = sum(-(-pages // 64) for pages in PAGES)

writes = st.tuples(
    st.integers(0, 1),
    pages_below(min(PAGES)),
    st.integers(0, 1 << 20),
    st.sampled_from(["new", "zero", "byte", "byte"]),
)
rounds = st.lists(
    st.tuples(st.lists(writes, max_size=4), st.lists(st.integers(0, WORKERS - 1), min_size=REGIONS, max_size=REGIONS)),
    min_size=2,
    max_size=7,
)


@pytest.mark.parametrize("compress", ["delta", "auto"])
@settings(deadline=None, max_examples=60)
@given(drawn=rounds, cache_pages=st.sampled_from([1, 30, 500]))
def test_memory_arrives_whoever_sends_it(compress: str, drawn: list, cache_pages: int) -> None:
    with pair(compress, cache_pages) as both:
        for number, (written, owners) in enumerate(drawn, 1):
            for block, pages, tag, how in written:
                both.write(block, pages, tag, how=how)
            both.round(number, owners)


@pytest.mark.parametrize("compress", ["delta", "auto"])
def test_a_changed_byte_costs_a_few_bytes_if_the_same_worker_sends_it_again(compress: str) -> None:
    with pair(compress, 500) as both:
        pages = set(range(130))
        both.write(0, pages, 1, how="new")
        both.round(1, [0] * REGIONS)
        sent = []
        for number, owner in enumerate((0, 0, 1, 0, 0), 2):
            both.write(0, pages, number, how="byte")
            before = sum(channel.payload_bytes for channel in both.channels)
            both.round(number, [owner] * REGIONS)
            sent.append(sum(channel.payload_bytes for channel in both.channels) - before)
        # Worker 0 knows the pages from round 2 on at the latest; round 4 was worker 1's, so round 5 begins anew.
        assert sent[1] < 130 * 40
        assert min(sent[2:4]) > 65 * PAGE_BYTES
        assert sent[4] < 130 * 40
