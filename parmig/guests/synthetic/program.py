# SPDX-License-Identifier: Apache-2.0
"""What runs in a synthetic guest's process: one thread that ticks, and answers between ticks.

A tick is at most some 20 ms of work, so a pause never waits longer, and no page is ever half written
when the guest stands still. The process ends with its pipe.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from typing import Protocol

import msgspec

from parmig import linux
from parmig.errors import GuestError, ParmigError, StateError, StatusError
from parmig.guests.synthetic import messages as m
from parmig.guests.synthetic.devices import CounterDevice, RingDevice, SerialLog, Writer
from parmig.guests.synthetic.dirty import DirtyRecorder
from parmig.guests.synthetic.ledger import BlockLedger, mix_one
from parmig.guests.synthetic.options import MACHINE, RESERVED_PAGES, SyntheticOptions, block_layout, touched_layout
from parmig.ram.blocks import BlockMapping, BlockMemory
from parmig.state import StateRegistry, state_of
from parmig.units import NS_PER_MS, NS_PER_S

_TICK_NS = 5 * NS_PER_MS
_LATE_NS = 4 * _TICK_NS  # a guest that was held up does not write for the time that it lost


class Pipe(Protocol):
    """The guest's end of the pipe (a ``multiprocess`` connection)."""

    def poll(self, timeout: float | None) -> bool:
        """Whether something can be read, waiting for *timeout* seconds; None: for ever."""

    def recv_bytes(self) -> bytes:
        """The next message; EOFError when the other end is closed."""

    def send_bytes(self, data: bytes) -> None:
        """Send a message."""


def main(pipe: Pipe, _: bytes, fds: Sequence[int]) -> None:
    """The process: serve *pipe* until it is closed.

    Args:
        pipe: requests in, replies out.
        fds: one memory file a block, then the shared dirty bitmap; owned by the process from here on.
    """
    # The guest ends by its owner's will; a Ctrl-C at the terminal is for the owner to act on.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    linux.die_with_parent(signal.SIGKILL)
    try:
        _serve(pipe, fds[:-1], fds[-1])
    except (EOFError, ConnectionError):
        return


def _serve(pipe: Pipe, memory_fds: Sequence[int], bitmap_fd: int) -> None:
    decoder = msgspec.msgpack.Decoder(m.Question)
    encoder = msgspec.msgpack.Encoder()
    program: GuestProgram | None = None
    while True:
        timeout_s = None if program is None else program.seconds_to_tick()
        if pipe.poll(timeout_s):
            question = decoder.decode(pipe.recv_bytes())
            reply: m.Reply = m.Done()
            try:
                if isinstance(question.body, m.Start):
                    program = GuestProgram(
                        question.body.options, memory_fds, bitmap_fd, incoming=question.body.incoming
                    )
                elif program is not None:
                    reply = program.answer(question.body)
            except ParmigError as error:
                reply = m.Failed(type(error).__name__, str(error))
            except Exception as error:
                reply = m.Failed("GuestError", f"the synthetic guest failed: {error!r}")
            pipe.send_bytes(encoder.encode(m.Response(question.number, reply)))
        if program is not None:
            program.tick_when_due()


