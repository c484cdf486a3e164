# SPDX-License-Identifier: Apache-2.0
"""The devices of a synthetic guest: a counter, a ring in guest memory, a serial log, and the writer.

The monitor calls the ``tick`` of each while the guest runs. The annotations of a device declare which of its values
must arrive at the destination.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np

from parmig.config import PATTERNS
from parmig.errors import StateError
from parmig.guests.synthetic.ledger import BlockLedger, Marker, PageNumbers, Words, mix, mix_one
from parmig.guests.synthetic.patterns import BURST_NS, HOT_TENTHS, hot_pages
from parmig.ram.blocks import PAGE_BYTES
from parmig.ram.reach.mapped import BlockMapping
from parmig.state import U64, Buffer, Byte, Limit, migration_state
from parmig.units import KIB, NS_PER_MS, NS_PER_S

RING_ENTRIES = 256
_RING_LAG = 8
_INDEX_MAX = 1 << 62
_ENTRIES_PER_TICK = 4
_ENTRY_WORDS = 2
_LOG_BYTES = 64 * KIB
_LINE_BYTES = 128
_TICKS_PER_LINE = 20
TICK_PAGES_MAX = 8192  # about 20 ms of writing: what a pause waits for at most


@migration_state("counter")
class CounterDevice:
    """A timer: one count for each tick. It must continue at the destination without a jump."""

    value: U64

    def __init__(self) -> None:
        self.value = 0

    def tick(self) -> None:
        """Count."""
        self.value += 1


@migration_state("ring")
class RingDevice:
    """A queue like those of virtio: entries and a copy of the indices in guest memory, the indices in device state.

    Page 0 of the block holds RING_ENTRIES entries of two words, a sequence number and its check word.
    Page 1 holds, as words: entries produced, entries taken, times saved. The last changes while state is
    saved, after the pause, so that a test notices an engine that skips the scan after saving.

    Args:
        mapping: the first block; not owned.
        mark: its dirty log.
    """

    produced: U64
    taken: U64
    saves: U64

    def __init__(self, mapping: BlockMapping, mark: Marker) -> None:
        self.produced = 0
        self.taken = 0
        self.saves = 0
        self.fault = ""
        self._entries = mapping.words[0].reshape(RING_ENTRIES, _ENTRY_WORDS)
        self._indices = mapping.words[1]
        self._mark = mark

    def tick(self) -> None:
        """Produce a few entries, take those that are due, and check that they are as they were produced."""
        new = np.arange(self.produced, self.produced + _ENTRIES_PER_TICK, dtype=np.uint64)
        self._entries[new % np.uint64(RING_ENTRIES)] = self._content(new)
        self.produced += _ENTRIES_PER_TICK
        due = np.arange(self.taken, max(self.taken, self.produced - _RING_LAG), dtype=np.uint64)
        if not self.fault and (self._entries[due % np.uint64(RING_ENTRIES)] != self._content(due)).any():
            self.fault = f"an entry of {self.taken} to {self.taken + len(due) - 1} was not as it was produced"
        self.taken += len(due)
        self._mark(slice(0, 1))
        self._publish()

    def damage(self) -> str:
        """The difference between the ring's memory and its indices; empty: none."""
        expected = [self.produced, self.taken, self.saves]
        in_memory = self._indices[: len(expected)].tolist()
        if in_memory != expected:
            return f"ring device: expected [produced, taken, saves] {expected} in memory, found {in_memory}"
        held = np.arange(max(0, self.produced - RING_ENTRIES), self.produced, dtype=np.uint64)
        wrong = held[(self._entries[held % np.uint64(RING_ENTRIES)] != self._content(held)).any(axis=1)]
        if len(wrong):
            return f"ring device: {len(wrong)} entries are wrong in memory, the first is {wrong[0]} of {self.produced}"
        return f"ring device: {self.fault}" if self.fault else ""

    def pre_save(self) -> None:
        """Write to guest memory, like a device that flushes something before it is saved."""
        self.saves += 1
        self._publish()

    def post_load(self, _: int) -> None:
        """Refuse indices that are not possible.

        Raises:
            StateError: an index is not; the message names it.
        """
        if not 0 <= self.produced - self.taken <= RING_ENTRIES or self.produced > _INDEX_MAX:
            raise StateError(
                f"the ring's indices are {self.produced} and {self.taken}, expected at most {RING_ENTRIES} apart"
            )

    def _publish(self) -> None:
        self._indices[:3] = (self.produced, self.taken, self.saves)
        self._mark(slice(1, 2))

    def _content(self, numbers: Words) -> Words:
        return np.stack((numbers, ~mix(numbers)), axis=1)


