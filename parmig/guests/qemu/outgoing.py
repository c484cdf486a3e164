# SPDX-License-Identifier: Apache-2.0
"""QEMU's own migration on the source: small RAM while the guest runs, then the pause, then device state.

The stream comes through a socket pair, one end of which QEMU was given. It is read by the caller's thread.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

from parmig.errors import GuestError, ParmigError, StateError
from parmig.guests.guest import StateSink
from parmig.guests.qemu.departure import Departure
from parmig.guests.qemu.fd_stream import FD_NAME, failure_words, make_stream
from parmig.guests.qemu.hardware import Hardware
from parmig.guests.qemu.qmp import Qmp
from parmig.guests.qemu.qmp_events import Event, Listener, wait_readable
from parmig.guests.qemu.running import run
from parmig.guests.qemu.settings import SOURCE_CAPABILITIES, SOURCE_PARAMETERS, Settings
from parmig.units import KIB

READ_BYTES = 256 * KIB

CANCEL_STEP_S = 0.02
"""How often a slow cancel is checked. A cancel usually takes 3 ms."""

STOPPED_BY_MIGRATION = frozenset({"finish-migrate", "postmigrate"})
"""States of ``query-status`` of a guest that only QEMU's migration stopped."""

ENDED = frozenset({"completed", "failed", "cancelled"})
IDLE = ENDED | {"none", ""}
"""States of ``query-migrate`` in which no migration is under way."""


