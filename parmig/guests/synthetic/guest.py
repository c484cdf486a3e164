# SPDX-License-Identifier: Apache-2.0
"""The synthetic guest as the engine sees it: :class:`~parmig.guests.base.Guest` over a process and its pipe."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TypeVar

from parmig.errors import GuestError, StateError, StatusError, UsageError
from parmig.guests.base import DirtyLog, Guest, GuestInfo, StateSink
from parmig.guests.synthetic import messages as m
from parmig.guests.synthetic.dirty import bitmap_bytes, choose_log
from parmig.guests.synthetic.messages import SyntheticStats
from parmig.guests.synthetic.options import MACHINE, SyntheticOptions, block_layout, parse_options
from parmig.guests.synthetic.process import GuestProcess
from parmig.ram.blocks import PAGE_BYTES, BlockMemory
from parmig.units import GIB, KIB, MIB

_ANSWER_LIMIT_S = 10.0
_SLOW_LIMIT_S = 30.0  # what handles all of memory: and so much more for each GiB
_SLOW_LIMIT_S_PER_GIB = 10.0
_STATE_LIMIT_BYTES = 16 * MIB  # of all but the ledgers, which take 4 bytes a page
_SINK_BYTES = 256 * KIB

_R = TypeVar("_R")


class SyntheticGuest(Guest):
    """A guest process with memory, a writer and devices; see :class:`~parmig.guests.base.Guest`.

    Every method that asks the process raises GuestError when that is gone or does not answer in time.

    Args:
        options: what guest.
        incoming: True: memory is empty and state is to come; the guest cannot run before.

    Raises:
        GuestError: the process could not be started or did not come up.
    """

    def __init__(self, options: SyntheticOptions, *, incoming: bool = False) -> None:
        self.options = options
        self._incoming = incoming
        self._running = False
        self._paused_here = False
        self._accepting = False
        self._log_kind = ""
        self._state = bytearray()
        self._state_limit_bytes = _STATE_LIMIT_BYTES + options.memory_bytes // PAGE_BYTES * 4
        self._slow_limit_s = _SLOW_LIMIT_S + _SLOW_LIMIT_S_PER_GIB * options.memory_bytes / GIB
        self._fds: list[int] = []
        self._memory: list[BlockMemory] = []
        self._bitmap_fd = -1
        self._process: GuestProcess | None = None
        try:
            self._create()
        except BaseException:
            self.close()
            raise

    def _create(self) -> None:
        blocks = block_layout(self.options)
        self._memory = [BlockMemory(block, self._create_file(block.name, block.size_bytes)) for block in blocks]
        self._bitmap_fd = self._create_file("dirty", bitmap_bytes([block.pages for block in blocks]))
        self._process = GuestProcess([memory.fd for memory in self._memory], self._bitmap_fd)
        self._ask(m.Start(self.options, self._incoming), m.Done, self._slow_limit_s)
        if self.options.running and not self._incoming:
            self._run()

    def _create_file(self, name: str, size_bytes: int) -> int:
        fd = os.memfd_create(f"parmig-{name}", os.MFD_CLOEXEC)
        self._fds.append(fd)
        os.ftruncate(fd, size_bytes)
        return fd

    def info(self) -> GuestInfo:
        """What the guest is."""
        return GuestInfo("synthetic", MACHINE, _monitor())

    def memory(self) -> Sequence[BlockMemory]:
        """Its blocks ``ram0`` and on, each in a memory file of its own that stays open until close()."""
        return self._memory

    def is_running(self) -> bool:
        """Whether the writer and the devices run now."""
        return self._running and self._process is not None and self._process.is_alive()

    # -- source ---------------------------------------------------------------------------------

    def start_dirty_log(self, kind: str) -> DirtyLog:
        """Begin to record writes by *kind*: ``auto``, ``pagemap``, ``bitmap`` or ``digest``.

        Raises:
            HostRefusedError: ``pagemap`` on a host that cannot track writes.
            GuestRefusedError: there is no such log.
        """
        kind, reason = choose_log(kind, self.options.tracker)
        found = self._ask(m.StartLog(kind), m.Segments).segments
        self._log_kind = kind
        pid = self._alive().pid if kind == "pagemap" else 0
        return DirtyLog(kind=kind, pid=pid, segments=found, reason=reason)

    def sync_dirty_log(self) -> None:
        """(``bitmap``) Add all writes made before the call to the shared bitmap."""
        if self._log_kind == "bitmap":
            self._ask(m.SyncLog(), m.Done)

    def dirty_bitmap_fd(self) -> int:
        """Descriptor of the shared bitmap, open until close()."""
        return self._bitmap_fd

    def stop_dirty_log(self) -> None:
        """End the recording. Fine when none is on or the process is gone: nothing of it is left then."""
        kind, self._log_kind = self._log_kind, ""
        if kind and self._process is not None:
            try:
                self._ask(m.StopLog(), m.Done)
            except GuestError:
                if self._process.is_alive():
                    raise

    def pause(self, sink: StateSink) -> int:
        """Stop between two ticks; nothing goes to *sink* yet.

        Returns:
            the instant of the stop, on the clock of ``time.monotonic_ns()``; of this call when it was paused.
        """
        # Before asking: a process that hangs past the limit may stop later, and resume_source() must undo that too.
        self._paused_here = self._paused_here or self._running
        stopped_ns = self._ask(m.Pause(), m.Done).value_ns
        self._running = False
        return stopped_ns

    def save_state(self, sink: StateSink) -> None:
        """Write the records of all devices to *sink*. Writes one page of RAM: the ring's indices.

        Raises:
            StatusError: the guest runs.
        """
        data = memoryview(self._ask(m.SaveState(), m.State, self._slow_limit_s).data)
        for start in range(0, len(data), _SINK_BYTES):
            sink.write(data[start : start + _SINK_BYTES])

    def resume_source(self) -> None:
        """Full speed, and running if :meth:`pause` had stopped it."""
        self.throttle(0)
        if self._paused_here:
            self._run()

    def can_throttle(self) -> bool:
        """Yes."""
        return True

    def throttle(self, percent: int) -> None:
        """Write at ``100 - percent`` % of the rate.

        Raises:
            UsageError: *percent* is not 0 to 99.
        """
        if not 0 <= percent <= 99:
            raise UsageError(f"throttle: expected 0 to 99 percent, found {percent}")
        self._ask(m.Throttle(percent), m.Done)

    # -- destination ----------------------------------------------------------------------------

    def prepare_incoming(self) -> None:
        """Make ready to take device state.

        Raises:
            StatusError: the guest was not opened as an incoming one, or has its state.
        """
        if not self._incoming:
            raise StatusError("expected a guest opened with incoming=True, found one with a state of its own")
        self._state.clear()
        self._accepting = True

    def write_state(self, data: memoryview) -> None:
        """Keep the next bytes of device state, copying them.

        Raises:
            StatusError: prepare_incoming() was not called.
            StateError: they are more than this guest's state can be.
        """
        if not self._accepting:
            raise StatusError("write_state: expected prepare_incoming() before")
        if len(self._state) + data.nbytes > self._state_limit_bytes:
            raise StateError(
                f"device state: expected at most {self._state_limit_bytes} bytes for this memory, "
                f"found {len(self._state) + data.nbytes} or more"
            )
        self._state += data

    def finish_load(self) -> None:
        """Load what was written; the guest stays paused.

        Raises:
            StatusError: prepare_incoming() was not called.
            StateError: the devices refused it.
        """
        if not self._accepting:
            raise StatusError("finish_load: expected prepare_incoming() before")
        self._accepting = False
        data = bytes(self._state)
        self._state.clear()
        self._ask(m.LoadState(data), m.Done, self._slow_limit_s)
        self._incoming = False

    def resume(self) -> int:
        """Run; StatusError when the guest waits for its state. Returns when it said that it runs."""
        self._run()
        return time.monotonic_ns()

    def discard(self) -> None:
        """Kill the process: this copy never runs. Its memory stays readable until close()."""
        self._running = self._accepting = False
        if self._process is not None:
            self._process.kill()

    # -- both -----------------------------------------------------------------------------------

    def watch_fd(self) -> int | None:
        """A pidfd of the process, open until close()."""
        return None if self._process is None else self._process.pidfd

    def close(self) -> None:
        """End the process and close all descriptors. Never raises; calling it twice is fine."""
        self._running = False
        process, self._process = self._process, None
        if process is not None:
            process.close()
        while self._fds:
            with contextlib.suppress(OSError):
                os.close(self._fds.pop())
        self._memory = []

    # -- for tests and the demonstration --------------------------------------------------------
    @property
    def pid(self) -> int:
        """Process id of the guest; GuestError when it is closed."""
        return self._alive().pid

    def check(self) -> None:
        """Compare memory with the account that device state holds of every write.

        Raises:
            StatusError: the guest runs.
            GuestError: pages are lost, stale or torn, or the ring's memory is; names the first few.
        """
        self._ask(m.Check(), m.Done, self._slow_limit_s)

    def punch(self, block: str, first_page: int, pages: int) -> None:
        """Give *pages* pages of *block* back to the host, as a balloon does; they read as zero.

        Raises:
            GuestError: no such block or pages, or pages of the ring device.
        """
        self._ask(m.Punch(block, first_page, pages), m.Done, self._slow_limit_s)

    def stats(self) -> SyntheticStats:
        """Counters as of now."""
        return self._ask(m.Ask(), m.Answer).stats

    def serial_text(self) -> str:
        """The last 64 KiB of the serial log: lines ``heartbeat NUMBER counter TICKS``, without a gap."""
        return self._ask(m.Ask(), m.Answer).serial_text

    def _run(self) -> None:
        self._ask(m.Run(), m.Done)
        self._running = True
        self._paused_here = False

    def _alive(self) -> GuestProcess:
        if self._process is None:
            raise GuestError("the synthetic guest is closed")
        return self._process

    def _ask(self, request: m.Request, expected: type[_R], limit_s: float = _ANSWER_LIMIT_S) -> _R:
        reply = self._alive().ask(request, limit_s)
        if not isinstance(reply, expected):
            raise GuestError(f"the synthetic guest answered {type(request).__name__} with {type(reply).__name__}")
        return reply


def _monitor() -> str:
    try:
        return f"parmig {version('parmig')}"
    except PackageNotFoundError:
        return "parmig"  # run from a checkout that is not installed


def open_synthetic(options: str, *, incoming: bool) -> SyntheticGuest:
    """The guest that ``synthetic:OPTIONS`` names; it owns a process until close().

    Raises:
        UsageError: bad options.
        GuestError: the process did not come up.
    """
    return SyntheticGuest(parse_options(options), incoming=incoming)
