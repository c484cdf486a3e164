# SPDX-License-Identifier: Apache-2.0
"""Asks the running commands of this user."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from typing import Self

from parmig.engine.reporting.change import Change
from parmig.engine.steering import run_directory
from parmig.engine.steering.engine_status import EngineStatus
from parmig.engine.steering.steering_messages import (
    MAX_ANSWER_BYTES,
    Answer,
    AskCancel,
    AskChange,
    AskStatus,
    Done,
    NotDone,
    Question,
    ToldStatus,
    encode,
    read_answer,
)
from parmig.errors import ParmigError, PeerLostError, PeerUnreachableError, ProtocolError, UsageError, by_name

LIMIT_S = 5.0
"""How long an answer may take. A command answers within milliseconds, unless its host is out of processor time."""


class SteeringClient:
    """A connection to the running command *name*. A context manager.

    Raises:
        PeerUnreachableError: no such command runs.
    """

    def __init__(self, name: str) -> None:
        run_directory.check_name(name)
        self.name = name
        with run_directory.opened_directory() as directory_fd:
            try:
                sock = run_directory.connect(directory_fd, name, LIMIT_S)
            except OSError as error:
                raise PeerUnreachableError(f"{name} does not take a connection: {error}") from error
        if sock is None:
            raise PeerUnreachableError(f"no command {name!r} runs here; parmig status lists those that do")
        self._sock: socket.socket = sock
        self._left = b""

    def status(self) -> EngineStatus:
        """How far the command is.

        Raises:
            PeerLostError: it has ended.
        """
        answer = self._ask(AskStatus())
        if not isinstance(answer, ToldStatus):
            raise ProtocolError(f"{self.name} answered {type(answer).__name__}, expected its status")
        return answer.status

    def change(self, change: Change) -> None:
        """Make *change*; it is in force when this returns.

        Raises:
            ParmigError: the command cannot, for the reason that the error gives.
            PeerLostError: it has ended.
        """
        self._ask(AskChange(change))

    def cancel(self) -> None:
        """Make the command cancel.

        Raises:
            PeerLostError: it has ended.
        """
        self._ask(AskCancel())

    def _ask(self, question: Question) -> Answer:
        try:
            self._sock.sendall(encode([question]))
            answer = read_answer(self._line())
        except OSError as error:
            raise PeerLostError(f"{self.name} has ended, or does not answer: {error.strerror or error}") from error
        if isinstance(answer, NotDone):
            raise by_name(answer.error.type)(f"{self.name}: {answer.error.message}")
        assert isinstance(answer, ToldStatus | Done)
        return answer

    def _line(self) -> bytes:
        deadline = time.monotonic() + LIMIT_S
        while b"\n" not in self._left:
            self._sock.settimeout(max(0.01, deadline - time.monotonic()))
            data = self._sock.recv(1 << 16)
            if not data:
                raise PeerLostError(f"{self.name} has ended")
            self._left += data
            if len(self._left) > MAX_ANSWER_BYTES:
                raise ProtocolError(f"{self.name} answered with over {MAX_ANSWER_BYTES} bytes")
        line, _, self._left = self._left.partition(b"\n")
        return line

    def close(self) -> None:
        """End the connection. Calling it twice is fine."""
        self._sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def running() -> list[EngineStatus]:
    """How far each running command of this user is. Sockets of commands that were killed are removed."""
    statuses = []
    for name in run_directory.names():
        try:
            with SteeringClient(name) as client:
                statuses.append(client.status())
        except PeerUnreachableError:
            _remove(name)
        except ParmigError:
            continue  # it ended meanwhile
    return statuses


def the_only_one(name: str) -> str:
    """*name*, or the name of the only command that runs if it is empty.

    Raises:
        UsageError: no command runs, or there are several.
    """
    if name:
        return name
    found = [status.name for status in running()]
    if not found:
        raise UsageError("no parmig command of this user runs here")
    if len(found) > 1:
        raise UsageError(f"there are several: {', '.join(found)}; name one")
    return found[0]


def _remove(name: str) -> None:
    with run_directory.opened_directory() as directory_fd, contextlib.suppress(OSError):
        os.unlink(name + run_directory.SUFFIX, dir_fd=directory_fd)
