# SPDX-License-Identifier: Apache-2.0
"""Device state without QEMU's migration: the guest is stopped, and ``xen-save-devices-state`` writes its devices.

The command is in every build of QEMU. It was made for Xen, which moves memory itself. No setting is changed, and
``cont`` takes everything back, disks included, at any moment before hand-over.
"""

from __future__ import annotations

import contextlib
import time

from parmig.errors import GuestError, StateError, StreamError
from parmig.guests.guest import StateSink
from parmig.guests.qemu.departure import Departure
from parmig.guests.qemu.fd_set import MemoryFile, remove_fdsets
from parmig.guests.qemu.hardware import Hardware
from parmig.guests.qemu.qemu_process import machine_type
from parmig.guests.qemu.qmp import Qmp
from parmig.guests.qemu.qmp_events import Listener
from parmig.guests.qemu.running import run
from parmig.stream.device_stream import opening, remainder

COMMAND = "xen-save-devices-state"

RAN = frozenset({"running", "suspended"})
"""States of ``query-status`` that ``stop`` ends. From QEMU 9.0 on that is also ``suspended``."""

SAVED_STATES = frozenset({"running", "paused", "prelaunch"})
"""States of ``query-status`` that can be moved: the command notes every guest as one that runs
(global_state_store_running), and QEMU's own migration notes the state as it is."""


class SavedDevices(Departure):
    """``state=devices``: a plain pause, then the devices in a file, made into a stream."""

    plain_pause = True

    def __init__(self, qmp: Qmp, hardware: Hardware) -> None:
        super().__init__(qmp, hardware)
        self._file: MemoryFile | None = None
        self._listener: Listener | None = None
        self._ran = False

    def pause(self, sink: StateSink) -> int:
        """Stop the guest, and compare its hardware, which QEMU lists right before."""
        self.started = True
        # The destination's QEMU begins to load now, beside the running guest: that takes it 2 to 4 ms.
        sink.write(opening(machine_type(self._qmp)))
        self._file = MemoryFile(self._qmp)
        self._listener = self._qmp.listen("STOP", "RESUME")
        self._ran = self._qmp.execute("query-status")["status"] in RAN
        self._hardware.ask()  # not after the pause: QEMU would save the devices 1 ms later
        status = self._qmp.submit("query-status")  # again, right before: another client may have stopped it
        stop = self._qmp.submit("stop")
        self._hardware.check()
        state = str(self._qmp.answer("query-status", status)["status"])
        self._ran = state in RAN
        self._qmp.answer("stop", stop)
        stopped_ns = time.monotonic_ns()
        while (event := self._listener.take()) is not None:
            if event.name == "STOP" and self._ran:
                stopped_ns = event.at_ns
        if state not in SAVED_STATES:
            raise GuestError(f"the guest is {state}, expected it to run or to be paused; use state=migrate to move it")
        return stopped_ns

    def ran_until_pause(self) -> bool:
        return self._ran

    def save(self, sink: StateSink, *, stays: bool) -> None:
        """Save the devices. If the guest does not stay, QEMU hands its disks over after that."""
        if self._file is None or self._listener is None:
            raise GuestError("QEMU is not paused by parmig, expected pause() before this call")
        self._qmp.execute(COMMAND, filename=self._file.name, live=not stays)
        event = self._listener.take()
        if event is not None and event.name == "RESUME":
            raise GuestError("another client of QEMU let the guest run while it was paused to be moved; try again")
        try:
            stream = remainder(self._file.read(), describe=stays)
        except StreamError as error:
            raise StateError(f"QEMU saved devices that cannot be moved: {error}; use state=migrate") from error
        sink.write(stream)

    def undo(self) -> int | None:
        try:
            if not self.started:
                return None
            ran_ns = self._run_again()
            remove_fdsets(self._qmp)
            self.started = False
            return ran_ns
        finally:
            self.close()

    def _run_again(self) -> int | None:
        if not self._ran:
            # QEMU from 10.0 on takes the disks of a paused guest back; an older one does at its operator's cont.
            with contextlib.suppress(GuestError):
                self._qmp.execute("blockdev-set-active", active=True)
            return None
        return run(self._qmp) if self._qmp.execute("query-status")["status"] == "paused" else None

    def undo_unfinished(self, *, running: bool, paused: bool) -> None:
        self._ran, self.started = running and paused, True
        self.undo()

    def finish(self) -> None:
        remove_fdsets(self._qmp)
        self.close()

    def close(self) -> None:
        """Give the file back and stop listening."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._listener is not None:
            self._listener.__exit__()
            self._listener = None
