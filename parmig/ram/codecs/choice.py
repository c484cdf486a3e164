# SPDX-License-Identifier: Apache-2.0
"""Chooses the codec of each batch for ``--compress auto``, from what was measured. Pure: no I/O, no clock of its own.

The link's cost is measured by batches that go as they are: the time between two of them while the channel waits for
the destination. A codec's cost is measured by samples of 16 pages. A batch that cannot be looked at now is encoded
like the one before. All measuring together takes at most MEASURING_SHARE of the time.

A codec is worth its time if ``encode + wire * ratio`` is clearly less than ``wire``, as if nothing overlapped. On a
channel that never waits, or on a fast link, no codec is: pages then go straight from guest memory. Among those that are
worth it, the one with the smallest ``max(encode, wire * ratio)`` wins, because the link works while the next batch is
encoded.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import NamedTuple

from parmig.units import KIB

MEASURING_SHARE = 50
"""Samples, and batches that go as they are although a codec would be quicker, come only after 50 times as long has
passed as they took. So measuring costs 2 % of the time at most."""

MIN_BATCH_BYTES = 256 * KIB
"""Smaller batches are encoded like the last one: measuring them says little."""

CLEARLY = 0.9
"""A codec must need less than this part of the time of the batch as it is. Estimates are off by some percent."""

CALM_BATCHES = 8
"""After this many batches without a wait for the destination, in which nothing was encoded, the link has no share in
the time. More than the batches in flight, which leave without a wait after each fence."""

WAITED_PART = 8
"""A batch waited for the destination if it did so for at least 1 / 8 of the time since the batch before."""

FAST_NS_PER_BYTE = 3.0
"""Below this cost of the link pages go as they are: 3 ns a byte are 2.7 Gbit/s a channel. Copying the batch and
decoding it cost time as well, at worst on the same cores. Text that lz4 compresses to a twentieth at 0.55 ns a byte
went 15 % slower with it through a loopback device that took 1 to 2 ns a byte."""

SLOW_NS_PER_BYTE = 8.0
"""From this cost of the link on, copies of pages are kept for the delta codec: 8 ns a byte are 1 Gbit/s a channel.
Keeping copies takes fresh memory, which costs 1 to 2 ns a byte. With 2 ns here, two workers on a loopback device that
took 2.8 ns a byte reached 0.66 of the rate without a codec."""

COPIES_FROM_ROUND = 2
"""Copies are kept of what a round after the first sends: of the pages that the guest writes again and again. Copies of
all memory cost a Linux guest of 390 MiB over 1 Gbit/s a third of its time (1.6 instead of 1.1 s), because the copies
take fresh memory, and most of these pages are sent once."""

_WEIGHT = 0.25
"""Of the newest measurement of the link in the moving average."""


class Plan(enum.Enum):
    """What to do with a batch."""

    AS_IS = "send it as it is"
    TRIAL = "send it as it is, to measure the link; a second one follows"
    MEASURE = "send it as it is, and measure the time between the acknowledgements of the last two batches"
    SAMPLE = "encode a sample by each codec first"
    AS_BEFORE = "encode it like the batch before"


class Sample(NamedTuple):
    """What a codec did to a sample: its number, time, and sizes before and after."""

    codec: int
    encode_ns: int
    raw_bytes: int
    encoded_bytes: int


class Choice:
    """Chooses for one channel.

    Attributes:
        link_ns_per_byte: what a byte costs on the link; 0: not known yet.
    """

    def __init__(self) -> None:
        self.link_ns_per_byte = 0.0
        self._last: dict[bool, int] = {False: 0, True: 0}  # the codec of the last batch, by whether pages were known
        self._sample_due_ns: dict[bool, int] = {False: 0, True: 0}
        self._trial_due_ns = 0
        self._trial_cost_ns = 0
        self._in_trial = False
        self._calm = 0
        self._passed_ns = 0
        self._waited = False

    @property
    def is_slow(self) -> bool:
        """Whether the link is so slow that copies of pages are worth their memory and time."""
        return self.link_ns_per_byte >= SLOW_NS_PER_BYTE

    def plan(self, raw_bytes: int, now_ns: int, *, known: bool) -> Plan:
        """What to do with a batch of *raw_bytes*.

        Args:
            known: whether the channel remembers most of its pages.
        """
        if raw_bytes < MIN_BATCH_BYTES:
            return Plan.AS_BEFORE
        if self._in_trial:
            return Plan.MEASURE
        if not self.link_ns_per_byte or (self._last[known] and now_ns >= self._trial_due_ns):
            return Plan.TRIAL
        if self._calm >= CALM_BATCHES or self.link_ns_per_byte < FAST_NS_PER_BYTE:
            return Plan.AS_IS
        return Plan.SAMPLE if now_ns >= self._sample_due_ns[known] else Plan.AS_BEFORE

    def before(self, *, known: bool) -> int:
        """The codec of the last batch that was like this one; 0: as it is."""
        return self._last[known]

    def sampled(self, samples: Sequence[Sample], took_ns: int, now_ns: int, *, known: bool) -> int:
        """Choose a codec by *samples*, which took *took_ns*; returns its number, 0: as it is."""
        wire = self.link_ns_per_byte
        best, shortest = 0, wire
        for sample in samples:
            encode = sample.encode_ns / sample.raw_bytes
            coded_wire = wire * sample.encoded_bytes / sample.raw_bytes
            if encode + coded_wire < CLEARLY * wire and max(encode, coded_wire) < shortest:
                best, shortest = sample.codec, max(encode, coded_wire)
        self._last[known] = best
        self._sample_due_ns[known] = now_ns + MEASURING_SHARE * took_ns
        return best

    def passed(self, codec: int, wire_bytes: int, waited_ns: int, now_ns: int) -> None:
        """Take note that the channel took a batch at *now_ns*.

        Args:
            codec: its number.
            wire_bytes: its size.
            waited_ns: how long the channel waited for the destination or for the rate limit.
        """
        elapsed_ns = now_ns - self._passed_ns
        waited = waited_ns * WAITED_PART >= elapsed_ns
        if waited and self._waited and wire_bytes >= MIN_BATCH_BYTES and self.link_ns_per_byte:
            cost = elapsed_ns / wire_bytes
            # An encoded batch may have waited for the destination's processor: the link costs at most this.
            if not codec or cost < self.link_ns_per_byte:
                self.link_ns_per_byte += _WEIGHT * (cost - self.link_ns_per_byte)
        if codec or waited:
            self._calm = 0
        elif wire_bytes >= MIN_BATCH_BYTES:
            self._calm += 1
        self._passed_ns, self._waited = now_ns, waited

    def begin_trial(self) -> None:
        """Take note that the first of two batches to measure the link was sent."""
        self._in_trial = True

    def end_trial(self, wire_bytes: int, took_ns: int, now_ns: int) -> None:
        """Take note that the link needed *took_ns* for the second batch, of *wire_bytes*."""
        self._in_trial = False
        self.link_ns_per_byte = max(took_ns, 1) / wire_bytes
        self._calm = 0  # the batches of a trial go as they are, whatever the link costs
        if self.link_ns_per_byte < FAST_NS_PER_BYTE:
            self._last = {False: 0, True: 0}  # no codec is in use, so no trial is needed to leave it
        self._trial_cost_ns = 2 * took_ns
        self._trial_due_ns = now_ns + MEASURING_SHARE * self._trial_cost_ns

    def fenced(self, now_ns: int) -> None:
        """Take note that nothing is under way: the next batch says nothing of the time since the last one.

        A round that is short beside a trial has none. So a pause is not made longer by one.
        """
        self._waited = self._in_trial = False
        self._calm = 0
        self._trial_due_ns = max(self._trial_due_ns, now_ns + MEASURING_SHARE * self._trial_cost_ns)