class GuestProgram:
    """The machine: memory, devices, writer, dirty log.

    Args:
        options: what machine.
        memory_fds: one memory file a block.
        bitmap_fd: the shared dirty bitmap.
        incoming: leave memory as it is and never run before state was loaded.
    """

    def __init__(self, options: SyntheticOptions, memory_fds: Sequence[int], bitmap_fd: int, *, incoming: bool) -> None:
        blocks = block_layout(options)
        self.mappings = [BlockMapping(BlockMemory(block, fd)) for block, fd in zip(blocks, memory_fds, strict=True)]
        self.dirty = DirtyRecorder(self.mappings, bitmap_fd)
        self.ledgers = [
            BlockLedger(self.mappings[index], first, touched, mix_one(options.seed + index), self.dirty.marker(index))
            for index, (first, touched) in enumerate(touched_layout(options))
        ]
        self.counter = CounterDevice()
        self.ring = RingDevice(self.mappings[0], self.dirty.marker(0))
        self.serial = SerialLog()
        self.writer = Writer(self.ledgers, options.rate_bytes_per_s, options.pattern, options.seed)
        self.registry = StateRegistry()
        for device in (self.counter, self.ring, self.serial, self.writer):
            self.registry.register(state_of(device))
        for index, ledger in enumerate(self.ledgers):
            self.registry.register(state_of(ledger, index))
            if not incoming and options.fill != "zero":
                ledger.fill(options.fill)
        self.running = False
        self._waits_for_state = incoming
        self._ticked_ns = 0

    def seconds_to_tick(self) -> float | None:
        """How long to wait for requests; None: until one comes."""
        return max(0, self._ticked_ns + _TICK_NS - time.monotonic_ns()) / NS_PER_S if self.running else None

    def tick_when_due(self) -> None:
        """Run the writer and the devices when their time has come."""
        now_ns = time.monotonic_ns()
        elapsed_ns = now_ns - self._ticked_ns
        if self.running and elapsed_ns >= _TICK_NS:
            self._ticked_ns = now_ns
            self.counter.tick()
            self.ring.tick()
            self.serial.tick(self.counter.value)
            self.writer.tick(min(elapsed_ns, _LATE_NS))

    def answer(self, request: m.Request) -> m.Reply:
        """Do what *request* asks for.

        Raises:
            ParmigError: it cannot be done; the guest is as before, after a failed load it is useless.
        """
        match request:
            case m.Pause():
                self.running = False
                return m.Done(time.monotonic_ns())
            case m.Throttle():
                self.writer.throttle_percent = request.percent
            case m.StartLog():
                return m.Segments(self.dirty.start(request.kind))
            case m.SyncLog():
                self.dirty.sync()
            case m.StopLog():
                self.dirty.stop()
            case m.Ask():
                return m.Answer(self._stats(), self.serial.text.decode("ascii", "replace"))
            case m.Run():
                self._run()
            case m.Punch():
                self._punch(request)
            case _:
                return self._answer_paused(request)
        return m.Done()

    def _answer_paused(self, request: m.Request) -> m.Reply:
        if self.running:
            raise StatusError(f"{type(request).__name__} needs a paused guest, this one runs; pause it first")
        match request:
            case m.SaveState():
                if self._waits_for_state:
                    raise StatusError("there is no state to save: this guest waits for its own")
                return m.State(self.registry.save_all(machine=MACHINE))
            case m.LoadState():
                if not self._waits_for_state:
                    raise StateError("state was loaded already, or the guest is not an incoming one")
                self.registry.load_all(request.data, machine=MACHINE)
                self._waits_for_state = False
            case m.Check():
                self._check()
        return m.Done()

    def _run(self) -> None:
        if self._waits_for_state:
            raise StatusError("an incoming guest cannot run before its state is loaded")
        if not self.running:
            self.running = True
            self._ticked_ns = time.monotonic_ns()

    def _punch(self, request: m.Punch) -> None:
        names = [mapping.block.name for mapping in self.mappings]
        if request.block not in names:
            raise GuestError(f"no block {request.block!r} to punch; there are {', '.join(names)}")
        index = names.index(request.block)
        first = RESERVED_PAGES if index == 0 else 0
        end = request.first_page + request.pages
        if request.pages < 1 or not first <= request.first_page < end <= self.mappings[index].block.pages:
            last = self.mappings[index].block.pages - 1
            raise GuestError(
                f"pages {request.first_page} to {end - 1} are not within {first} to {last} of block {request.block!r}"
            )
        self.ledgers[index].punch(request.first_page, request.pages)

    def _check(self) -> None:
        damages = [self.ring.damage(), *(ledger.damage() for ledger in self.ledgers)]
        if any(damages):
            raise GuestError("; ".join(filter(None, damages)))

    def _stats(self) -> m.SyntheticStats:
        return m.SyntheticStats(
            pages_written=self.writer.step,
            counter=self.counter.value,
            serial_lines=self.serial.lines,
            ring_index=self.ring.taken,
            paused=not self.running,
            ring_fault=self.ring.fault,
        )
