# SPDX-License-Identifier: Apache-2.0
"""What every worker does first and last: signals, parent death, memory, the pipe to its coordinator."""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import NamedTuple, TypeVar

import msgspec

from parmig.engine.messages import worker_messages
from parmig.engine.messages.message import encode
from parmig.engine.messages.worker_messages import (
    Instruction,
    StartTracking,
    Stop,
    WorkerEvent,
    WorkerFailed,
    WorkerLog,
)
from parmig.engine.reporting import error_reports
from parmig.engine.worker_setups import MemorySetup
from parmig.linux import process
from parmig.ram.blocks import BlockMemory
from parmig.ram.reach.open_reach import open_reach
from parmig.ram.reach.reach import Reach
from parmig.ram.regions import Regions, cut
from parmig.ram.shared import SharedArea
from parmig.units import MIB, format_cpus
from workers.confinement import begin_confined
from workers.pipe_log import log_over_pipe

_logger = logging.getLogger(__name__)

KEPT_MEMORY_BYTES = 24 * MIB
"""Freed memory that malloc keeps: ZeroMQ allocates each large message, and fresh pages would fault
each time. As much as the credit of a channel."""


class StopRequestedError(BaseException):
    """The coordinator sent Stop, or is gone. It is no Exception, so that no handler swallows it."""


class Inbox:
    """Instructions from the coordinator, read without blocking in the middle of work.

    Args:
        connection: the worker's end of the pipe; owned.

    Attributes:
        log_fd: descriptor of the dirty log that came with StartTracking, or -1.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._pending: list[Instruction] = []
        self._poll = select.poll()  # Connection.poll() makes a selector each time: 20 µs instead of 1
        self._poll.register(connection.fileno(), select.POLLIN)
        self._room = select.poll()
        self._room.register(connection.fileno(), select.POLLOUT)
        self.log_fd = -1

    def fileno(self) -> int:
        """What to poll."""
        return int(self._connection.fileno())

    def check(self) -> None:
        """Read what is there.

        Raises:
            StopRequestedError: the coordinator sent Stop, or its end of the pipe closed.
        """
        while self._poll.poll(0):
            try:
                instruction = worker_messages.instruction_decoder.decode(self._connection.recv_bytes())
            except (EOFError, OSError) as error:
                raise StopRequestedError from error
            if isinstance(instruction, Stop):
                raise StopRequestedError
            if isinstance(instruction, StartTracking) and instruction.has_fd:
                self.log_fd = reduction.recv_handle(self._connection)
            self._pending.append(instruction)

    def wait(self, timeout_ms: int | None = None) -> None:
        """Wait until there is something to read, for *timeout_ms* at most, and read it; raises as :meth:`check`."""
        self._poll.poll(timeout_ms)
        self.check()

    def take(self) -> Instruction | None:
        """The next instruction that was read, if any."""
        return self._pending.pop(0) if self._pending else None

    def report(self, event: WorkerEvent) -> None:
        """Send *event* to the coordinator."""
        try:
            self._connection.send_bytes(encode(event))
        except OSError as error:
            raise StopRequestedError from error

    def log(self, line: WorkerLog) -> bool:
        """Send a log line if the pipe has room for it now; returns whether it had."""
        if not self._room.poll(0):
            return False
        try:
            self._connection.send_bytes(encode(line))
        except OSError:
            return False
        return True


class Memory(NamedTuple):
    """The guest's memory in a worker: its blocks, its regions by number, the shared area."""

    blocks: list[Reach]
    regions: Regions
    shared: SharedArea


def open_blocks(memory: Iterable[BlockMemory], fds: Sequence[int]) -> list[Reach]:
    """Reach each block of *memory*, whose descriptors are places among *fds*, or -1."""
    fds = [*fds, -1]
    return [open_reach(msgspec.structs.replace(item, fd=fds[item.fd])) for item in memory]


def attach_memory(setup: MemorySetup, area_fd: int, block_fds: Sequence[int]) -> Memory:
    """Map the shared area, and reach every block."""
    blocks = open_blocks(setup.memory, block_fds)
    regions = cut(setup.blocks, setup.region_pages)
    shared = SharedArea(
        area_fd,
        workers=setup.workers,
        blocks=setup.blocks,
        regions=len(regions),
        page_digests=setup.page_digests,
    )
    return Memory(blocks, regions, shared)


S = TypeVar("S", bound=MemorySetup)


def run_worker(connection: Connection, setup: bytes, kind: type[S], work: Callable[[S, Inbox], None]) -> None:
    """Run *work* with the decoded *setup*; report any error; end the process without lingering.

    It ignores the terminal's Ctrl-C, which reaches the whole process group: only the coordinator decides.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    process.keep_freed_memory(KEPT_MEMORY_BYTES)
    begin_confined()
    inbox = Inbox(connection)
    status = 0
    try:
        decoded = msgspec.msgpack.decode(setup, type=kind)
        log_over_pipe(decoded.log_level, inbox.log)
        if decoded.cpus:
            os.sched_setaffinity(0, decoded.cpus)  # threads of ZeroMQ begin later and inherit it
        _logger.info("runs as process %d on processors %s", os.getpid(), format_cpus(os.sched_getaffinity(0)))
        work(decoded, inbox)
    except StopRequestedError:
        pass
    except Exception as error:
        status = 1
        try:
            inbox.report(WorkerFailed(error_reports.describe_error(error)))
        except StopRequestedError:
            pass
    sys.stdout.flush()
    sys.stderr.flush()
    # Frames may still point into mappings, so nothing is unmapped here; the kernel frees everything at once.
    connection.close()
    os._exit(status)
