# SPDX-License-Identifier: Apache-2.0
"""QMP without asyncio: ask QEMU, hand it a descriptor, wait for its events.

Owns the connection, and a daemon thread with the event loop on which the library ``qemu.qmp`` runs.
Knows nothing of migration. A session is used by one thread at a time; only :meth:`Qmp.abort` may come from another.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

from qemu.qmp import ExecuteError, Message, QMPClient, QMPError, Runstate

from parmig.errors import GuestError, GuestRefusedError
from parmig.guests.qemu.qmp_events import Event, Listener
from parmig.linux import sockets, trusted_files
from parmig.units import NS_PER_S

T = TypeVar("T")

CONNECT_LIMIT_S = 5.0
"""How long QEMU may take to greet. It greets at once (below 1 ms) unless another client holds the socket."""

CLOSE_LIMIT_S = 2.0
"""How long an orderly end of the connection may take before it is simply dropped."""

# The library logs every refused connection as an error. The exceptions of this module already have that text.
logging.getLogger("qemu.qmp").addHandler(logging.NullHandler())


class Qmp:
    """A QMP session over a unix socket.

    Args:
        path: the socket that QEMU listens on, option ``-qmp unix:PATH,server=on,wait=off``.
        limit_s: how long one command may take, in seconds.

    Attributes:
        peer_pid: the process that listens on the socket (SO_PEERCRED), in this process's pid namespace;
            the kernel translates it, so it is right for a QEMU in a container or a chroot too.
        version: QEMU's (major, minor, micro).

    Raises:
        GuestRefusedError: no socket, no listener, not a QMP server, or another client holds it.
    """

    def __init__(self, path: str, limit_s: float = 30.0) -> None:
        self.path = path
        self.limit_s = limit_s
        self._listeners: list[Listener] = []
        self._lost: str | None = None
        self._aborted = False
        self._waiting: Future[Any] | None = None
        sock = _connect(path)
        self.peer_pid, _ = sockets.peer_of(sock)
        self._client = QMPClient("parmig")
        # The library's own listener keeps all events for ever; this one passes them on and keeps none.
        self._client.events.event_filter = self._dispatch
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="parmig-qmp", daemon=True)
        self._thread.start()
        try:
            self._greet(sock)
        except BaseException:
            self.close()
            sock.close()
            raise
        numbers = self.execute("query-version")["qemu"]
        self.version: tuple[int, int, int] = (numbers["major"], numbers["minor"], numbers["micro"])

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _greet(self, sock: socket.socket) -> None:
        limit_s = min(self.limit_s, CONNECT_LIMIT_S)
        try:
            self._await(self._client.connect(sock), limit_s)
        except TimeoutError as error:
            raise GuestRefusedError(
                f"{self.path}: no QMP greeting within {limit_s:g} s; another client probably holds the socket, and QMP "
                "serves one at a time; close that client, or give QEMU a second -qmp unix:PATH,server=on,wait=off"
            ) from error
        except QMPError as error:
            raise GuestRefusedError(
                f"{self.path} is not a QMP server: {error}; give QEMU -qmp unix:PATH,server=on,wait=off"
            ) from error
        asyncio.run_coroutine_threadsafe(self._watch(), self._loop)

    def _await(self, work: Coroutine[Any, Any, T], limit_s: float) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(limit_s)
        except BaseException:
            future.cancel()
            raise

    async def _watch(self) -> None:
        """Wake all waiters when the connection ends, so that they notice a dead QEMU at once."""
        while self._client.runstate is Runstate.RUNNING:
            await self._client.runstate_changed()
        self._lost = "the connection was closed"
        for listener in tuple(self._listeners):
            listener.put(None)

    def _dispatch(self, message: Message) -> bool:
        arrived_ns = time.monotonic_ns()
        stamp: Any = message.get("timestamp", {})
        raised_ns = stamp.get("seconds", -1) * NS_PER_S + stamp.get("microseconds", 0) * 1000
        # QEMU stamps with the wall clock (docs/interop/qmp-spec). Its age there is its age on the other
        # clock; an age that cannot be (the clock was set meanwhile, or -1: no stamp) counts as none.
        age_ns = time.time_ns() - raised_ns
        if not 0 <= age_ns < self.limit_s * NS_PER_S:
            age_ns = 0
        data: Any = message.get("data", {})
        event = Event(str(message["event"]), data, arrived_ns - age_ns)
        for listener in tuple(self._listeners):
            listener.put(event)
        return False

    def check(self, doing: str) -> None:
        """Raise if the connection is gone.

        Raises:
            GuestError: it is, or :meth:`abort` was called; *doing* is in the message.
        """
        self._check_aborted(doing)
        if self._lost is not None:
            raise GuestError(f"{doing}: QEMU at {self.path} (process {self.peer_pid}) is gone: {self._lost}")

    def _check_aborted(self, doing: str) -> None:
        if self._loop.is_closed():
            raise GuestError(f"{doing}: the session with QEMU at {self.path} was closed")
        if self._aborted:
            raise GuestError(
                f"{doing}: parmig gave up, because QEMU at {self.path} (process {self.peer_pid}) did not answer"
            )

    def abort(self) -> None:
        """Make every wait for QEMU fail, now and until :meth:`go_on`. It may be called from any thread."""
        self._aborted = True
        waiting = self._waiting  # set before its waiter reads _aborted, so one of the two sees the other
        if waiting is not None:
            waiting.cancel()
        for listener in tuple(self._listeners):
            listener.put(None)

    def go_on(self) -> None:
        """The session may be used again after :meth:`abort`."""
        self._aborted = False

    def listen(self, *names: str) -> Listener:
        """Queue the events called *names* from now on. Call it before the command that causes them."""
        listener = Listener(self, names)
        self._listeners.append(listener)
        return listener

    def forget(self, listener: Listener) -> None:
        """Queue nothing more for *listener*."""
        with contextlib.suppress(ValueError):
            self._listeners.remove(listener)

    def submit(self, command: str, /, **arguments: Any) -> Future[Any]:
        """Issue *command* without waiting; give the result to :meth:`answer`.

        Raises:
            GuestError: :meth:`abort` was called.
        """
        self._check_aborted(command)
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        return asyncio.run_coroutine_threadsafe(self._client.execute(command, named or None), self._loop)

    def answer(self, command: str, future: Future[T], limit_s: float | None = None) -> T:
        """What *command*, issued by :meth:`submit`, returned.

        Args:
            command: its name, for messages.
            future: what ``submit`` returned.
            limit_s: how long to wait, in seconds; the session's limit when None.

        Raises:
            GuestError: QEMU refused (the message has its words), did not answer in time, or is gone.
        """
        limit_s = self.limit_s if limit_s is None else limit_s
        self._waiting = future
        try:
            self._check_aborted(command)
            return future.result(limit_s)
        except CancelledError as error:
            raise GuestError(f"{command}: parmig gave up, because QEMU at {self.path} did not answer") from error
        except ExecuteError as error:
            raise GuestError(f"QEMU refused {command}: {error.error.error.desc}") from error
        except TimeoutError as error:
            raise GuestError(f"QEMU did not answer {command} within {limit_s:g} s") from error
        except (QMPError, OSError, EOFError) as error:
            raise GuestError(f"QEMU at {self.path} (process {self.peer_pid}) was lost at {command}: {error}") from error
        finally:
            self._waiting = None
            future.cancel()

    def execute(self, command: str, /, *, limit_s: float | None = None, **arguments: Any) -> Any:
        """Run *command* and return its result. Underscores in argument names become hyphens.

        Args:
            limit_s: how long to wait, in seconds; the session's limit when None.

        Raises:
            GuestError: QEMU refused (the message has its words), did not answer in time, or is gone.
        """
        return self.answer(command, self.submit(command, **arguments), limit_s)

    def monitor(self, line: str) -> str:
        """Run *line* on the human monitor and return what it printed.

        Raises:
            GuestError: as :meth:`execute`.
        """
        return str(self.execute("human-monitor-command", command_line=line))

    def execute_with_fd(self, command: str, fd: int, /, **arguments: Any) -> Any:
        """Run *command*, which takes a copy of *fd* (``getfd``, ``add-fd``); the caller keeps its own.

        Raises:
            GuestError: as :meth:`execute`.
        """

        async def give() -> object:
            self._client.send_fd_scm(fd)
            return await self._client.execute(command, arguments)

        return self.answer(command, asyncio.run_coroutine_threadsafe(give(), self._loop))

    def close(self) -> None:
        """End the session and its thread. Never raises; calling it twice is fine."""
        if self._loop.is_closed():
            return
        self._lost = self._lost or "the session was closed"
        with contextlib.suppress(Exception):
            self._await(self._client.disconnect(), CLOSE_LIMIT_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CLOSE_LIMIT_S)
        if not self._thread.is_alive():
            self._loop.close()


def _connect(path: str) -> socket.socket:
    """Connect to the socket at *path*, if nobody but its owner can have made it."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(CONNECT_LIMIT_S)
    try:
        entry = trusted_files.find(path)
        try:
            sock.connect(trusted_files.name_of(entry.fd))
        finally:
            os.close(entry.fd)
        if entry.shared_folder and not sockets.has_trusted_peer(sock):
            _, user = sockets.peer_of(sock)
            raise PermissionError(
                errno.EPERM,
                f"user {user} listens there, and everyone may write to {entry.shared_folder}, expected root or user "
                f"{os.geteuid()}",
            )
    except TimeoutError as error:
        sock.close()
        raise GuestRefusedError(
            f"the QMP socket {path} accepts no client; another client holds it; close that client"
        ) from error
    except OSError as error:
        sock.close()
        if error.errno == errno.EPERM:
            raise GuestRefusedError(
                f"the QMP socket {path} is not trusted: {error.strerror}; have QEMU listen in a folder that only its "
                "user may write to, or run parmig as that user"
            ) from error
        raise GuestRefusedError(
            f"no QEMU answers at {path}: {error.strerror or error}; start QEMU with -qmp unix:{path},server=on,wait=off"
        ) from error
    sock.setblocking(False)
    return sock
