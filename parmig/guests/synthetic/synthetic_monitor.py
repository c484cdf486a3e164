# SPDX-License-Identifier: Apache-2.0
"""The process of a synthetic guest: one thread that runs the devices in ticks, and answers between ticks.

A tick is at most about 20 ms of work, so a pause never waits longer. No page is half written when the guest is
paused.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from parmig.errors import GuestError
from parmig.guests.guest import DirtyLog
from parmig.guests.pulse import PulseLog
from parmig.guests.spawned import monitor_messages as m
from parmig.guests.spawned.monitor import Monitor, Pipe, serve
from parmig.guests.synthetic.ledger import BlockLedger, mix_one
from parmig.guests.synthetic.options import MACHINE, RESERVED_PAGES, SyntheticOptions, block_layout, touched_layout
from parmig.guests.synthetic.synthetic_devices import CounterDevice, RingDevice, SerialLog, Writer
from parmig.guests.synthetic.synthetic_log import DirtyRecorder
from parmig.ram.blocks import BlockMemory
from parmig.ram.reach.mapped import BlockMapping
from parmig.state import state_of
from parmig.units import NS_PER_MS, NS_PER_S

if TYPE_CHECKING:
    from parmig.guests.synthetic.replay import Replay

_TICK_NS = 5 * NS_PER_MS


class SyntheticStats(msgspec.Struct, frozen=True):
    """Counters of a synthetic guest, all of them device state but ``paused`` and ``ring_fault``.

    Attributes:
        pages_written: pages that the writer wrote; a page counts each time.
        counter: ticks of about 5 ms that the guest has run.
        serial_lines: heartbeat lines ever written.
        ring_index: entries that the ring device has taken.
        paused: whether the writer and the devices are stopped.
        ring_fault: the fault that the ring device found in its memory; empty: none.
    """

    pages_written: int
    counter: int
    serial_lines: int
    ring_index: int
    paused: bool
    ring_fault: str = ""


class Punch(msgspec.Struct):
    """The special request of a synthetic guest: give pages back, as a balloon does."""

    block: str
    first_page: int
    pages: int


def main(pipe: Pipe, _: bytes, fds: Sequence[int]) -> None:
    """The process: serve *pipe* until it is closed.

    Args:
        pipe: requests in, replies out.
        fds: one memory file for each block, then the shared dirty bitmap; owned by the process from here on.
    """
    serve(pipe, lambda start: SyntheticMonitor(start, fds[:-1], fds[-1]))


class SyntheticMonitor(Monitor):
    """The machine: memory, devices, writer, dirty log.

    Args:
        start: the options, and whether the guest waits for state.
        memory_fds: one memory file for each block.
        bitmap_fd: the shared dirty bitmap.
    """

    machine = MACHINE

    def __init__(self, start: m.Start, memory_fds: Sequence[int], bitmap_fd: int) -> None:
        super().__init__(incoming=start.incoming)
        options = msgspec.msgpack.decode(start.options, type=SyntheticOptions)
        blocks = block_layout(options)
        self._tracker = options.tracker
        self._mappings = [BlockMapping(BlockMemory(block, fd)) for block, fd in zip(blocks, memory_fds, strict=True)]
        self._dirty = DirtyRecorder(self._mappings, bitmap_fd)
        self._ledgers = [
            BlockLedger(self._mappings[index], first, touched, mix_one(options.seed + index), self._dirty.marker(index))
            for index, (first, touched) in enumerate(touched_layout(options))
        ]
        self._counter = CounterDevice()
        self._ring = RingDevice(self._mappings[0], self._dirty.marker(0))
        self._serial = SerialLog()
        self._writer = self._make_writer(options)
        self.pulse = PulseLog(self._writer.asked_bytes_per_s)
        for device in (self._counter, self._ring, self._serial, self._writer):
            self.registry.register(state_of(device))
        for index, ledger in enumerate(self._ledgers):
            self.registry.register(state_of(ledger, index))
            if not start.incoming and options.fill != "zero":
                ledger.fill(options.fill)
        self._ticked_ns = 0

    def _make_writer(self, options: SyntheticOptions) -> Writer | Replay:
        if not options.trace:
            return Writer(self._ledgers, options.rate_bytes_per_s, options.pattern, options.seed)
        from parmig.guests.synthetic.replay import Replay  # its libraries take 10 ms to import
        from parmig.ram.traces.trace_file import read_trace

        trace = read_trace(options.trace)
        self.machine = f"{MACHINE},trace={trace.digest:016x}"
        return Replay(self._ledgers, trace)

    def run(self) -> int:
        self._ticked_ns = time.monotonic_ns()
        return self._ticked_ns

    def pause(self) -> int:
        return time.monotonic_ns()

    def tick(self) -> float | None:
        """Run the writer and the devices if a tick is due."""
        if not self.running:
            return None
        now_ns = time.monotonic_ns()
        elapsed_ns = now_ns - self._ticked_ns
        if elapsed_ns >= _TICK_NS:
            self._ticked_ns = now_ns
            self._counter.tick()
            self._ring.tick()
            self._serial.tick(self._counter.value)
            self._writer.tick(min(elapsed_ns, self._writer.late_ns_max))
            self.pulse.note(time.monotonic_ns(), self._writer.step)
        return max(0, self._ticked_ns + _TICK_NS - time.monotonic_ns()) / NS_PER_S

    def throttle(self, percent: int) -> None:
        self._writer.throttle_percent = percent

    def start_log(self, kind: str) -> DirtyLog:
        return self._dirty.start(kind, self._tracker)

    def sync_log(self) -> None:
        self._dirty.sync()

    def stop_log(self) -> None:
        self._dirty.stop()

    def damage(self) -> str:
        return "; ".join(filter(None, [self._ring.damage(), *(ledger.damage() for ledger in self._ledgers)]))

    def answer(self) -> tuple[msgspec.Struct, str]:
        stats = SyntheticStats(
            pages_written=self._writer.step,
            counter=self._counter.value,
            serial_lines=self._serial.lines,
            ring_index=self._ring.taken,
            paused=not self.running,
            ring_fault=self._ring.fault,
        )
        return stats, self._serial.text.decode("ascii", "replace")

    def special(self, body: bytes) -> None:
        """Give pages back: *body* is a :class:`Punch`."""
        punch = msgspec.msgpack.decode(body, type=Punch)
        names = [mapping.block.name for mapping in self._mappings]
        if punch.block not in names:
            raise GuestError(f"there is no block {punch.block!r}, expected one of {', '.join(names)}")
        index = names.index(punch.block)
        first = RESERVED_PAGES if index == 0 else 0
        last = self._mappings[index].block.pages - 1
        end = punch.first_page + punch.pages
        if punch.pages < 1 or not first <= punch.first_page < end <= last + 1:
            raise GuestError(
                f"pages {punch.first_page} to {end - 1} of block {punch.block!r} cannot be punched, "
                f"expected pages within {first} to {last}"
            )
        self._ledgers[index].punch(punch.first_page, punch.pages)
