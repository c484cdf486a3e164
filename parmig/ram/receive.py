# SPDX-License-Identifier: Apache-2.0
"""The destination end of the page path: batches in, pages placed. One instance a worker."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

import numpy as np

from parmig import linux
from parmig.errors import MemoryFullError, ProtocolError
from parmig.ram import flow
from parmig.ram.bits import Index, Runs, index_of_runs, set_bits, test_bits
from parmig.ram.blocks import PAGE_BYTES, BlockMapping
from parmig.ram.codecs.base import PageCodec
from parmig.ram.extents import allocated_mask, has_data
from parmig.ram.packets import BATCH, BatchHeader, decode_batch
from parmig.ram.regions import SPAN_PAGES
from parmig.ram.shared import SharedArea, WorkerCounters
from parmig.transport.base import Buffer
from parmig.units import MIB

WRITE_RUN_PAGES = 8
"""Runs from here on are placed with pwrite(2), shorter ones all at once through the mapping. Into
fresh tmpfs memory pwrite reaches 2.3 GiB/s (the kernel allocates as it copies), a store 1.1 GiB/s
(a page fault each); on pages that exist both are copies, and the system call costs about 2 pages."""

SPACE_MARGIN_BYTES = 64 * MIB
"""A store into a full tmpfs is a SIGBUS, a write a plain error: with less free space than this,
everything is written."""


class MigrationRamReceive:
    """Checks and places batches.

    Args:
        worker: its number, for the counters.
        blocks: mappings of the blocks, by number.
        codec: the negotiated codec.
        shared: what the workers of this side share; its bits say which pages exist.
        batch_bytes: the agreed largest batch.
    """

    def __init__(
        self, *, worker: int, blocks: Sequence[BlockMapping], codec: PageCodec, shared: SharedArea, batch_bytes: int
    ) -> None:
        self._worker = worker
        self._blocks = blocks
        self._blocks_pages = [mapping.block.pages for mapping in blocks]
        self._codec = codec
        self._decoder = codec.decoder()
        self._shared = shared
        self._batch_bytes = batch_bytes
        self._writable = [not linux.is_hugetlbfs(mapping.fd) for mapping in blocks]
        self._sequence = 0
        self.counters = WorkerCounters()

    def migrate_ram_receive(self, message: Sequence[memoryview]) -> bytes:
        """Handle one message of the data channel and return the answer to send back.

        Raises:
            ProtocolError: the message is not what the protocol allows next.
            MemoryFullError: no space left in a memory file.
        """
        kind = message[0][0] if len(message[0]) else 0
        if kind == BATCH:
            self._place(message)
            return flow.ack(self._sequence)
        if kind == flow.FENCE and len(message) == 1:
            return flow.answer_fence(message[0], self._sequence)
        raise ProtocolError(f"unexpected message of kind {kind} with {len(message)} frames on a data channel")

    def _place(self, message: Sequence[memoryview]) -> None:
        header = decode_batch(message[0], blocks_pages=self._blocks_pages, max_raw_bytes=self._batch_bytes)
        if header.sequence != self._sequence + 1:
            raise ProtocolError(f"batch {header.sequence} after batch {self._sequence}: one was lost or repeated")
        payload = message[1:]
        payload_bytes = sum(map(len, payload))
        if payload_bytes != header.payload_bytes:
            raise ProtocolError(
                f"batch {header.sequence} has {payload_bytes} bytes of pages, announced were {header.payload_bytes}"
            )
        if len(header.zero_runs):
            self._place_zero(header)
        if len(header.data_runs):
            self._place_data(header, payload)
        self._sequence = header.sequence
        self.counters.sent_pages += header.raw_bytes // PAGE_BYTES
        self.counters.wire_bytes += payload_bytes + len(message[0])
        self._shared.publish(self._worker, self.counters)

    def _place_zero(self, header: BatchHeader) -> None:
        """Make pages zero, without allocating those that do not exist."""
        index = index_of_runs(header.zero_runs)
        existing = index[test_bits(self._shared.bits[header.block], index)]
        self._blocks[header.block].pages[existing] = 0
        self.counters.zero_pages += len(index)

    def _place_data(self, header: BatchHeader, payload: Sequence[memoryview]) -> None:
        index = index_of_runs(header.data_runs)
        if header.codec:
            payload = [self._decode(header, index, payload)]
        runs = header.data_runs
        if len(payload) == len(runs):  # a frame a run, as it is sent from contiguous memory
            lengths = (runs[:, 1] - runs[:, 0]) * PAGE_BYTES
            if [len(frame) for frame in payload] == lengths.tolist():
                for (first, _), frame in zip(runs.tolist(), payload, strict=True):
                    self._place_run(header.block, first, frame)
                _note_placed(self._shared, header.block, index)
                return
        if len(payload) != 1:
            raise ProtocolError(f"batch {header.sequence}: {len(payload)} frames for {len(runs)} runs of pages")
        self._place_mixed(header.block, runs, payload[0])
        _note_placed(self._shared, header.block, index)

    def _decode(self, header: BatchHeader, index: Index, payload: Sequence[memoryview]) -> memoryview:
        if self._decoder is None or header.codec != self._codec.number or len(payload) != 1:
            raise ProtocolError(
                f"batch {header.sequence} is encoded by codec {header.codec}, agreed is {self._codec.name}"
            )
        return self._decoder.decode(header.block, index, payload[0], header.raw_bytes)

    def _place_mixed(self, block: int, runs: Runs, raw: memoryview) -> None:
        """Place pages that lie one after the other in *raw*: long runs one by one, short ones together."""
        lengths = runs[:, 1] - runs[:, 0]
        starts = np.cumsum(lengths) - lengths
        long = lengths >= (WRITE_RUN_PAGES if self._has_room(block, len(raw)) else 1)
        for (first, end), at in zip(runs[long].tolist(), starts[long].tolist(), strict=True):
            self._place_run(block, first, raw[at * PAGE_BYTES : (at + end - first) * PAGE_BYTES])
        short = ~long
        if short.any():
            pages = np.frombuffer(raw, dtype=np.uint8).reshape(-1, PAGE_BYTES)
            source = index_of_runs(np.stack((starts[short], starts[short] + lengths[short]), axis=1))
            self._blocks[block].pages[index_of_runs(runs[short])] = pages[source]

    def _has_room(self, block: int, size_bytes: int) -> bool:
        """Whether storing through the mapping is safe: hugetlbfs reserved it, others must have space."""
        if not self._writable[block]:
            return True
        found = os.fstatvfs(self._blocks[block].fd)
        return not found.f_blocks or found.f_bavail * found.f_frsize > size_bytes + SPACE_MARGIN_BYTES

    def _place_run(self, block: int, first_page: int, data: Buffer) -> None:
        mapping = self._blocks[block]
        if not self._writable[block]:
            mapping.buffer[first_page * PAGE_BYTES : first_page * PAGE_BYTES + len(data)] = data
            return
        at = mapping.file_offset_bytes + first_page * PAGE_BYTES
        view = memoryview(data)
        while view:
            try:
                written = os.pwrite(mapping.fd, view, at)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise MemoryFullError(
                        f"no space left in the memory file of block {mapping.block.name!r} at byte {at}: "
                        f"the guest needs up to {mapping.block.size_bytes} bytes there; make room on its file system"
                    ) from error
                raise
            view, at = view[written:], at + written


def _note_placed(shared: SharedArea, block: int, index: Index) -> None:
    """Note that pages exist; a batch may carry them in any order."""
    ascending = len(index) < 2 or bool((np.diff(index) > 0).all())
    set_bits(shared.bits[block], index if ascending else np.unique(index))


def note_existing(blocks: Sequence[BlockMapping], shared: SharedArea) -> None:
    """Enter into *shared* which pages the destination's memory files already have. Once, before workers start."""
    for number, mapping in enumerate(blocks):
        for first in range(0, mapping.block.pages, SPAN_PAGES):
            pages = min(SPAN_PAGES, mapping.block.pages - first)
            if has_data(mapping, first, pages):
                set_bits(shared.bits[number], np.flatnonzero(allocated_mask(mapping, first, pages)) + first)
