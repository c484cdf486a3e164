# SPDX-License-Identifier: Apache-2.0
"""How fast a channel carries what it is given, by its acknowledgements; and how much it should hold. Pure."""

from __future__ import annotations

import msgspec

from parmig.units import KIB, MIB, NS_PER_MS, NS_PER_S

WINDOW_NS = 500 * NS_PER_MS
"""Older time counts half as much each time that this much was measured: a path that becomes slower is known within a
second, and one batch of 4 MiB on a path of 250 Mbit/s (0.14 s) does not decide alone."""

MIN_BYTES = 256 * KIB
"""A rate of fewer bytes than this says nothing."""

HOLD_NS = 400 * NS_PER_MS
"""A channel holds what it carries in this time, within its credit. It bounds how long a slow path is busy when all
others have ended, and how much is sent again if the path ends. It fills paths with a round trip of up to 400 ms."""

MIN_HOLD_BYTES = 512 * KIB
MIN_BATCH_BYTES = 256 * KIB
BATCHES_HELD = 4
"""A batch is at most such a part of what a channel holds, so that its last one is short. From 170 Mbit/s on it still
has the pages of a whole huge page of 2 MiB, which the destination can then provide as one."""

FIRST_HOLD_BYTES = 8 * MIB
"""What a channel holds until its rate is known: enough batches to measure it."""


class ChannelLoad(msgspec.Struct, frozen=True):
    """What a channel has carried and still has to carry.

    Attributes:
        rate_bytes_per_s: while it had something to carry; 0: not known yet.
        unacked_bytes: sent and not acknowledged.
        wire_bytes: sent since it began.
    """

    rate_bytes_per_s: int
    unacked_bytes: int
    wire_bytes: int


class AckRate:
    """Measures one channel. Time in which nothing was under way does not count, nor does the first acknowledgement
    after it: that shows the round trip.
    """

    def __init__(self) -> None:
        self._unacked_bytes = self._sent_bytes = 0
        self._bytes = self._time_ns = 0
        self._last_ns: int | None = None

    def sent(self, size_bytes: int) -> None:
        """Note that *size_bytes* were sent."""
        self._sent_bytes += size_bytes
        self._unacked_bytes += size_bytes

    def acked(self, size_bytes: int, now_ns: int) -> None:
        """Note that *size_bytes* of what was sent were acknowledged."""
        self._unacked_bytes -= size_bytes
        if self._last_ns is not None:
            self._bytes += size_bytes
            self._time_ns += now_ns - self._last_ns
            if self._time_ns > WINDOW_NS:
                self._bytes //= 2
                self._time_ns //= 2
        self._last_ns = now_ns if self._unacked_bytes else None

    @property
    def bytes_per_s(self) -> int:
        """The rate; 0: not known yet."""
        known = self._bytes >= MIN_BYTES and self._time_ns
        return self._bytes * NS_PER_S // self._time_ns if known else 0

    @property
    def load(self) -> ChannelLoad:
        """The channel at this moment."""
        return ChannelLoad(self.bytes_per_s, self._unacked_bytes, self._sent_bytes)

    def allows(self, size_bytes: int, credit_bytes: int) -> bool:
        """Whether so many bytes may follow what is under way, with this credit of the destination."""
        return self._unacked_bytes + size_bytes <= min(credit_bytes, self._hold_bytes)

    def batch_bytes(self, largest_bytes: int) -> int:
        """How large a batch should be: a power of two times MIN_BATCH_BYTES, at most *largest_bytes*."""
        size = MIN_BATCH_BYTES
        while size * 2 * BATCHES_HELD <= self._hold_bytes:
            size *= 2
        return min(size, largest_bytes)

    @property
    def _hold_bytes(self) -> int:
        rate = self.bytes_per_s
        return max(MIN_HOLD_BYTES, rate * HOLD_NS // NS_PER_S) if rate else FIRST_HOLD_BYTES
