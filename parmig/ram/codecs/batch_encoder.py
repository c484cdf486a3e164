# SPDX-License-Identifier: Apache-2.0
"""Encodes the batches of one channel, by the codecs that were chosen for it, and counts what that saved and cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from parmig.ram.bits import Index, Runs, index_of_runs
from parmig.ram.blocks import PAGE_BYTES, Pages
from parmig.ram.codecs import registry
from parmig.ram.codecs.choice import COPIES_FROM_ROUND, Choice, Plan, Sample
from parmig.ram.codecs.codec import CodecSettings, PageCodec, PageEncoder
from parmig.ram.shared import CodecCounters

_TRY_AFTER_MISSES = 4
"""After this many batches in a row that did not shrink, only one batch in this many is tried, and those whose pages a
codec knows. Random data then costs one compression in four (lz4 0.4 ms and zstd 1 ms for 4 MiB)."""

SAMPLE_PAGES = 16
"""Pages of a sample, spread over the batch. Pieces of 64 KiB compress nearly as well as the whole batch: Python sources
to 36 instead of 34 % with lz4, and to 25 instead of 22 % with zstd, in 0.1 and 0.2 ms."""


class BatchEncoder:
    """Encodes each batch by the first of its codecs that makes the batch shorter.

    Args:
        codecs: in the order in which they are tried. None: batches go as they are, straight from guest memory.
        settings: for new encoders.
        counters: of this worker.
    """

    def __init__(self, codecs: Sequence[PageCodec], settings: CodecSettings, counters: CodecCounters) -> None:
        made = [(codec.number, codec.encoder(settings)) for codec in codecs]
        self._encoders: dict[int, PageEncoder] = {number: encoder for number, encoder in made if encoder is not None}
        self._counters = counters
        self._misses = 0

    @property
    def as_it_is(self) -> bool:
        """Whether every batch goes as it is, straight from guest memory."""
        return not self._encoders

    # -- one batch, in the order of the calls ---------------------------------------------------

    def forget(self, block: int, index: Index) -> None:
        """Take note that this side does not know what the destination holds for the pages *index*."""
        for encoder in self._encoders.values():
            encoder.forget(block, index)

    def forget_runs(self, block: int, runs: Runs) -> None:
        """As :meth:`forget`. Without an encoder, the pages of *runs* are not numbered."""
        if self._encoders:
            self.forget(block, index_of_runs(runs))

    def goes_directly(self, block: int, index: Index, look: Callable[[Index], Pages]) -> bool:
        """Whether the next batch, of the pages *index*, may be sent straight from guest memory.

        Args:
            look: returns some of these pages as they are now.
        """
        return self.as_it_is

    def sent_directly(self, block: int, index: Index) -> None:
        """Take note that it was, so that nobody knows its bytes: the guest writes to them meanwhile."""
        self.forget(block, index)
        self._counters.count(0, len(index) * PAGE_BYTES, len(index) * PAGE_BYTES)

    def encode(self, block: int, round_: int, index: Index, raw: memoryview) -> tuple[int, bytes | None]:
        """Encode the next batch, whose bytes *raw* are a private copy. It must be sent.

        Returns:
            the number of the codec and the bytes to send; 0 and None: *raw* itself, because no codec makes it shorter.
        """
        codec, packed = self._encode(block, index, raw)
        self._counters.count(codec, len(raw), len(raw) if packed is None else len(packed))
        self._sent(block, round_, index, raw)
        return codec, packed

    def passed(self, codec: int, wire_bytes: int, waited_ns: int) -> bool:
        """Take note that the channel took the batch; returns whether the link is to be measured now.

        Args:
            codec: number of its codec.
            wire_bytes: its size.
            waited_ns: how long the channel waited for the destination or the rate limit.
        """
        return False

    def measured(self, wire_bytes: int, took_ns: int) -> None:
        """Take note that the link needed *took_ns* for the last batch, of *wire_bytes*."""

    def fenced(self) -> None:
        """Take note that every batch was placed."""

    # -- inside ---------------------------------------------------------------------------------

    def _encode(self, block: int, index: Index, raw: memoryview) -> tuple[int, bytes | None]:
        unlikely = self._misses >= _TRY_AFTER_MISSES and self._misses % _TRY_AFTER_MISSES
        for codec, encoder in self._encoders.items():
            if unlikely and not encoder.knows(block, index):
                continue
            packed = self._try(codec, block, index, raw)[0]
            if packed is not None:
                self._misses = 0
                return codec, packed
        self._misses += 1
        return 0, None

    def _try(self, codec: int, block: int, index: Index, raw: memoryview) -> tuple[bytes | None, int]:
        """What *codec* makes of *raw*, and the processor time that took (on a busy host others run meanwhile)."""
        began_ns = time.thread_time_ns()
        packed = self._encoders[codec].encode(block, index, raw)
        took_ns = time.thread_time_ns() - began_ns
        self._counters.spend(codec, took_ns)
        return packed, took_ns

    def _sent(self, block: int, round_: int, index: Index, raw: memoryview) -> None:
        for encoder in self._encoders.values():
            encoder.sent(block, round_, index, raw)


class AutoEncoder(BatchEncoder):
    """Encodes each batch by the codec that :class:`Choice` names."""

    def __init__(self, codecs: Sequence[PageCodec], settings: CodecSettings, counters: CodecCounters) -> None:
        super().__init__(codecs, settings, counters)
        self._choice = Choice()
        self._plan = Plan.AS_IS
        self._known = False
        self._codec = 0

    def goes_directly(self, block: int, index: Index, look: Callable[[Index], Pages]) -> bool:
        self._known = any(encoder.knows(block, index) for encoder in self._encoders.values())
        self._plan = self._choice.plan(len(index) * PAGE_BYTES, time.monotonic_ns(), known=self._known)
        self._codec = 0
        if self._plan is Plan.SAMPLE:
            part = index[:: max(1, len(index) // SAMPLE_PAGES)]
            self._codec = self._sample(block, part, memoryview(look(part).tobytes()))
        elif self._plan is Plan.AS_BEFORE:
            self._codec = self._choice.before(known=self._known)
        return not self._codec and not self._choice.is_slow

    def _encode(self, block: int, index: Index, raw: memoryview) -> tuple[int, bytes | None]:
        packed = self._try(self._codec, block, index, raw)[0] if self._codec else None
        return (self._codec, packed) if packed is not None else (0, None)

    def _sample(self, block: int, index: Index, raw: memoryview) -> int:
        """The codec that is best for the pages *index* with the content *raw*; 0: none."""
        samples, spent_ns = [], 0
        for codec in self._encoders:
            packed, took_ns = self._try(codec, block, index, raw)
            spent_ns += took_ns
            if packed is not None:
                samples.append(Sample(codec, took_ns, len(raw), len(packed)))
        return self._choice.sampled(samples, spent_ns, time.monotonic_ns(), known=self._known)

    def _sent(self, block: int, round_: int, index: Index, raw: memoryview) -> None:
        if self._choice.is_slow and round_ >= COPIES_FROM_ROUND:
            super()._sent(block, round_, index, raw)
        else:
            self.forget(block, index)

    def passed(self, codec: int, wire_bytes: int, waited_ns: int) -> bool:
        self._choice.passed(codec, wire_bytes, waited_ns, time.monotonic_ns())
        if self._plan is Plan.TRIAL:
            self._choice.begin_trial()
        return self._plan is Plan.MEASURE

    def measured(self, wire_bytes: int, took_ns: int) -> None:
        self._choice.end_trial(wire_bytes, took_ns, time.monotonic_ns())

    def fenced(self) -> None:
        self._choice.fenced(time.monotonic_ns())


def open_encoder(choice: str, names: Sequence[str], settings: CodecSettings, counters: CodecCounters) -> BatchEncoder:
    """The encoder of a channel if the user chose *choice*, for which the channel may use the codecs *names*.

    Raises:
        UsageError: a codec is not known.
    """
    kind = AutoEncoder if choice == registry.AUTO else BatchEncoder
    return kind([registry.codec(name) for name in names], settings, counters)
