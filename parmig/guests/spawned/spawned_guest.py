# SPDX-License-Identifier: Apache-2.0
"""The engine's view of a guest whose monitor is a process that parmig starts."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np

from parmig.errors import GuestError, StateError, StatusError, UsageError
from parmig.guests.guest import DirtyLog, StateSink
from parmig.guests.pulse import Pulse, Pulsing
from parmig.guests.spawned import monitor_messages as m
from parmig.guests.spawned.owned_monitor import OwnedMonitor
from parmig.units import KIB

_SINK_BYTES = 256 * KIB

GO_ON_S = 0.5
"""How long a guest runs at the destination before its memory is checked."""


class SpawnedGuest(OwnedMonitor, Pulsing):
    """A monitor's process, its memory and its dirty bitmap; see :class:`~parmig.guests.guest.Guest`.

    It is made with the arguments of :class:`OwnedMonitor`, and raises the same errors.
    """

    def is_running(self) -> bool:
        """Whether virtual CPUs and devices run now."""
        return self._running and self._process is not None and self._process.is_alive()

    # -- source ---------------------------------------------------------------------------------

    def start_dirty_log(self, kind: str) -> DirtyLog:
        """Begin to record writes by *kind*: ``auto`` or what the monitor knows.

        Raises:
            HostRefusedError: this host does not allow it.
            GuestRefusedError: there is no such log.
        """
        if kind == "none":
            return DirtyLog("none")
        log = self._ask(m.StartLog(kind), m.Log).log
        self._logging = log.kind
        return log

    def sync_dirty_log(self) -> None:
        """(``bitmap``) Add all writes made before the call to the shared bitmap."""
        if self._logging == "bitmap":
            self._ask(m.SyncLog(), m.Done)

    def dirty_bitmap_fd(self) -> int:
        """Descriptor of the shared bitmap, open until close()."""
        return self._bitmap_fd

    def stop_dirty_log(self) -> None:
        """End the recording, if one is on. If the process is gone, its recording is gone too."""
        logging, self._logging = self._logging, ""
        if logging and self._process is not None:
            try:
                self._ask(m.StopLog(), m.Done)
            except GuestError:
                if self._process.is_alive():
                    raise

    def pause(self, sink: StateSink) -> int:
        """Stop the guest. Nothing goes to *sink* yet. If it was paused, the instant is that of this call."""
        return self._stop()

    def _stop(self) -> int:
        # Noted before the request: a process that hangs past the limit may stop later, which must be undone too.
        self._paused_here = self._paused_here or self._running
        stopped_ns = self._ask(m.Pause(), m.Done).value_ns
        self._running = False
        return stopped_ns

    def save_state(self, sink: StateSink) -> None:
        """Write the state of all devices to *sink*.

        Raises:
            StatusError: the guest runs.
        """
        data = memoryview(self._ask(m.SaveState(), m.State, self._slow_limit_s).data)
        for start in range(0, len(data), _SINK_BYTES):
            sink.write(data[start : start + _SINK_BYTES])

    def resume_source(self) -> None:
        """End the throttle, and let the guest run if :meth:`pause` stopped it, even if the throttle cannot be ended."""
        try:
            self.throttle(0)
        finally:
            if self._paused_here:
                self.resume()

    def quit(self) -> None:
        """End the process; its memory stays readable until close()."""
        self.discard()

    def can_throttle(self) -> bool:
        return True

    def throttle(self, percent: int) -> None:
        """Run ``100 - percent`` % of the time.

        Raises:
            UsageError: *percent* is not 0 to 99.
        """
        if not 0 <= percent <= 99:
            raise UsageError(f"the guest cannot be throttled by {percent} percent, expected 0 to 99")
        self._ask(m.Throttle(percent), m.Done)

    # -- destination ----------------------------------------------------------------------------

    def prepare_incoming(self) -> None:
        """Prepare to take device state.

        Raises:
            StatusError: the guest was not opened with ``incoming=True``, or already has its state.
        """
        if not self._incoming:
            raise StatusError("this guest has its own state, expected one that was opened with incoming=True")
        self._state.clear()
        self._accepting = True

    adopts_memory = True

    def adopt_memory(self, files: Mapping[str, int]) -> None:
        """Start the process anew, on *files*.

        Raises:
            StatusError: the guest was not opened with ``incoming=True``, or already has its state.
        """
        if not self._incoming:
            raise StatusError("this guest has its own memory, expected one that was opened with incoming=True")
        accepting = self._accepting
        self.discard()  # it has nothing to save
        self._release()
        self._start(files)
        self._accepting = accepting

    def write_state(self, data: memoryview) -> None:
        """Copy the next bytes of device state.

        Raises:
            StatusError: prepare_incoming() was not called.
            StateError: the device state is larger than this guest's can be.
        """
        if not self._accepting:
            raise StatusError("write_state() was called too early, expected prepare_incoming() before it")
        if len(self._state) + data.nbytes > self._state_limit_bytes:
            raise StateError(
                f"the device state has {len(self._state) + data.nbytes} bytes or more, "
                f"expected at most {self._state_limit_bytes} for this guest"
            )
        self._state += data

    def finish_load(self) -> None:
        """Load what was written; the guest stays paused.

        Raises:
            StatusError: prepare_incoming() was not called.
            StateError: a device refused it.
        """
        if not self._accepting:
            raise StatusError("finish_load() was called too early, expected prepare_incoming() before it")
        self._accepting = False
        data = bytes(self._state)
        self._state.clear()
        self._ask(m.LoadState(data), m.Done, self._slow_limit_s)
        self._incoming = False

    def resume(self) -> int:
        """Run. Raises StatusError if the guest waits for its state."""
        since_ns = self._ask(m.Run(), m.Done).value_ns
        self._running = True
        self._paused_here = False
        return since_ns

    def self_check(self) -> bool:
        time.sleep(GO_ON_S)
        if self.is_running():
            self._stop()
        self.check()
        return True

    def discard(self) -> None:
        """Kill the process: this copy never runs. Its memory stays readable until close()."""
        self._running = self._accepting = False
        if self._process is not None:
            self._process.kill()

    # -- what the guest feels -------------------------------------------------------------------

    def pulse(self, since_ns: int = 0) -> Pulse:
        taken = self._ask(m.TakePulse(since_ns), m.PulseTaken)
        return Pulse(np.frombuffer(taken.at_ns, "<i8"), np.frombuffer(taken.pages, "<i8"), taken.asked_bytes_per_s)

    # -- for tests and the demonstration --------------------------------------------------------

    def check(self) -> None:
        """Compare memory with what the device state says about it.

        Raises:
            StatusError: the guest runs.
            GuestError: pages are lost, stale or torn; the message names them.
        """
        self._ask(m.Check(), m.Done, self._slow_limit_s)

    def serial_text(self) -> str:
        """The last lines of the serial log."""
        return self._ask(m.Ask(), m.Answer).serial_text
