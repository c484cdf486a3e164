# SPDX-License-Identifier: Apache-2.0
"""Starts, instructs, watches and ends the worker processes of one side."""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Sequence
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import NamedTuple

import msgspec

from parmig import logs
from parmig.engine.messages import worker_messages
from parmig.engine.messages.message import encode
from parmig.engine.messages.worker_messages import Instruction, Stop, WorkerEvent, WorkerFailed, WorkerLog
from parmig.engine.reporting.report import ErrorReport
from parmig.errors import WorkerError
from parmig.linux.process import state_of as process_state
from parmig.processes import ChildProcess, describe_exit, end_process, start_process

_logger = logging.getLogger(__name__)

STOP_PATIENCE_S = 1.0
"""How long a worker may take to end after Stop before it is killed; it checks between batches."""


PIPE_LIMIT_S = 1
"""How long a worker may leave its pipe full, or a message unfinished. A worker reads its pipe between
batches, and while it waits for credit. One that does not is stuck, and waiting for it would block this side too."""


class PoolEvent(NamedTuple):
    """An event of one worker; its death is reported as a WorkerFailed."""

    worker: int
    event: WorkerEvent


class WorkerPool:
    """Workers of one kind, numbered from 0. A context manager: leaving it ends them all.

    Args:
        program: dotted name of the worker program, ``module:function``.
        name: what errors call these workers: ``send worker``.
    """

    def __init__(self, program: str, name: str) -> None:
        self._program = program
        self._name = name
        self._processes: list[ChildProcess] = []
        self._connections: list[Connection] = []
        self._poll = select.poll()  # Connection.poll() makes a selector each time: 20 µs for each worker instead of 1
        self._by_fd: dict[int, int] = {}
        self._started: dict[int, tuple[msgspec.Struct, Sequence[int], Sequence[str]]] = {}
        self._gone: set[int] = set()
        self._stuck: dict[int, str] = {}
        self._stopped: set[int] = set()

    def start(self, setup: msgspec.Struct, fds: Sequence[int], imports: Sequence[str] = ()) -> int:
        """Start one more worker; returns its number.

        Args:
            setup: what it is to do.
            fds: descriptors that it gets, duplicated.
            imports: modules that it will import only later; workers share the memory of what is named here.
        """
        worker = len(self._processes)
        process, connection = self._open(worker, setup, fds, imports)
        self._processes.append(process)
        self._connections.append(connection)
        return worker

    def replace(self, worker: int, **changes: object) -> None:
        """Start a worker in place of *worker*, whose death was reported. It is reaped before this returns.

        Args:
            changes: fields of the setup that are different for the new one, and for those that may follow it.
        """
        end_process(self._processes[worker], patience_s=0)
        self._connections[worker].close()
        self._gone.discard(worker)
        self._stuck.pop(worker, None)
        setup, fds, imports = self._started[worker]
        setup = msgspec.structs.replace(setup, **changes)
        self._processes[worker], self._connections[worker] = self._open(worker, setup, fds, imports)

    def _open(
        self, worker: int, setup: msgspec.Struct, fds: Sequence[int], imports: Sequence[str]
    ) -> tuple[ChildProcess, Connection]:
        self._started[worker] = (setup, fds, imports)
        kind = self._name.split()[0].replace("receive", "recv")  # the kernel keeps 15 characters of it all
        process, connection = start_process(self._program, f"parmig-{kind}-{worker}", encode(setup), fds, imports)
        _limit_pipe(connection.fileno())
        self._poll.register(connection.fileno(), select.POLLIN)
        self._by_fd[connection.fileno()] = worker
        _logger.info("%s %d started as process %d", self._name, worker, process.pid)
        return process, connection

    def __len__(self) -> int:
        return len(self._processes)

    def pids(self) -> list[int]:
        """Process ids, by worker number."""
        return [process.pid for process in self._processes]

    def instruct(self, worker: int, instruction: Instruction, fd: int = -1) -> None:
        """Send *instruction* to *worker*, with descriptor *fd* if given; a dead worker is noticed by read()."""
        connection = self._connections[worker]
        try:
            connection.send_bytes(encode(instruction))
            if fd >= 0:
                reduction.send_handle(connection, fd, self._processes[worker].pid)
        except BlockingIOError:
            self._end_stuck(worker, "took no instructions")
        except OSError:
            pass

    def _end_stuck(self, worker: int, what: str) -> None:
        """Kill a worker whose pipe holds half a message: nothing more can be sent to it."""
        self._stuck.setdefault(worker, f"; it {what} for {PIPE_LIMIT_S} s")
        self._processes[worker].kill()

    def pollables(self) -> list[int]:
        """Descriptors that become readable when a worker has sent something or died."""
        return [fd for worker in range(len(self)) if worker not in self._gone for fd in self.descriptors(worker)]

    def descriptors(self, worker: int) -> tuple[int, int]:
        """The descriptors of *worker* among :meth:`pollables`. Stop polling them once its failure was reported."""
        return self._connections[worker].fileno(), self._processes[worker].sentinel

    def read(self) -> list[PoolEvent]:
        """All events since the last call, without waiting."""
        events: list[PoolEvent] = []
        while ready := self._poll.poll(0):
            for fd, _ in ready:
                event = self._receive(self._by_fd[fd])
                if event is not None:
                    events.append(event)
        return events

    def _receive(self, worker: int) -> PoolEvent | None:
        """The message that *worker* has sent; None: it was a line for the log."""
        try:
            event = worker_messages.event_decoder.decode(self._connections[worker].recv_bytes())
        except BlockingIOError:
            self._end_stuck(worker, "left a message unfinished")
            return self._death(worker)
        except (EOFError, OSError):
            return self._death(worker)
        if isinstance(event, WorkerLog):
            logs.relay(worker, event.logger, event.level, event.text)
            return None
        if isinstance(event, WorkerFailed):
            self._forget(worker)
            self._log_failure(worker, event.error)
            event = WorkerFailed(
                msgspec.structs.replace(event.error, message=f"{self._name} {worker}: {event.error.message}")
            )
        return PoolEvent(worker, event)

    def _forget(self, worker: int) -> None:
        """Read nothing more of *worker*."""
        self._gone.add(worker)
        self._poll.unregister(self._connections[worker].fileno())

    def _death(self, worker: int) -> PoolEvent:
        self._forget(worker)
        process = self._processes[worker]
        process.join(STOP_PATIENCE_S)  # the pipe closes a moment before the process can be reaped
        hint = "; SIGBUS means that a memory file had no space left" if process.exitcode == -signal.SIGBUS else ""
        hint = self._stuck.get(worker, hint)
        error = WorkerError(f"{self._name} {worker} (process {process.pid}) {describe_exit(process)}{hint}")
        report = ErrorReport(type=type(error).__name__, message=str(error))
        self._log_failure(worker, report)
        return PoolEvent(worker, WorkerFailed(report, died=process.exitcode != -signal.SIGBUS))

    def _log_failure(self, worker: int, error: ErrorReport) -> None:
        extra = {**logs.REPORTED, "worker": str(worker)}
        _logger.error("%s %d failed: %s: %s", self._name, worker, error.type, error.message, extra=extra)

    def end_stopped(self) -> None:
        """Kill workers that have been stopped (SIGSTOP) since the last call; their deaths are reported as any other."""
        stopped = {worker for worker in range(len(self)) if worker not in self._gone and self._is_stopped(worker)}
        for worker in stopped & self._stopped:
            self._end_stuck(worker, "was stopped")
        self._stopped = stopped

    def _is_stopped(self, worker: int) -> bool:
        return process_state(self._processes[worker].pid) == "T"

    def close(self) -> None:
        """End every worker: ask, wait a moment, kill. Calling it twice is fine."""
        for worker in range(len(self._processes)):
            self.instruct(worker, Stop())
        if self._processes:
            _logger.info("ending %d %ss", len(self._processes), self._name)
        deadline = time.monotonic() + STOP_PATIENCE_S
        for process, connection in zip(self._processes, self._connections, strict=True):
            end_process(process, patience_s=max(0.0, deadline - time.monotonic()))
            connection.close()
        self._processes.clear()
        self._connections.clear()
        self._poll = select.poll()

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _limit_pipe(fd: int) -> None:
    """Give blocking reads and writes of a pipe PIPE_LIMIT_S; past it they raise BlockingIOError."""
    limit = struct.pack("@ll", PIPE_LIMIT_S, 0)
    with socket.socket(fileno=os.dup(fd)) as pipe:
        pipe.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        pipe.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
