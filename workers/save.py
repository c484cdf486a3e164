# SPDX-License-Identifier: Apache-2.0
"""A worker that writes a snapshot: takes regions from the coordinator and puts their dirty pages into the file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from multiprocessing.connection import Connection

from parmig.engine.messages.worker_messages import DigestRegions, Instruction, RegionDigests, WorkerEvent, WorkerReady
from parmig.errors import ProtocolError
from parmig.ram.outlets.file_outlet import FileOutlet
from parmig.ram.outlets.mapped import MappedRamOutlet
from parmig.ram.outlets.stream import StreamOutlet
from parmig.ram.send import MigrationRamSend
from parmig.snapshot.worker_setup import SaveSetup
from parmig.stream.trailer import MARKED_SECTION_ID
from workers.bootstrap import Inbox, attach_memory, run_worker
from workers.confinement import confine
from workers.pieces import digest_file
from workers.rounds import await_tracker, serve_rounds


def main(connection: Connection, setup: bytes, fds: Sequence[int]) -> None:
    """Entry point.

    Args:
        connection: to the coordinator.
        setup: a SaveSetup, encoded.
        fds: the shared area, the snapshot, then each block's memory file.
    """
    run_worker(connection, setup, SaveSetup, lambda decoded, inbox: _work(decoded, inbox, fds))


def _work(setup: SaveSetup, inbox: Inbox, fds: Sequence[int]) -> None:
    area_fd, file_fd, *block_fds = fds
    blocks, regions, shared = attach_memory(setup, area_fd, block_fds)
    inbox.report(WorkerReady())
    tracker = await_tracker(inbox, inbox.wait, blocks)
    outlet: FileOutlet
    if setup.mapped:
        offsets = setup.pages_offsets_bytes
        outlet = MappedRamOutlet(
            file_fd, setup.file, blocks, tracker, shared, wait=inbox.wait, pages_offsets_bytes=offsets
        )
    else:
        outlet = StreamOutlet(
            file_fd, setup.file, blocks, tracker, shared, wait=inbox.wait, section_id=MARKED_SECTION_ID
        )
    confine(setup.memory)
    ram = MigrationRamSend(
        worker=setup.worker,
        regions=regions,
        blocks=blocks,
        tracker=tracker,
        outlet=outlet,
        shared=shared,
        batch_bytes=setup.batch_bytes,
    )
    serve_rounds(inbox, outlet.idle, ram, lambda instruction: _answer(inbox, instruction, file_fd, setup.file))


def _answer(inbox: Inbox, instruction: Instruction, fd: int, file: str) -> WorkerEvent:
    match instruction:
        case DigestRegions(regions=numbers):
            return RegionDigests(digest_file(numbers, fd, file, os.fstat(fd).st_size, inbox.check))
    raise ProtocolError(f"a worker that writes a snapshot cannot {type(instruction).__name__}")
