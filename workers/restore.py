# SPDX-License-Identifier: Apache-2.0
"""A worker that reads a snapshot: digests pieces of it, and puts its pages into the guest's memory."""

from __future__ import annotations

from collections.abc import Sequence
from multiprocessing.connection import Connection

from parmig.engine.messages.worker_messages import (
    DigestRegions,
    Instruction,
    Placed,
    PlaceRegions,
    PlaceStream,
    RegionDigests,
    WorkerEvent,
    WorkerReady,
)
from parmig.errors import ProtocolError
from parmig.ram.reach.reach import Reach
from parmig.ram.regions import Region
from parmig.ram.shared import SharedArea, WorkerCounters
from parmig.snapshot.placers import MappedPlacer, SequentialPlacer
from parmig.snapshot.worker_setup import RestoreSetup
from workers.bootstrap import Inbox, attach_memory, run_worker
from workers.confinement import confine
from workers.pieces import digest_file


def main(connection: Connection, setup: bytes, fds: Sequence[int]) -> None:
    """Entry point.

    Args:
        connection: to the coordinator.
        setup: a RestoreSetup, encoded.
        fds: the shared area, the snapshot, then each block's memory file.
    """
    run_worker(connection, setup, RestoreSetup, lambda decoded, inbox: _work(decoded, inbox, fds))


def _work(setup: RestoreSetup, inbox: Inbox, fds: Sequence[int]) -> None:
    area_fd, file_fd, *block_fds = fds
    blocks, regions, shared = attach_memory(setup, area_fd, block_fds)
    confine(setup.memory)
    inbox.report(WorkerReady())
    while True:
        inbox.wait()
        while (instruction := inbox.take()) is not None:
            inbox.report(_answer(setup, inbox, instruction, file_fd, blocks, regions, shared))


def _answer(
    setup: RestoreSetup,
    inbox: Inbox,
    instruction: Instruction,
    fd: int,
    blocks: Sequence[Reach],
    regions: Sequence[Region],
    shared: SharedArea,
) -> WorkerEvent:
    match instruction:
        case DigestRegions(regions=numbers):
            counters = WorkerCounters()

            def done() -> None:
                counters.handled_pages += 1
                shared.publish(setup.worker, counters)
                inbox.check()

            return RegionDigests(digest_file(numbers, fd, setup.file, setup.body_bytes, done))
        case PlaceRegions(regions=numbers):
            mapped = MappedPlacer(setup, fd, blocks, shared, inbox.check)
            for number in numbers:
                mapped.place(regions[number])
            return Placed(mapped.counters)
        case PlaceStream(check_only=check_only):
            sequential = SequentialPlacer(setup, fd, blocks, shared, inbox.check)
            return Placed(sequential.counters, sequential.place_all(check_only=check_only))
    raise ProtocolError(f"a worker that reads a snapshot cannot {type(instruction).__name__}")
