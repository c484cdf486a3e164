# SPDX-License-Identifier: Apache-2.0
"""QEMU's own migration on the destination: loads device state, and keeps the guest paused until it is resumed."""

from __future__ import annotations

import select
import socket
import time

from parmig.errors import GuestError, StateError
from parmig.guests.qemu.fd_stream import FD_NAME, failure_words, make_stream
from parmig.guests.qemu.qemu_process import has_ended, quit_qemu
from parmig.guests.qemu.qmp import Qmp
from parmig.guests.qemu.qmp_events import Event, Listener
from parmig.guests.qemu.running import run
from parmig.guests.qemu.settings import DESTINATION_CAPABILITIES, DESTINATION_PARAMETERS, RESTORE_CAPABILITIES, Settings

EXIT_ON_ERROR = (9, 1)
"""From this QEMU on, a failed load can leave QEMU alive to say why (qapi/migration.json)."""


class Incoming:
    """One migration into a QEMU that was started with ``-incoming defer``.

    Args:
        qmp: the session; used, not owned.
        settings: the same.

    Attributes:
        given: whether QEMU got any state. If so, it cannot be used for another attempt.
        resumed: whether the guest was resumed.
    """

    def __init__(self, qmp: Qmp, settings: Settings) -> None:
        self._qmp = qmp
        self._settings = settings
        self._limit_s = qmp.limit_s
        self._stream: socket.socket | None = None
        self._listener: Listener | None = None
        self.given = False
        self.resumed = False

    def prepare(self, *, shares_memory: bool) -> None:
        """Change the settings, and see to it that the guest does not run by itself after loading.

        Args:
            shares_memory: the stream leaves out shared memory and says so (``x-ignore-shared``); else it holds all
                that QEMU is to load, and QEMU leaves alone what is not in it.

        Raises:
            GuestError: QEMU refuses or is gone.
        """
        capabilities = DESTINATION_CAPABILITIES if shares_memory else RESTORE_CAPABILITIES
        self._settings.apply(capabilities, DESTINATION_PARAMETERS)
        # During inmigrate, stop only clears the flag that a missing -S sets (qmp_stop in monitor/qmp-cmds.c).
        self._qmp.execute("stop")

    def write(self, data: memoryview) -> None:
        """Give *data* to QEMU; the first bytes start its migration.

        Raises:
            StateError: QEMU refused what it read.
            GuestError: QEMU is gone, or took nothing for the session's limit.
        """
        stream = self._stream or self._start()
        poll = select.poll()
        poll.register(stream, select.POLLOUT)
        view = data.cast("B")
        while view:
            try:
                view = view[stream.send(view) :]
            except BlockingIOError:
                if not poll.poll(self._limit_s * 1000):
                    raise GuestError(f"QEMU read no device state for {self._limit_s:g} s and was given up") from None
            except OSError as error:
                raise StateError(f"QEMU stopped reading device state: {failure_words(self._qmp)}") from error

    def _start(self) -> socket.socket:
        self._listener = self._qmp.listen("MIGRATION", "RESUME")
        self._stream = make_stream(self._qmp)
        self.given = True
        options = {"exit_on_error": False} if self._qmp.version[:2] >= EXIT_ON_ERROR else {}
        self._qmp.execute("migrate-incoming", uri=f"fd:{FD_NAME}", **options)
        return self._stream

    def finish(self) -> None:
        """All is written: wait until QEMU has loaded it. The guest is paused then.

        Raises:
            StateError: QEMU could not load it, or began to run.
        """
        if self._stream is None or self._listener is None:
            raise StateError("no device state arrived, expected some before the end")
        self._stream.shutdown(socket.SHUT_WR)
        deadline = time.monotonic() + self._limit_s
        while (event := self._next_event(self._listener, deadline)).status != "completed":
            if event.name == "RESUME":
                self._qmp.execute("stop")
                raise StateError(
                    "QEMU ran the guest by itself after loading it, and parmig stopped it; start QEMU with -S"
                )
            if event.status == "failed":
                raise StateError(f"QEMU could not load the device state: {failure_words(self._qmp)}")

    def _next_event(self, listener: Listener, deadline: float) -> Event:
        try:
            return listener.get(deadline - time.monotonic())
        except GuestError as error:
            # QEMU before 9.1 ends if it cannot load, and reports the reason only on its standard error.
            raise StateError(f"QEMU did not load the device state: {failure_words(self._qmp)}") from error

    def resume(self) -> int:
        """Run.

        Returns:
            when the guest ran, on the clock of ``time.monotonic_ns()``.

        Raises:
            GuestError: QEMU cannot; the message has its words.
        """
        ran_ns = run(self._qmp)
        self.resumed = True
        return ran_ns

    def discard(self, pidfd: int) -> None:
        """End QEMU if it was given any state; else set its settings back, so that it is ready for another try.

        Args:
            pidfd: of QEMU; used, not owned.

        Raises:
            GuestError: it does not go, not even by SIGKILL, or refuses.
        """
        if self.given and not self.resumed:
            quit_qemu(self._qmp, pidfd)
            return
        try:
            self._settings.restore()
        except GuestError:
            # A connection ends a moment before its process does; one that is gone never runs.
            if not has_ended(pidfd, within_s=0.5):
                raise

    def close(self) -> None:
        """Close the stream and stop listening. Never raises; calling it twice is fine."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        if self._listener is not None:
            self._listener.__exit__()
            self._listener = None
