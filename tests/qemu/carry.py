# SPDX-License-Identifier: Apache-2.0
"""The engine's part in small: carries memory and state between two guests on this host, timed."""

from __future__ import annotations

import os
import time

import numpy as np

from parmig.guests.guest import DirtyLog, Guest
from parmig.linux import pagemap
from parmig.ram.blocks import PAGE_BYTES
from parmig.ram.reach.mapped import BlockMapping


class Buffer:
    """A StateSink that keeps everything."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.data += data


class Forward:
    """A StateSink that gives everything to the destination at once."""

    def __init__(self, destination: Guest) -> None:
        self.destination = destination
        self.size_bytes = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.size_bytes += len(data)
        self.destination.write_state(memoryview(data))


class Scanner:
    """Reads a pagemap dirty log as the workers do."""

    def __init__(self, log: DirtyLog) -> None:
        self.log = log
        self.fd = os.open(f"/proc/{log.pid}/pagemap", os.O_RDONLY)
        self.vector = np.zeros(1 << 16, dtype=pagemap.PAGE_REGION_DTYPE)

    def dirty(self) -> list[tuple[int, int, int]]:
        """(block, first page, pages) of what was written since the last call; protects it again."""
        runs = []
        for index, segments in enumerate(self.log.segments):
            for part in segments:
                end = part.address + part.pages * PAGE_BYTES
                for found in pagemap.scan(
                    self.fd,
                    part.address,
                    end,
                    self.vector,
                    flags=pagemap.PM_SCAN_WP_MATCHING | pagemap.PM_SCAN_CHECK_WPASYNC,
                    mask=pagemap.PAGE_IS_WRITTEN,
                    returned=pagemap.PAGE_IS_WRITTEN,
                ):
                    for low, high in zip(found["start"].tolist(), found["end"].tolist(), strict=True):
                        first = part.first_page + (low - part.address) // PAGE_BYTES
                        runs.append((index, first, (high - low) // PAGE_BYTES))
        return runs

    def close(self) -> None:
        os.close(self.fd)


class Carrier:
    """One migration between two opened guests, step by step."""

    def __init__(self, source: Guest, destination: Guest) -> None:
        self.source, self.destination = source, destination
        self.times_ms: dict[str, float] = {}
        self.maps = [
            (BlockMapping(ours), BlockMapping(theirs))
            for ours, theirs in zip(source.memory(), destination.memory(), strict=True)
        ]

    def copy(self) -> int:
        """Carry what is dirty; how many pages that was."""
        runs = self.scanner.dirty()
        for block, first, pages in runs:
            ours, theirs = self.maps[block]
            theirs.pages[first : first + pages] = ours.pages[first : first + pages]
        return sum(pages for _, _, pages in runs)

    def timed(self, name: str, work: object, *arguments: object) -> object:
        began = time.perf_counter()
        result = work(*arguments)  # type: ignore[operator]
        self.times_ms[name] = (time.perf_counter() - began) * 1000
        return result

    def rounds(self, count: int = 3) -> None:
        """Everything that happens while the guest runs."""
        self.scanner = Scanner(self.source.start_dirty_log("pagemap"))
        self.destination.prepare_incoming()
        for _ in range(count):
            self.copy()

    def pause(self) -> int:
        """Pause, last round; when the guest stopped."""
        self.sink = Forward(self.destination)
        stopped_ns = self.timed("pause", self.source.pause, self.sink)
        self.times_ms["stop to return"] = (time.monotonic_ns() - stopped_ns) / 1e6  # type: ignore[operator]
        self.timed("copy", self.copy)
        return stopped_ns  # type: ignore[return-value]

    def hand_over(self, stopped_ns: int) -> int:
        """State, load, run; how many pages the saving wrote."""
        state = Buffer()
        self.timed("save", self.source.save_state, state)
        late = self.copy()
        self.timed("write", self.destination.write_state, memoryview(state.data))
        self.timed("load", self.destination.finish_load)
        self.timed("resume", self.destination.resume)
        self.times_ms["stop to run"] = (time.monotonic_ns() - stopped_ns) / 1e6
        self.times_ms["live KiB"], self.times_ms["state KiB"] = self.sink.size_bytes / 1024, len(state.data) / 1024
        self.source.finish_source()
        return late

    def close(self) -> None:
        self.scanner.close()
        for ours, theirs in self.maps:
            ours.close()
            theirs.close()
        self.source.stop_dirty_log()
