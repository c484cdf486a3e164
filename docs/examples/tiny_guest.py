# SPDX-License-Identifier: Apache-2.0
"""A complete guest in one file: a virtual machine that is one thread counting in its own memory.

Its RAM is a memfd, its device state eight bytes. It keeps no dirty log, so it names the ``digest``
tracker, which finds written pages by reading them.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
import time

from parmig.errors import GuestRefusedError, StateError
from parmig.guests.guest import DirtyLog, Guest, GuestInfo, StateSink
from parmig.guests.registry import register
from parmig.ram.blocks import PAGE_BYTES, BlockMemory, GuestRange, RamBlock
from parmig.units import parse_size

_STATE = struct.Struct(">Q")  # the device: how often the processor has counted


class TinyGuest(Guest):
    """One virtual CPU that writes a growing count to one page after the other."""

    def __init__(self, size_bytes: int, *, incoming: bool) -> None:
        self.count = 0
        self._fd = os.memfd_create("tiny-guest", os.MFD_CLOEXEC)
        os.ftruncate(self._fd, size_bytes)
        self._ram = mmap.mmap(self._fd, size_bytes)
        block = RamBlock("tiny.ram", size_bytes, ranges=(GuestRange(0, 0, size_bytes),))
        self._memory = [BlockMemory(block, self._fd)]
        self._arrived = bytearray()
        self._was_running = False
        self._stop = threading.Event()
        self._cpu: threading.Thread | None = None
        if not incoming:
            self.resume()

    def _run(self) -> None:
        while not self._stop.wait(0.0001):
            at = self.count * PAGE_BYTES % len(self._ram)
            self._ram[at : at + 8] = _STATE.pack(self.count)
            self.count += 1

    def info(self) -> GuestInfo:
        return GuestInfo(kind="tiny", machine="tiny-1", monitor="tiny 1.0")

    def memory(self) -> list[BlockMemory]:
        return self._memory

    def is_running(self) -> bool:
        return self._cpu is not None

    def start_dirty_log(self, kind: str) -> DirtyLog:
        if kind not in ("auto", "digest"):
            raise GuestRefusedError(f"a tiny guest has no {kind} log; use --tracker digest")
        self._was_running = self.is_running()
        return DirtyLog("digest", reason="a tiny guest keeps no log")

    def stop_dirty_log(self) -> None:
        pass

    def pause(self, sink: StateSink) -> int:
        self._halt()
        return time.monotonic_ns()

    def _halt(self) -> None:
        self._stop.set()
        if self._cpu is not None:
            self._cpu.join()
            self._cpu = None

    def save_state(self, sink: StateSink) -> None:
        sink.write(_STATE.pack(self.count))

    def resume_source(self) -> None:
        if self._was_running:
            self.resume()

    def prepare_incoming(self) -> None:
        self._arrived.clear()

    def write_state(self, data: memoryview) -> None:
        self._arrived += data

    def finish_load(self) -> None:
        if len(self._arrived) != _STATE.size:
            raise StateError(f"a tiny guest's state has {_STATE.size} bytes, {len(self._arrived)} arrived")
        (self.count,) = _STATE.unpack(self._arrived)

    def resume(self) -> int:
        if self._cpu is None:
            self._stop.clear()
            self._cpu = threading.Thread(target=self._run, name="tiny-cpu", daemon=True)
            self._cpu.start()
        return time.monotonic_ns()

    def discard(self) -> None:
        self._halt()

    def close(self) -> None:
        if not self._ram.closed:
            self._halt()
            self._ram.close()
            os.close(self._fd)


def open_tiny(options: str, *, incoming: bool) -> Guest:
    """Open ``tiny:SIZE``."""
    return TinyGuest(parse_size(options or "16MiB"), incoming=incoming)


register("tiny", f"{__name__}:open_tiny")