class Outgoing(Departure):
    """``state=migrate``: one migration out of QEMU, from before its start to its end or undoing."""

    plain_pause = False

    def __init__(self, qmp: Qmp, hardware: Hardware) -> None:
        super().__init__(qmp, hardware)
        self._limit_s = qmp.limit_s
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._stream: socket.socket | None = None
        self._listener: Listener | None = None
        self._was_running = False
        self._at_stop: Future[Any] | None = None

    def prepare(self, settings: Settings) -> None:
        settings.apply(SOURCE_CAPABILITIES, SOURCE_PARAMETERS)

    def foresee(self, settings: Settings) -> tuple[dict[str, bool], dict[str, Any]]:
        return settings.foresee(SOURCE_CAPABILITIES, SOURCE_PARAMETERS)

    def pause(self, sink: StateSink) -> int:
        """Start, let QEMU send its small RAM to *sink*, and return when it has stopped the guest."""
        stopped_ns = self._migrate_until_stop(sink)
        self._hardware.check()
        return stopped_ns

    def _migrate_until_stop(self, sink: StateSink) -> int:
        self._listener = self._qmp.listen("STOP", "RESUME", "MIGRATION")
        self._was_running = bool(self._qmp.execute("query-status")["running"])
        self._stream = make_stream(self._qmp)
        self.started = True
        try:
            self._qmp.execute("migrate", uri=f"fd:{FD_NAME}")
        except GuestError:
            with contextlib.suppress(GuestError):
                self._qmp.execute("closefd", fdname=FD_NAME)
            raise
        # QEMU takes no more devices now (qdev_device_add in system/qdev-monitor.c), and answers before it stops.
        self._hardware.ask()
        stopped_ns = None
        for event in self._pump(sink, GuestError):
            if event.name == "STOP" and self._was_running:  # else it is an older one, of whoever had paused the guest
                stopped_ns = event.at_ns
                self._at_stop = self._qmp.submit("query-status")  # not waited for here: it has time
            elif event.name == "RESUME":
                stopped_ns, self._at_stop, self._was_running = None, None, True
            elif event.status == "pre-switchover":
                return event.at_ns if stopped_ns is None else stopped_ns
        raise GuestError("QEMU ended its migration without stopping the guest")

    def ran_until_pause(self) -> bool:
        """By QEMU's events.

        At the last of them QEMU was asked whether it had stopped for its migration, or paused because another client
        asked for it.
        """
        asked, self._at_stop = self._at_stop, None
        if asked is not None:
            self._was_running = self._qmp.answer("query-status", asked)["status"] in STOPPED_BY_MIGRATION | {"running"}
        return self._was_running

    def save(self, sink: StateSink, *, stays: bool) -> None:
        """Let QEMU write the device state, and pass on the rest of the stream.

        QEMU gives its disks away in any case; ``cont`` takes them back.
        """
        command = "migrate-continue"
        # Not waited for here: QEMU may write as soon as it has the command.
        answer = self._qmp.submit(command, state="pre-switchover")
        for _ in self._pump(sink, StateError):
            pass
        self._qmp.answer(command, answer)

    def _pump(self, sink: StateSink, failure: type[ParmigError]) -> Iterator[Event]:
        """Pass the stream on, and yield QEMU's events as they come, until completed and all is read.

        Raises *failure* if QEMU reports one.
        """
        if self._stream is None or self._listener is None:
            raise GuestError("QEMU does not migrate yet, expected pause() before this call")
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(self._stream, select.POLLIN)
        ended = completed = False
        while not (ended and completed):
            ready = dict(poll.poll(self._limit_s * 1000))
            if not ready:
                raise GuestError(f"QEMU's migration neither moved nor ended within {self._limit_s:g} s")
            if self._stream.fileno() in ready and not self._read(sink):
                poll.unregister(self._stream)
                ended = True
            while self._listener.fileno() in ready and (event := self._listener.take()) is not None:
                if event.status in ("failed", "cancelled"):
                    raise failure(f"QEMU's migration {event.status}: {failure_words(self._qmp)}")
                completed = completed or event.status == "completed"
                yield event

    def _read(self, sink: StateSink) -> bool:
        """Pass on what the stream holds now; False at its end."""
        assert self._stream is not None
        try:
            count = self._stream.recv_into(self._buffer)
        except BlockingIOError:
            return True
        except ConnectionResetError:
            return False
        if count:
            sink.write(self._buffer[:count])
        return count > 0

    def undo(self) -> int | None:
        try:
            if not self.started:
                return None
            self._cancel()
            ran_ns = self._run_again()
            self.started = False
            return ran_ns
        finally:
            self.close()

    def undo_unfinished(self, *, running: bool, paused: bool) -> None:
        if (
            not paused
            and self._status() in IDLE
            and self._qmp.execute("query-status")["status"] not in (STOPPED_BY_MIGRATION)
        ):
            return
        self._was_running, self.started = running, True
        self.undo()

    def _cancel(self) -> None:
        deadline = time.monotonic() + self._limit_s
        if self._status() in IDLE:
            return
        self._qmp.execute("migrate_cancel")
        # A writer that QEMU waits for is freed by the cancel itself (it shuts its end down). The state is
        # asked for, too, because the event may have come, and been taken, before.
        while (status := self._status()) not in IDLE:
            if self._listener is not None and self._listener.take() is None:
                wait_readable(time.monotonic() + CANCEL_STEP_S, self._listener)
            if status == "cancelling":
                # QEMU 7.2 hangs with the guest paused if the cancel comes in the millisecond before pre-switchover:
                # it then waits for this command and does not report it. Sending it too often is harmless
                # (migration_maybe_pause in migration/migration.c).
                with contextlib.suppress(GuestError):
                    self._qmp.execute("migrate-continue", state="cancelling")
            if time.monotonic() > deadline:
                raise GuestError(f"QEMU did not cancel its migration within {self._limit_s:g} s")

    def _status(self) -> str:
        return str(self._qmp.execute("query-migrate").get("status", ""))

    def _run_again(self) -> int | None:
        """QEMU resumes by itself after a cancel, but not after completion and some failures."""
        if not self.ran_until_pause():
            return None
        state = self._qmp.execute("query-status")
        if state["running"] or state["status"] not in STOPPED_BY_MIGRATION | {"paused"}:
            return None
        return run(self._qmp)

    def close(self) -> None:
        """Close the stream and stop listening."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        if self._listener is not None:
            self._listener.__exit__()
            self._listener = None
