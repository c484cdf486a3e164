# SPDX-License-Identifier: Apache-2.0
"""The destination end of the page path: takes batches and places their pages. One instance for each worker."""

from __future__ import annotations

import mmap
import time
from collections.abc import Sequence

from parmig.errors import ProtocolError
from parmig.ram import channel_messages
from parmig.ram.bits import Index, Runs, index_of_runs, page_count, test_bits
from parmig.ram.blocks import PAGE_BYTES, Pages
from parmig.ram.codecs.codec import PageCodec
from parmig.ram.credit import long_batch_bytes
from parmig.ram.packets import BATCH, BatchHeader, decode_batch
from parmig.ram.place import PagePlacer
from parmig.ram.reach.reach import Reach
from parmig.ram.shared import SharedArea
from parmig.transport.transport import Incoming

PIECE_PAGES = 256
"""Payload for pages that do not exist yet passes through a buffer of 1 MiB, which stays in the processor's cache. With
2 pairs of processes on 2 cores, 256 KiB and 1 MiB reached the same 1.2 GiB/s (medians of 10), a bare pair 1.4."""

MAX_LONG_RUNS = 64
"""With more runs than this, the payload is taken as a whole: a read and a write for each run would cost more."""


class MigrationRamReceive:
    """Checks and places batches.

    Args:
        worker: its number, for the counters. It goes on where a worker of this number before it ended.
        blocks: the blocks, by number.
        codecs: the agreed codecs; a batch names the one that it was encoded with.
        shared: what the workers of this side share; its bits record which pages exist.
        batch_bytes: the agreed largest batch.
        long_batches: whether long batches are agreed; then messages must be such that place their payload.
    """

    def __init__(
        self,
        *,
        worker: int,
        blocks: Sequence[Reach],
        codecs: Sequence[PageCodec],
        shared: SharedArea,
        batch_bytes: int,
        long_batches: bool = False,
    ) -> None:
        self._worker = worker
        self._blocks = blocks
        self._blocks_pages = [mapping.block.pages for mapping in blocks]
        self._codecs = tuple(codecs)
        self._decoders = {codec.number: codec.decoder(self._read_placed) for codec in codecs}
        self._shared = shared
        self._batch_bytes = batch_bytes
        self._long_bytes = long_batch_bytes(batch_bytes) if long_batches else 0
        self._placer = PagePlacer(blocks, shared)
        self._piece = memoryview(mmap.mmap(-1, PIECE_PAGES * PAGE_BYTES))
        self._codec_counters = shared.codec_counters(worker)
        self._sequence = shared.placed(worker)
        self._fenced = False
        self.counters = shared.counters(worker)
        self._huge_bytes_before = self.counters.huge_bytes

    def migrate_ram_receive(self, message: Incoming) -> bytes:
        """Handle one message of the data channel and return the answer to send back.

        Raises:
            ProtocolError: the message is not what the protocol allows next.
            MemoryFullError: no memory is left for a page.
        """
        kind = message.head[0] if len(message.head) else 0
        if kind == BATCH:
            self._place(message)
            return channel_messages.ack(self._sequence)
        if kind == channel_messages.FENCE and message.frame_count == 1:
            answer = channel_messages.answer_fence(message.head, self._sequence)
            if not self._fenced:
                self._fenced = True
                self._placer.end_first_round()
            return answer
        raise ProtocolError(f"unexpected message of kind {kind} with {message.frame_count} frames on a data channel")

    def placed(self) -> int:
        """The number of the last batch that is in place."""
        return self._sequence

    def restart(self) -> None:
        """Another send worker takes the place of the one that sent until now: its batches count from 1."""
        self._sequence = 0
        self._shared.note_placed(self._worker, 0)

    def _place(self, message: Incoming) -> None:
        header = decode_batch(
            message.head,
            blocks_pages=self._blocks_pages,
            max_raw_bytes=self._batch_bytes,
            max_long_bytes=self._long_bytes,
        )
        if header.sequence != self._sequence + 1:
            raise ProtocolError(
                f"batch {header.sequence} followed batch {self._sequence}; a batch was lost or repeated"
            )
        if message.payload_bytes != header.payload_bytes:
            raise ProtocolError(
                f"batch {header.sequence} has {message.payload_bytes} bytes of pages, "
                f"expected {header.payload_bytes} as in its header"
            )
        if len(header.zero_runs):
            self._placer.place_zero(header.block, header.zero_runs)
        if len(header.data_runs):
            index = index_of_runs(header.data_runs)
            self._place_data(header, index, message)
            self._placer.note_placed(header.block, index)
            self._codec_counters.count(header.codec, header.raw_bytes, header.payload_bytes)
        # Only now is it placed: whatever comes of it before a loss is placed again.
        self._sequence = header.sequence
        self.counters.zero_pages += page_count(header.zero_runs)
        self.counters.sent_pages += header.raw_bytes // PAGE_BYTES
        self.counters.wire_bytes += message.payload_bytes + len(message.head)
        self.counters.huge_bytes = self._huge_bytes_before + sum(reach.huge_bytes for reach in self._blocks)
        self._shared.publish(self._worker, self.counters)
        self._shared.note_placed(self._worker, self._sequence)

    def _place_data(self, header: BatchHeader, index: Index, message: Incoming) -> None:
        if message.places and not header.codec:
            targets = self._placer.targets(header.block, header.data_runs, index)
            if targets:
                message.into(targets)
                return
            if len(header.data_runs) <= MAX_LONG_RUNS:
                self._place_pieces(header.block, header.data_runs, message)
                return
        payload: Sequence[memoryview] = message.frames()
        if header.codec:
            payload = [self._decode(header, index, payload)]
        runs = header.data_runs
        if len(payload) == len(runs):  # one frame for each run, as the source sends them from its memory
            lengths = (runs[:, 1] - runs[:, 0]) * PAGE_BYTES
            if [len(frame) for frame in payload] == lengths.tolist():
                for (first, _), frame in zip(runs.tolist(), payload, strict=True):
                    self._placer.place_run(header.block, first, frame)
                return
        if len(payload) != 1:
            raise ProtocolError(
                f"batch {header.sequence} has {len(payload)} frames, expected one for each of {len(runs)} runs"
            )
        self._placer.place(header.block, runs, payload[0])

    def _place_pieces(self, block: int, runs: Runs, message: Incoming) -> None:
        """Take the payload by way of a small buffer that stays in the cache of the processor."""
        for first, end in runs.tolist():
            for page in range(first, end, PIECE_PAGES):
                piece = self._piece[: min(PIECE_PAGES, end - page) * PAGE_BYTES]
                message.into([piece])
                self._placer.place_run(block, page, piece)

    def _decode(self, header: BatchHeader, index: Index, payload: Sequence[memoryview]) -> memoryview:
        decoder = self._decoders.get(header.codec)
        if decoder is None:
            agreed = ", ".join(codec.name for codec in self._codecs)
            raise ProtocolError(f"batch {header.sequence} names codec {header.codec}; the agreed codecs are {agreed}")
        if len(payload) != 1:
            raise ProtocolError(f"batch {header.sequence} is encoded in {len(payload)} frames; expected one")
        began_ns = time.thread_time_ns()
        raw = decoder.decode(header.block, index, payload[0], header.raw_bytes)
        self._codec_counters.spend(header.codec, time.thread_time_ns() - began_ns)
        return raw

    def _read_placed(self, block: int, index: Index) -> Pages:
        """Pages that were placed, as the memory holds them. A page that does not exist would be allocated by a look."""
        placed = bool(test_bits(self._shared.bits[block], index).all())
        if not placed or not bool((index[1:] > index[:-1]).all()):
            raise ProtocolError("a batch builds on pages in disorder or never placed, expected placed pages in order")
        return self._blocks[block].look(index)
