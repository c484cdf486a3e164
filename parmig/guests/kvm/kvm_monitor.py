# SPDX-License-Identifier: Apache-2.0
"""The process of a KVM guest: the machine, and the answers to requests."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

import msgspec
import numpy as np

from parmig.guests.guest import DirtyLog
from parmig.guests.kvm import program_layout, programs
from parmig.guests.kvm.machine import Machine
from parmig.guests.kvm.options import KvmOptions
from parmig.guests.pulse import PulseLog
from parmig.guests.spawned import monitor_messages as m
from parmig.guests.spawned.monitor import Monitor, Pipe, serve
from parmig.linux import files
from parmig.ram.blocks import PAGE_BYTES, Pages
from parmig.units import MIB

_CHUNK_PAGES = MIB // PAGE_BYTES
_LOOK_S = 0.01
"""How often the counters are looked at: as often as the program's timer ticks. A look takes 4 µs."""


class KvmStats(msgspec.Struct, frozen=True):
    """Counters of a KVM guest.

    Attributes:
        beats: lines that it wrote to the serial port.
        interrupts: interrupts of the PIT that it handled.
    """

    beats: int
    interrupts: int


def main(pipe: Pipe, _: bytes, fds: Sequence[int]) -> None:
    """The process: serve *pipe* until it is closed.

    Args:
        pipe: requests in, replies out.
        fds: the memory file, then the shared dirty bitmap; owned by the process from here on.
    """
    memory_fd, bitmap_fd = fds
    serve(pipe, lambda start: KvmMonitor(start, memory_fd, bitmap_fd))


class KvmMonitor(Monitor):
    """The monitor of a KVM guest: the machine and its requests.

    Args:
        start: the options, and whether the guest waits for state.
    """

    def __init__(self, start: m.Start, memory_fd: int, bitmap_fd: int) -> None:
        super().__init__(incoming=start.incoming)
        options = msgspec.msgpack.decode(start.options, type=KvmOptions)
        self._tracker = options.tracker
        self._memory_fd = memory_fd
        self._vm = Machine(options, memory_fd, bitmap_fd)
        self.machine = self._vm.name
        self.registry = self._vm.registry
        self.pulse = PulseLog(options.rate_bytes_per_s)
        self._seen: tuple[int, ...] = ()
        self._additions = 0
        if not start.incoming:
            self._boot(options)

    def _boot(self, options: KvmOptions) -> None:
        """Put a program into memory and vCPUs."""
        memory = self._vm.ram.mapping
        ranges = memory.block.ranges
        files.punch_hole(self._memory_fd, 0, memory.block.size_bytes)
        # A vCPU without paging reaches only memory below 3 GiB. The last page may be used for the disk.
        pages = ranges[0].size_bytes // PAGE_BYTES - program_layout.FIRST_PAGE - 1
        if options.touched_bytes:
            pages = max(1, min(pages, options.touched_bytes // PAGE_BYTES))
        if options.fill == "random":
            _fill(memory.pages[program_layout.FIRST_PAGE :][:pages])
        rate = options.rate_bytes_per_s
        entries = programs.install(
            memory.pages,
            options.program,
            pages,
            None if rate is None else -(-rate // PAGE_BYTES),
            options.vcpus,
            interrupts=self._vm.irqchip,
            bounce=ranges[-1].gpa + ranges[-1].size_bytes - PAGE_BYTES if options.disk else None,
        )
        for state, registers in zip(self._vm.vcpu_states, entries, strict=True):
            state.start_flat(
                registers,
                (program_layout.CODE_SELECTOR, program_layout.DATA_SELECTOR),
                (program_layout.GDT, program_layout.GDT_BYTES),
                (program_layout.IDT, program_layout.IDT_BYTES),
            )

    def run(self) -> int:
        self._vm.raise_failure()
        return self._vm.run()

    def pause(self) -> int:
        return self._vm.pause() if self.running else time.monotonic_ns()

    def tick(self) -> float | None:
        """Look at the program's counters. Only a guest that runs changes them."""
        if not self.running:
            return None
        box = programs.mailbox(self._read)
        seen = int(box["additions"]), int(box["interrupts"]), int(box["beats"])
        if seen != self._seen:
            before = self._seen[0] if self._seen else seen[0]
            self._additions += (seen[0] - before) & 0xFFFF_FFFF
            self._seen = seen
            self.pulse.note(time.monotonic_ns(), self._additions)
        return _LOOK_S

    def throttle(self, percent: int) -> None:
        self._vm.throttle(percent)

    def start_log(self, kind: str) -> DirtyLog:
        return self._vm.dirty.start(kind, self._tracker)

    def sync_log(self) -> None:
        self._vm.raise_failure()
        self._vm.dirty.sync()

    def stop_log(self) -> None:
        self._vm.dirty.stop()

    def damage(self) -> str:
        return programs.damage(self._read, [state.read_registers()["rbx"] for state in self._vm.vcpu_states])

    def answer(self) -> tuple[msgspec.Struct, str]:
        mailbox = programs.mailbox(self._read)
        stats = KvmStats(int(mailbox["beats"]), int(mailbox["interrupts"]))
        return stats, self._vm.serial.text.decode("ascii", "replace")

    def _read(self, first_page: int, pages: int) -> Pages:
        """A copy of guest memory. Reading a hole through the mapping would fill it."""
        data = os.pread(self._memory_fd, pages * PAGE_BYTES, first_page * PAGE_BYTES)
        return np.frombuffer(data, np.uint8).reshape(-1, PAGE_BYTES)


def _fill(pages: Pages) -> None:
    """Fill *pages* with random bytes, except the words in which the program counts."""
    random = np.random.default_rng(1)
    for start in range(0, len(pages), _CHUNK_PAGES):
        chunk = pages[start : start + _CHUNK_PAGES]
        chunk[:] = np.frombuffer(random.bytes(chunk.nbytes), np.uint8).reshape(chunk.shape)
        chunk[:, :4] = 0
