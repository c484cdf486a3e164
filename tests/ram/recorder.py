# SPDX-License-Identifier: Apache-2.0
"""A data channel that keeps what is sent, for tests of the source end of the page path."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from parmig.ram.ack_rate import AckRate
from parmig.ram.bits import index_of_runs
from parmig.ram.blocks import PAGE_BYTES, Pages
from parmig.ram.packets import BatchHeader, decode_batch
from parmig.transport.transport import Buffer
from parmig.units import KIB, NS_PER_S

BATCH_BYTES = 256 * KIB
BATCH_PAGES = BATCH_BYTES // PAGE_BYTES


class Recorder:
    """A channel that keeps every batch, copied when it is sent, and checks each as the destination would."""

    def __init__(self, blocks_pages: list[int], long_bytes: int = 0) -> None:
        self.blocks_pages = blocks_pages
        self.long_bytes = long_bytes
        self.messages: list[list[bytes]] = []
        self.headers: list[BatchHeader] = []
        self.fences: list[tuple[int, int]] = []
        self.sent_before = 0
        self.waiting_ns = 0
        self.buffers_out = 0
        self.acks = AckRate()
        self._buffers: list[Pages] = []

    def next_sequence(self) -> int:
        return len(self.messages) + 1

    def take_buffer(self) -> Pages:
        self.buffers_out += 1
        return self._buffers.pop() if self._buffers else np.empty((BATCH_PAGES, PAGE_BYTES), dtype=np.uint8)

    def give_back(self, buffer: Pages) -> None:
        self.buffers_out -= 1
        self._buffers.append(buffer)

    def sleep_until(self, instant_ns: int) -> None:
        pass

    def send_batch(self, frames: Sequence[Buffer], wire_bytes: int, buffer: Pages | None) -> None:
        assert wire_bytes == sum(map(len, frames))
        self.headers.append(
            decode_batch(
                memoryview(frames[0]),
                blocks_pages=self.blocks_pages,
                max_raw_bytes=BATCH_BYTES,
                max_long_bytes=self.long_bytes,
            )
        )
        self.messages.append([bytes(frame) for frame in frames])
        if buffer is not None:
            self.give_back(buffer)

    def last_batch_ns(self) -> int:
        """A link so slow that any codec is worth its time."""
        return NS_PER_S

    def fence(self, round_: int) -> None:
        self.fences.append((round_, len(self.messages)))

    @property
    def payload_bytes(self) -> int:
        """Size of all payloads."""
        return sum(header.payload_bytes for header in self.headers)

    def pages(self, of: str) -> Counter[tuple[int, int]]:
        """How often each page was told of as ``data`` or ``zero``."""
        return Counter(
            (header.block, page)
            for header in self.headers
            for page in index_of_runs(header.data_runs if of == "data" else header.zero_runs).tolist()
        )
