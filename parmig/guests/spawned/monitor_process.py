# SPDX-License-Identifier: Apache-2.0
"""The owner's view of a monitor's process: starts it, sends requests, watches it and ends it. Every wait has a limit.

parmig's fork server makes the process, so it has none of the owner's threads and sockets. It ends with the pipe, with
the fork server, or by SIGKILL from close().
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import connection as mp_connection

import msgspec

from parmig.errors import GuestError, by_name
from parmig.guests.spawned import monitor_messages as m
from parmig.processes import start_process

_IO_LIMIT_S = 10
_END_LIMIT_S = 2.0


class MonitorProcess:
    """A running monitor, and the owner's end of its pipe.

    Args:
        program: ``module:function`` that runs there.
        kind: kind of guest, for messages: ``kvm``, ``synthetic``.
        fds: handed to the process as duplicates; the caller keeps its own.

    Attributes:
        pid: its process id.
        pidfd: becomes readable when it ends; valid until close().

    Raises:
        HostRefusedError: this host cannot start it.
        GuestError: it ended at its start.
    """

    def __init__(self, program: str, kind: str, fds: Sequence[int]) -> None:
        self._guest = f"the {kind} guest"
        self._number = 0
        self._decoder = msgspec.msgpack.Decoder(m.Response)
        self.pidfd = -1
        self._process, self._pipe = start_process(program, "parmig-guest", b"", fds)
        self.pid: int = self._process.pid
        try:
            _limit_io(self._pipe.fileno())
            self.pidfd = os.pidfd_open(self.pid)
        except OSError as error:
            self.close()
            raise GuestError(f"{self._guest} (process {self.pid}) ended while it started: {error}") from error

    def ask(self, request: m.Request, limit_s: float) -> m.Reply:
        """Send *request* and return its reply.

        Raises:
            GuestError: the process ended, or did not answer within *limit_s* seconds.
            ParmigError: the process answered with this error.
        """
        what = type(request).__name__
        deadline = time.monotonic() + limit_s
        self._number += 1
        try:
            self._pipe.send_bytes(msgspec.msgpack.encode(m.Question(self._number, request)))
            while True:
                left_s = max(0.0, deadline - time.monotonic())
                if not mp_connection.wait([self._pipe, self.pidfd], left_s):
                    raise GuestError(f"{self._guest} (process {self.pid}) did not answer {what} in {limit_s:g} s")
                # A process that ended may have answered before, so the pipe is read first.
                if not self._pipe.poll():
                    raise self._ended(what)
                response = self._decoder.decode(self._pipe.recv_bytes())
                if response.number == self._number:
                    break  # other numbers answer requests that were given up
        except BlockingIOError as error:
            raise GuestError(f"{self._guest} (process {self.pid}) hangs: {what} took {_IO_LIMIT_S} s") from error
        except (EOFError, OSError) as error:
            raise self._ended(what) from error
        if isinstance(response.body, m.Failed):
            raise by_name(response.body.error)(response.body.message)
        return response.body

    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self.pidfd >= 0 and not mp_connection.wait([self.pidfd], 0)

    def kill(self) -> None:
        """End the process now, and wait until it has ended. Never raises, also if it has ended before."""
        if self.pidfd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            mp_connection.wait([self.pidfd], _END_LIMIT_S)

    def close(self) -> None:
        """End the process and release everything. Never raises; may be called twice."""
        self._pipe.close()
        if self.pidfd >= 0:
            # The process ends between two requests when its pipe ends. One that hangs gets SIGKILL.
            if not mp_connection.wait([self.pidfd], _END_LIMIT_S):
                self.kill()
            os.close(self.pidfd)
            self.pidfd = -1
        with suppress(ValueError, OSError):  # closed before, or SIGKILL did not end the process
            self._process.join(_END_LIMIT_S)
            self._process.close()

    def _ended(self, what: str) -> GuestError:
        if not mp_connection.wait([self.pidfd], _END_LIMIT_S):
            return GuestError(f"{self._guest} (process {self.pid}) closed its pipe while asked for {what}")
        self._process.join(_END_LIMIT_S)
        code = self._process.exitcode
        how = f"exit code {code}" if code is None or code >= 0 else f"signal {-code} ({signal.Signals(-code).name})"
        return GuestError(f"{self._guest} (process {self.pid}) ended by {how} while asked for {what}")


def _limit_io(fd: int) -> None:
    """Give blocking reads and writes of the pipe a limit: a stopped process must not hold its owner for ever."""
    limit = struct.pack("@ll", _IO_LIMIT_S, 0)
    with socket.socket(fileno=os.dup(fd)) as pipe:
        pipe.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        pipe.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
