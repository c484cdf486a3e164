# SPDX-License-Identifier: Apache-2.0
"""A receive worker: listens on its own channel and places what its send worker pushes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from multiprocessing.connection import Connection

from parmig.engine.messages.worker_messages import (
    ChannelLost,
    ChannelResumed,
    DigestPages,
    DigestRegions,
    RegionDigests,
    WorkerConnected,
    WorkerReady,
)
from parmig.engine.worker_setups import ReceiveSetup
from parmig.errors import ProtocolError
from parmig.linux import process
from parmig.ram.channel_opening import FIRST_MESSAGE_BYTES, Caller
from parmig.ram.codecs.registry import codec
from parmig.ram.credit import long_batch_bytes
from parmig.ram.held_pages import HeldDigests
from parmig.ram.page_digests import PlacedDigests
from parmig.ram.receive import MigrationRamReceive
from parmig.ram.receive_channel import ReceiveChannel
from parmig.ram.region_digest import RegionDigester
from parmig.transport.registry import needs_curve, open_transport
from parmig.transport.security.curve_keys import listener_keys
from parmig.transport.security.session_proof import door_token
from parmig.transport.transport import parse_uri
from parmig.units import MIB
from workers.bootstrap import Inbox, Memory, attach_memory, run_worker
from workers.by_page import answer_by_page
from workers.confinement import confine

_logger = logging.getLogger(__name__)

_HEADER_ROOM_BYTES = 1 << 20
"""Besides its pages a message has a header with a table of at most 512 KiB."""

_GROWTH_BYTES = 32 * MIB
"""How much a worker may grow beyond its credit while no whole message comes. libzmq keeps 64 bytes for each frame of a
message that never ends, however short the frame is; the messages of a true peer take a few MiB."""


def main(connection: Connection, setup: bytes, fds: Sequence[int]) -> None:
    """Entry point.

    Args:
        connection: to the coordinator.
        setup: a ReceiveSetup, encoded.
        fds: the shared area, then each block's memory file.
    """
    run_worker(connection, setup, ReceiveSetup, lambda decoded, inbox: _work(decoded, inbox, fds))


def _work(setup: ReceiveSetup, inbox: Inbox, fds: Sequence[int]) -> None:
    area_fd, *block_fds = fds
    memory = attach_memory(setup, area_fd, block_fds)
    endpoint = parse_uri(setup.uri)
    confine(setup.memory, listens_at=endpoint)
    secured = setup.security is not None and needs_curve(endpoint.scheme)
    curve = listener_keys(setup.session, setup.worker) if secured else None
    most_batch_bytes = long_batch_bytes(setup.batch_bytes) if setup.long_batches else setup.batch_bytes
    channel = ReceiveChannel(
        lambda: open_transport(
            endpoint,
            f"receive worker {setup.worker}",
            max_message_bytes=most_batch_bytes + _HEADER_ROOM_BYTES,
            first_message_bytes=FIRST_MESSAGE_BYTES,
            max_ahead_bytes=setup.credit_bytes + _HEADER_ROOM_BYTES,
            token=door_token(setup.session) if setup.proves else setup.session,
            security=setup.security,
            challenges=setup.proves,
            curve=curve,
        ),
        endpoint,
        Caller(setup.session, setup.worker, setup.protocol, setup.proves),
        credit_bytes=setup.credit_bytes,
        outlives=setup.outlives_losses,
        goes_on=setup.replaces,
        connected=lambda: _connected(inbox, channel.peer_pid()),
        lost=lambda reason: inbox.report(ChannelLost(reason)),
        resumed=lambda lasted_ns: inbox.report(ChannelResumed(lasted_ns)),
        wake_fd=inbox.fileno(),
    )
    listening = channel.listen()
    _logger.info("listens at %s", listening)
    inbox.report(WorkerReady(listening.port))
    ram = MigrationRamReceive(
        worker=setup.worker,
        blocks=memory.blocks,
        codecs=[codec(name) for name in setup.codecs],
        shared=memory.shared,
        batch_bytes=setup.batch_bytes,
        long_batches=setup.long_batches,
    )
    digester = RegionDigester()
    most_bytes = process.private_bytes() + setup.credit_bytes + _GROWTH_BYTES
    while True:
        if not channel.poll() and process.private_bytes() > most_bytes:
            raise ProtocolError(
                f"the peer made this worker grow by over {setup.credit_bytes + _GROWTH_BYTES} bytes "
                "without a whole message; it does not keep to the protocol"
            )
        while channel.take(ram):
            inbox.check()
        # After the last check, everything that was read is answered before the next wait.
        inbox.check()
        while (instruction := inbox.take()) is not None:
            _answer(inbox, instruction, digester, memory)


def _connected(inbox: Inbox, peer_pid: int) -> None:
    """The send worker is in. Report that before it is answered, and the source can continue."""
    _logger.info("its send worker connected")
    inbox.report(WorkerConnected(peer_pid))


def _answer(inbox: Inbox, instruction: object, digester: RegionDigester, memory: Memory) -> None:
    blocks, regions, shared = memory
    match instruction:
        case DigestPages(held=True):
            inbox.report(answer_by_page(instruction, HeldDigests(shared, blocks), regions))
        case DigestRegions(by_page=True) | DigestPages():
            inbox.report(answer_by_page(instruction, PlacedDigests(shared, blocks), regions))
        case DigestRegions(regions=numbers):
            inbox.report(RegionDigests({n: digester.digest(blocks[regions[n].block], regions[n]) for n in numbers}))
        case _:
            raise ProtocolError(f"a receive worker cannot {type(instruction).__name__}")
