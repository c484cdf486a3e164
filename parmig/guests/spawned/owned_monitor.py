# SPDX-License-Identifier: Apache-2.0
"""A monitor's process that parmig has started, with the memory files that it runs on."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection, Mapping, Sequence
from typing import TypeVar

import msgspec

from parmig.errors import GuestError
from parmig.guests.guest import Guest, GuestInfo
from parmig.guests.spawned import monitor_messages as m
from parmig.guests.spawned.monitor_process import MonitorProcess
from parmig.linux import files as memory_files
from parmig.ram.bits import bits_for
from parmig.ram.blocks import BlockMemory, RamBlock
from parmig.units import GIB, NS_PER_S
from parmig.version import __version__

_ANSWER_LIMIT_S = 10.0
_SLOW_LIMIT_S = 30.0  # for requests that handle all memory; more for each GiB
_SLOW_LIMIT_S_PER_GIB = 10.0

_R = TypeVar("_R")


class OwnedMonitor(Guest):
    """What a guest object owns: the process, a memory file for each block, and the shared dirty bitmap.

    Every method that asks the process raises GuestError if the process is gone or does not answer in time.

    Args:
        kind: kind of guest: ``kvm``, ``synthetic``.
        program: ``module:function`` of the monitor.
        options: options of the guest, a structure; the monitor gets it in msgpack.
        blocks: the RAM blocks; each gets a memory file of its own.
        state_limit_bytes: more device state than this is refused.
        incoming: True: memory is empty, and the guest cannot run before its state is loaded.
        running: whether it runs from the start; an incoming guest does not.
        head_start_ns: how long it runs before this returns.

    Raises:
        GuestError: the process could not be started or did not come up.
    """

    def __init__(
        self,
        kind: str,
        program: str,
        options: msgspec.Struct,
        blocks: Sequence[RamBlock],
        *,
        state_limit_bytes: int,
        incoming: bool,
        running: bool,
        head_start_ns: int = 0,
    ) -> None:
        self._kind = kind
        self._incoming = incoming
        self._machine = ""
        self._running = False
        self._paused_here = False
        self._accepting = False
        self._logging = ""
        self._state = bytearray()
        self._state_limit_bytes = state_limit_bytes
        self._slow_limit_s = _SLOW_LIMIT_S + _SLOW_LIMIT_S_PER_GIB * sum(block.size_bytes for block in blocks) / GIB
        self._program = program
        self._blocks = tuple(blocks)
        self._packed_options = msgspec.msgpack.encode(options)
        self._fds: list[int] = []
        self._memory: list[BlockMemory] = []
        self._bitmap_fd = -1
        self._process: MonitorProcess | None = None
        try:
            self._start({})
            if running and not incoming:
                self.resume()
                time.sleep(head_start_ns / NS_PER_S)
        except BaseException:
            self.close()
            raise

    def _start(self, files: Mapping[str, int]) -> None:
        """Start the process, on duplicates of *files* by block name, and on files of its own for other blocks."""
        for block in self._blocks:
            if block.name in files:
                fd = os.dup(files[block.name])
                self._fds.append(fd)
            else:
                fd = self._create_file(block.name, block.size_bytes)
            self._memory.append(BlockMemory(block, fd))
        self._bitmap_fd = self._create_file("dirty", sum(bits_for(block.pages) for block in self._blocks))
        self._process = MonitorProcess(self._program, self._kind, self._fds)
        start = m.Start(self._packed_options, self._incoming)
        self._machine = self._ask(start, m.Started, self._slow_limit_s).machine

    def _create_file(self, name: str, size_bytes: int) -> int:
        """A descriptor of a new file for block *name*, or for the bitmap ``dirty``; close() closes it."""
        fd = memory_files.create_memory_file(f"parmig-{name}", size_bytes)
        self._fds.append(fd)
        return fd

    def info(self) -> GuestInfo:
        return GuestInfo(self._kind, self._machine, f"parmig {__version__}")

    def memory(self) -> Sequence[BlockMemory]:
        """The blocks, each in a file of its own that stays open until close()."""
        return self._memory

    def lasting_blocks(self) -> Collection[str]:
        """All of them: files outlast the process."""
        return [block.name for block in self._blocks]

    def watch_fd(self) -> int | None:
        """A pidfd of the process, open until close()."""
        return None if self._process is None else self._process.pidfd

    def close(self) -> None:
        """End the process and close all descriptors. Never raises; may be called twice."""
        self._release()

    def _release(self) -> None:
        self._running = False
        process, self._process = self._process, None
        if process is not None:
            process.close()
        while self._fds:
            with contextlib.suppress(OSError):
                os.close(self._fds.pop())
        self._memory = []

    @property
    def pid(self) -> int:
        """Process id of the monitor. Raises GuestError after close()."""
        return self._alive().pid

    def _ask(self, request: m.Request, expected: type[_R], limit_s: float = _ANSWER_LIMIT_S) -> _R:
        reply = self._alive().ask(request, limit_s)
        if not isinstance(reply, expected):
            raise GuestError(
                f"the {self._kind} guest answered {type(request).__name__} with an unexpected {type(reply).__name__}"
            )
        return reply

    def _alive(self) -> MonitorProcess:
        if self._process is None:
            raise GuestError(f"the {self._kind} guest is closed")
        return self._process
