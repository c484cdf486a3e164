# SPDX-License-Identifier: Apache-2.0
"""Sends batches to a receive worker: header, codec, credit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from parmig.config import MAX_BATCH_BYTES
from parmig.ram.ack_rate import ChannelLoad
from parmig.ram.bits import NO_RUNS, Index, Runs, runs_of_index
from parmig.ram.blocks import PAGE_BYTES
from parmig.ram.codecs.batch_encoder import BatchEncoder
from parmig.ram.credit import LONG_BATCH_RUNS
from parmig.ram.flow import SendChannel
from parmig.ram.outlets.outlet import Outlet
from parmig.ram.packets import BatchHeader
from parmig.ram.reach.reach import Reach
from parmig.ram.regions import Region
from parmig.ram.shared import SharedArea
from parmig.ram.trackers.tracker import DirtyTracker
from parmig.transport.transport import Buffer

DIRECT_RUNS = LONG_BATCH_RUNS
"""A batch of at most this many runs is sent straight from guest memory, one frame for each run. More runs are gathered
in one private buffer: gathering 256 scattered pages costs 38 µs, and a frame about 10 µs."""


class ChannelOutlet(Outlet):
    """Sends each batch as one message of a data channel.

    Args:
        channel: to the receive worker; already open.
        encoder: encodes the batches of this channel.
        blocks: the blocks, by number.
        tracker: notified of what was sent.
        shared: holds the rate limits.
        path: number of the path whose limit applies, too.
        long_bytes: most guest bytes in a long batch; 0: none is agreed.
    """

    def __init__(
        self,
        channel: SendChannel,
        encoder: BatchEncoder,
        blocks: Sequence[Reach],
        tracker: DirtyTracker,
        shared: SharedArea,
        *,
        path: int = 0,
        long_bytes: int = 0,
    ) -> None:
        self._channel = channel
        self._encoder = encoder
        self._blocks = blocks
        self._tracker = tracker
        self._shared = shared
        self._path = path
        self._goes_long = [
            long_bytes > 0 and encoder.as_it_is and not tracker.needs_copy and reach.views(NO_RUNS) is not None
            for reach in blocks
        ]
        self._long_bytes = long_bytes
        self.most_pages = channel.acks.batch_bytes(MAX_BATCH_BYTES) // PAGE_BYTES

    def most_long_pages(self, block: int) -> int:
        if not self._goes_long[block] or self._shared.is_limited(self._path):
            return 0  # under a limit, long batches would be long bursts
        return self._channel.acks.batch_bytes(self._long_bytes) // PAGE_BYTES

    def load(self) -> ChannelLoad:
        return self._channel.acks.load

    def emit(self, block: int, round_: int, data: Index, zero: Runs) -> int:
        waiting_ns = self._channel.waiting_ns
        data_runs = runs_of_index(data)
        self._encoder.forget_runs(block, zero)
        codec, payload, buffer = self._payload(block, round_, data, data_runs)
        payload_bytes = sum(map(len, payload))
        header = BatchHeader(
            codec=codec,
            block=block,
            round=round_,
            sequence=self._channel.next_sequence(),
            raw_bytes=len(data) * PAGE_BYTES,
            payload_bytes=payload_bytes,
            data_runs=data_runs,
            zero_runs=zero,
        ).encode()
        wire_bytes = len(header) + payload_bytes
        self._channel.sleep_until(self._shared.reserve(wire_bytes, self._path))
        self._channel.send_batch([header, *payload], wire_bytes, buffer)
        self.most_pages = self._channel.acks.batch_bytes(MAX_BATCH_BYTES) // PAGE_BYTES
        waited_ns = self._channel.waiting_ns - waiting_ns
        if len(data) and self._encoder.passed(codec, wire_bytes, waited_ns):
            self._encoder.measured(wire_bytes, max(waited_ns, self._channel.last_batch_ns()))
        return wire_bytes

    def _payload(
        self, block: int, round_: int, index: Index, runs: Runs
    ) -> tuple[int, list[Buffer], np.ndarray | None]:
        """The codec number, the frames, and the private buffer that holds them, if any."""
        if not len(index):
            return 0, [], None
        reach = self._blocks[block]
        direct = self._encoder.goes_directly(block, index, reach.look)
        if direct and not self._tracker.needs_copy and len(runs) <= DIRECT_RUNS:
            views = reach.views(runs)
            if views is not None:
                self._encoder.sent_directly(block, index)
                return 0, list(views), None
        buffer = reach.exchange(index, self._channel.take_buffer())
        copies = buffer[: len(index)]
        self._tracker.sent(block, index, copies)
        raw = memoryview(copies.data).cast("B")
        codec, packed = self._encoder.encode(block, round_, index, raw)
        if packed is None:
            return 0, [raw], buffer
        raw[: len(packed)] = packed  # it is shorter than the pages, so the buffer has room for it
        return codec, [raw[: len(packed)]], buffer

    def taken_over(self, region: Region) -> None:
        self._encoder.forget_runs(region.block, np.array([[region.first_page, region.end_page]]))

    def fence(self, round_: int) -> None:
        self._channel.fence(round_)
        self._encoder.fenced()

    @property
    def waiting_ns(self) -> int:
        return self._channel.waiting_ns
