# SPDX-License-Identifier: Apache-2.0
"""A send worker: takes regions from the coordinator and pushes their dirty pages over its own channel."""

from __future__ import annotations

from collections.abc import Sequence

import zmq
from multiprocess.connection import Connection

from parmig.engine.messages import (
    PROTOCOL_VERSION,
    CountDirty,
    Counted,
    DigestRegions,
    Fence,
    Fenced,
    Instruction,
    RegionDigests,
    RegionsDone,
    SendRegions,
    SendSetup,
    StartTracking,
    WorkerReady,
)
from parmig.errors import ProtocolError
from parmig.ram.blocks import BlockMapping
from parmig.ram.codecs.registry import codec
from parmig.ram.digest import RegionDigester
from parmig.ram.dirty_log import DirtyLog
from parmig.ram.flow import SendChannel
from parmig.ram.regions import Region, cut
from parmig.ram.send import MigrationRamSend
from parmig.ram.shared import SharedArea
from parmig.ram.trackers.registry import open_tracker
from parmig.transport.base import parse_uri
from parmig.transport.registry import open_transport
from workers.bootstrap import Inbox, map_blocks, run_worker


def main(connection: Connection, setup: bytes, fds: Sequence[int]) -> None:
    """Entry point.

    Args:
        connection: to the coordinator.
        setup: a SendSetup, encoded.
        fds: the shared area, then each block's memory file.
    """
    run_worker(connection, setup, SendSetup, lambda decoded, inbox: _work(decoded, inbox, fds))


def _work(setup: SendSetup, inbox: Inbox, fds: Sequence[int]) -> None:
    area_fd, *block_fds = fds
    blocks = map_blocks(setup.blocks, block_fds, setup.file_offsets_bytes)
    regions = cut(setup.blocks, setup.region_pages)
    shared = SharedArea(area_fd, workers=setup.workers, blocks=setup.blocks, regions=len(regions))
    endpoint = parse_uri(setup.uri)
    name = f"send worker {setup.worker} to {endpoint}"
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    transport = open_transport(endpoint, context, name, heartbeat=False, max_message_bytes=1 << 16)
    transport.connect(endpoint, local=setup.local, timeout_ns=setup.connect_timeout_ns)
    channel = SendChannel(
        transport, name, batch_bytes=setup.batch_bytes, interrupt_fd=inbox.fileno(), interrupt=inbox.check
    )
    channel.open(
        session=setup.session, worker=setup.worker, protocol=PROTOCOL_VERSION, limit_ns=setup.connect_timeout_ns
    )
    inbox.tell(WorkerReady())
    log = _first_instruction(inbox, channel)
    ram = MigrationRamSend(
        worker=setup.worker,
        regions=regions,
        blocks=blocks,
        tracker=open_tracker(log, inbox.log_fd, blocks),
        codec=codec(setup.codec),
        channel=channel,
        shared=shared,
        batch_bytes=setup.batch_bytes,
    )
    _loop(inbox, ram, channel, blocks, regions)


def _next(inbox: Inbox, channel: SendChannel) -> Instruction:
    while (instruction := inbox.take()) is None:
        channel.idle()
        inbox.check()
    return instruction


def _first_instruction(inbox: Inbox, channel: SendChannel) -> DirtyLog:
    first = _next(inbox, channel)
    if not isinstance(first, StartTracking):
        raise ProtocolError(f"a send worker expects StartTracking first, not {type(first).__name__}")
    return first.log


def _loop(
    inbox: Inbox, ram: MigrationRamSend, channel: SendChannel, blocks: list[BlockMapping], regions: list[Region]
) -> None:
    digester = RegionDigester()
    while True:
        match _next(inbox, channel):
            case SendRegions(round=round_, regions=numbers, first_pass=first_pass, holes=holes):
                ram.migrate_ram_iterate(round_, numbers, first_pass=first_pass, holes=holes)
                inbox.tell(RegionsDone())
            case Fence(round=round_):
                ram.fence(round_)
                inbox.tell(Fenced(round_, ram.counters))
            case CountDirty(regions=numbers):
                inbox.tell(Counted(ram.migrate_dirty_bitmap_sync(numbers)))
            case DigestRegions(regions=numbers):
                inbox.tell(RegionDigests({n: digester.digest(blocks[regions[n].block], regions[n]) for n in numbers}))