@migration_state("serial")
class SerialLog:
    """A serial port: a numbered line about every 100 ms, of which the last 64 KiB are kept."""

    lines: U64
    text: Annotated[Buffer, Limit(_LOG_BYTES)]

    def __init__(self) -> None:
        self.lines = 0
        self.text = b""

    def tick(self, counter: int) -> None:
        """Write a heartbeat if one is due at *counter*."""
        if counter % _TICKS_PER_LINE == 0:
            self.lines += 1
            line = f"heartbeat {self.lines} counter {counter}\n".encode("ascii")
            kept = self.text + line
            if len(kept) > _LOG_BYTES:
                kept = kept[kept.index(b"\n", len(kept) - _LOG_BYTES + _LINE_BYTES) + 1 :]
            self.text = kept


@migration_state("writer")
class Writer:
    """What the guest's programs do: write to pages at a rate, in a pattern.

    The choice of pages depends only on ``seed`` and ``step``, so it continues at the destination where it stopped,
    whatever the options of the destination are.

    Args:
        ledgers: of all blocks, in order.
        rate_bytes_per_s: pages written per second, in bytes.
        pattern: one of PATTERNS.
        seed: seed of the choice of pages.

    Attributes:
        late_ns_max: if the host let the guest run this late or later, it does not make up for more than this.
    """

    late_ns_max = 20 * NS_PER_MS
    rate_bytes_per_s: U64
    seed: U64
    step: U64
    run_ns: U64
    credit: U64
    pattern: Byte

    def __init__(self, ledgers: Sequence[BlockLedger], rate_bytes_per_s: int, pattern: str, seed: int) -> None:
        self.ledgers = ledgers
        self.rate_bytes_per_s = rate_bytes_per_s
        self.pattern = PATTERNS.index(pattern)
        self.seed = seed
        self.step = 0
        self.run_ns = 0
        self.credit = 0
        self.throttle_percent = 0

    @property
    def asked_bytes_per_s(self) -> float:
        """How fast it is to write, whatever the host does."""
        return float(self.rate_bytes_per_s)

    def tick(self, elapsed_ns: int) -> None:
        """Write what is due after *elapsed_ns* of running."""
        self.run_ns += elapsed_ns
        share = 100 - self.throttle_percent
        if PATTERNS[self.pattern] == "burst":
            share *= 0 if self.run_ns // BURST_NS % 2 else 2
        # In bytes times nanoseconds times percent: whole numbers, so nothing is lost between ticks.
        self.credit += self.rate_bytes_per_s * elapsed_ns * share
        page_credit = PAGE_BYTES * NS_PER_S * 100
        due_pages = self.credit // page_credit
        self.credit -= due_pages * page_credit
        self.write(min(due_pages, TICK_PAGES_MAX))

    def write(self, pages: int) -> None:
        """Write to the next *pages* pages of the pattern."""
        borders = np.cumsum([0, *(len(ledger.counts) for ledger in self.ledgers)])
        if not pages or not borders[-1]:
            return
        chosen, writes = np.unique(self._choose(pages, int(borders[-1])), return_counts=True)
        self.step += pages
        cuts = np.searchsorted(chosen, borders)
        for index, ledger in enumerate(self.ledgers):
            part = slice(cuts[index], cuts[index + 1])
            if cuts[index] < cuts[index + 1]:
                ledger.record(chosen[part] - borders[index], writes[part])

    def post_load(self, _: int) -> None:
        """Refuse an unknown pattern.

        Raises:
            StateError: the pattern is unknown; the message names it.
        """
        if self.pattern >= len(PATTERNS):
            raise StateError(f"the pattern is {self.pattern}, expected a number below {len(PATTERNS)}")

    def _choose(self, pages: int, touched: int) -> PageNumbers:
        """The next *pages* choices among *touched* pages, which are numbered over all blocks. Some may be equal."""
        steps = np.arange(pages, dtype=np.uint64) + np.uint64(self.step % (1 << 63))
        if PATTERNS[self.pattern] == "sequential":
            return (steps % np.uint64(touched)).astype(np.int64)
        drawn = mix(steps + np.uint64(mix_one(self.seed)))
        low, high = drawn & np.uint64(0xFFFF_FFFF), drawn >> np.uint64(32)
        hot = hot_pages(touched)
        if PATTERNS[self.pattern] != "hot" or hot == touched:
            return (low % np.uint64(touched)).astype(np.int64)
        cold = np.uint64(hot) + low % np.uint64(touched - hot)
        return np.where(high % np.uint64(10) < HOT_TENTHS, low % np.uint64(hot), cold).astype(np.int64)
