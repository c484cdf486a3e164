# SPDX-License-Identifier: Apache-2.0
"""The control socket of a running command. Only its user and root may ask; a thread of its own answers."""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import TimeoutError as FutureTimeoutError

import msgspec

from parmig.engine.reporting.error_reports import describe_error
from parmig.engine.steering import run_directory
from parmig.engine.steering.desk import Desk
from parmig.engine.steering.steering_messages import (
    MAX_QUESTION_BYTES,
    Answer,
    AskCancel,
    AskChange,
    AskStatus,
    Done,
    NotDone,
    Question,
    ToldStatus,
    encode,
    read_question,
)
from parmig.errors import LimitExceededError, ParmigError, UsageError
from parmig.linux import sockets, trusted_files

_logger = logging.getLogger(__name__)

MAX_CLIENTS = 16
CHANGE_LIMIT_S = 2.0
"""How long a change may take. The loop makes it in its next turn, within a millisecond, unless the guest is busy."""

SEND_LIMIT_S = 1.0
"""A client that does not read its answer for this long is dropped."""


class SteeringServer:
    """Answers those who ask the command whose desk this is.

    Args:
        desk: of the engine; not owned.
        name: of the command: ``NAME.sock`` in the run directory.

    Raises:
        UsageError: another command has this name, or it is none.
        HostRefusedError: there is no directory for the socket.
    """

    def __init__(self, desk: Desk, name: str) -> None:
        run_directory.check_name(name)
        self._desk = desk
        self._file = name + run_directory.SUFFIX
        self._closing = False
        self._clients: dict[socket.socket, bytes] = {}
        with run_directory.opened_directory() as directory_fd:
            self._listener = self._listen(name, directory_fd)
            self._directory_fd = os.dup(directory_fd)
        self._selector = selectors.DefaultSelector()
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._wake_fd, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="parmig-steering", daemon=True)
        self._thread.start()

    def _listen(self, name: str, directory_fd: int) -> socket.socket:
        """Listen under a name of this process, and then take that of the command, so that nobody sees it half made."""
        with contextlib.suppress(OSError):
            taken = run_directory.connect(directory_fd, name, SEND_LIMIT_S)
            if taken is not None:
                taken.close()
                raise UsageError(f"a command {name!r} runs already; give another --name")
        hidden = f".{os.getpid()}{run_directory.SUFFIX}"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(hidden, dir_fd=directory_fd)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.setblocking(False)
            listener.bind(f"{trusted_files.name_of(directory_fd)}/{hidden}")
            os.chmod(hidden, 0o600, dir_fd=directory_fd)
            listener.listen(MAX_CLIENTS)
            os.rename(hidden, self._file, src_dir_fd=directory_fd, dst_dir_fd=directory_fd)
        except BaseException:
            listener.close()
            raise
        return listener

    def _run(self) -> None:
        while not self._closing:
            for key, _ in self._selector.select():
                if key.fileobj is self._listener:
                    self._accept()
                elif isinstance(key.fileobj, socket.socket):
                    self._hear(key.fileobj)

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return
        if len(self._clients) >= MAX_CLIENTS or not sockets.has_trusted_peer(client):
            client.close()
            return
        client.settimeout(SEND_LIMIT_S)
        self._clients[client] = b""
        self._selector.register(client, selectors.EVENT_READ)

    def _hear(self, client: socket.socket) -> None:
        try:
            data = client.recv(MAX_QUESTION_BYTES)
            *lines, left = (self._clients[client] + data).split(b"\n")
            self._clients[client] = left
            for line in lines:
                client.sendall(encode([self._answer(line)]))
            if data and len(left) <= MAX_QUESTION_BYTES:
                return
        except OSError:
            pass
        self._drop(client)

    def _answer(self, line: bytes) -> Answer:
        try:
            return self._do(read_question(line))
        except ParmigError as error:
            return NotDone(describe_error(error))

    def _do(self, question: Question) -> Answer:
        match question:
            case AskStatus():
                return ToldStatus(self._desk.status)
            case AskChange(change=change):
                _logger.info("asked to change %s", msgspec.json.encode(change).decode())
                try:
                    self._desk.wish(change).result(CHANGE_LIMIT_S)
                except FutureTimeoutError as error:
                    raise LimitExceededError(
                        f"the command did not make the change within {CHANGE_LIMIT_S:g} s; it may still make it"
                    ) from error
            case AskCancel():
                _logger.info("asked to cancel")
                self._desk.cancel()
        return Done()

    def _drop(self, client: socket.socket) -> None:
        self._selector.unregister(client)
        del self._clients[client]
        client.close()

    def close(self) -> None:
        """End the thread and all connections, and remove the socket."""
        self._closing = True
        os.eventfd_write(self._wake_fd, 1)
        self._thread.join()
        with contextlib.suppress(OSError):
            os.unlink(self._file, dir_fd=self._directory_fd)
        self._selector.close()
        for sock in (self._listener, *self._clients):
            sock.close()
        os.close(self._wake_fd)
        os.close(self._directory_fd)


@contextlib.contextmanager
def serving(desk: Desk, command: str, *, name: str = "", peer: str = "") -> Iterator[None]:
    """While the context is open, a running *command* answers those who ask.

    Without a directory for its socket it runs all the same.

    Args:
        desk: of its engine.
        name: by which it is asked; empty: made of the command and its process.
        peer: the address or the file, for the status.

    Raises:
        UsageError: as :class:`SteeringServer`.
    """
    process = os.getpid()
    name = name or f"{command}-{process}"
    desk.post(msgspec.structs.replace(desk.status, name=name, command=command, process=process, peer=peer))
    server = None
    try:
        server = SteeringServer(desk, name)
    except UsageError:
        raise
    except (ParmigError, OSError) as error:
        _logger.warning("nobody can ask or steer this command: %s", error)
    try:
        yield
    finally:
        if server is not None:
            server.close()
