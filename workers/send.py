# SPDX-License-Identifier: Apache-2.0
"""A send worker: takes regions from the coordinator and pushes their dirty pages over its own channel."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection

from parmig.engine.messages.worker_messages import (
    ChannelLost,
    ChannelResumed,
    CheckHeld,
    DigestPages,
    DigestRegions,
    HeldChecked,
    Instruction,
    RegionDigests,
    WorkerEvent,
    WorkerReady,
)
from parmig.engine.worker_setups import SendSetup
from parmig.errors import ProtocolError
from parmig.ram.channel_opening import Caller
from parmig.ram.codecs.batch_encoder import open_encoder
from parmig.ram.credit import long_batch_bytes
from parmig.ram.first_connection import open_channel
from parmig.ram.flow import SendChannel
from parmig.ram.held_pages import HeldCheck
from parmig.ram.outlets.channel import ChannelOutlet
from parmig.ram.outlets.direct import DirectOutlet
from parmig.ram.outlets.outlet import Outlet
from parmig.ram.page_digests import MemoryDigests, unpack
from parmig.ram.reconnect import Reconnect
from parmig.ram.region_digest import RegionDigester
from parmig.ram.send import MigrationRamSend
from parmig.ram.shared import SharedArea
from parmig.ram.trackers.tracker import DirtyTracker
from parmig.transport.dial import Dialer
from parmig.transport.registry import needs_curve
from parmig.transport.security.curve_keys import caller_keys
from parmig.transport.security.session_proof import door_token
from parmig.transport.transport import parse_uri
from parmig.transport.way_home import WayHome
from parmig.units import KIB, NS_PER_MS, format_ms
from workers.bootstrap import Inbox, Memory, attach_memory, open_blocks, run_worker
from workers.by_page import answer_by_page
from workers.confinement import confine
from workers.rounds import await_tracker, serve_rounds

_logger = logging.getLogger(__name__)

_ANSWERS_AHEAD_BYTES = 64 * KIB
"""How much the destination may have sent that this worker has not read. Its answers have at most 60 bytes, and no more
than one for each batch under way."""


def main(connection: Connection, setup: bytes, fds: Sequence[int]) -> None:
    """Entry point.

    Args:
        connection: to the coordinator.
        setup: a SendSetup, encoded.
        fds: the shared area, then each block's memory file; then, if it writes to the destination's memory itself,
            the same of the destination.
    """
    run_worker(connection, setup, SendSetup, lambda decoded, inbox: _work(decoded, inbox, fds))


def _work(setup: SendSetup, inbox: Inbox, fds: Sequence[int]) -> None:
    area_fd, *rest = fds
    own = sum(item.fd >= 0 for item in setup.memory)
    memory, target_fds = attach_memory(setup, area_fd, rest[:own]), rest[own:]
    blocks, regions, shared = memory
    name = f"send worker {setup.worker} to {parse_uri(setup.routes[0].uri)}"
    secured = setup.security is not None and needs_curve(parse_uri(setup.routes[0].uri).scheme)
    token = door_token(setup.session) if setup.proves else setup.session
    dialer = Dialer(
        setup.routes,
        name,
        max_message_bytes=1 << 16,
        max_ahead_bytes=_ANSWERS_AHEAD_BYTES,
        token=token,
        security=setup.security,
        challenges=setup.proves,
        curve=caller_keys(setup.session, setup.worker) if secured else None,
    )
    caller = Caller(setup.session, setup.worker, setup.protocol, setup.proves)
    _logger.info("connects to %s", dialer.route)
    began_ns = time.monotonic_ns()
    way_home = WayHome(dialer, setup.probe_port)

    def interrupt() -> None:
        inbox.check()
        way_home.look()

    def connect(timeout_ns: int) -> SendChannel:
        return SendChannel(
            dialer.dial(timeout_ns),
            name,
            batch_bytes=setup.batch_bytes,
            credit_bytes=setup.credit_bytes,
            interrupt_fd=inbox.fileno(),
            interrupt=interrupt,
            reconnect=_reconnect(setup, name, caller, dialer, inbox),
            reserve=lambda size_bytes: shared.reserve(size_bytes, setup.path),
        )

    channel = open_channel(connect, caller, limit_ns=setup.connect_timeout_ns, epoch=setup.epoch)
    _logger.info("connected to %s after %s", dialer.route, format_ms((time.monotonic_ns() - began_ns) / NS_PER_MS))
    inbox.report(WorkerReady())
    digester = RegionDigester()
    tracker = await_tracker(inbox, channel.idle, blocks)
    outlet = _outlet(setup, channel, memory, tracker, target_fds, inbox)
    confine([*setup.memory, *setup.targets])
    ram = MigrationRamSend(
        worker=setup.worker,
        regions=regions,
        blocks=blocks,
        tracker=tracker,
        outlet=outlet,
        shared=shared,
        batch_bytes=setup.batch_bytes,
    )
    held = HeldCheck(regions, blocks, tracker, shared)
    serve_rounds(inbox, channel.idle, ram, lambda instruction: _answer(instruction, digester, held, memory))


def _outlet(
    setup: SendSetup,
    channel: SendChannel,
    memory: Memory,
    tracker: DirtyTracker,
    target_fds: Sequence[int],
    inbox: Inbox,
) -> Outlet:
    """Where the pages go: to the channel, or directly to the destination's memory."""
    blocks, regions, shared = memory
    if not setup.targets:
        counters = shared.codec_counters(setup.worker)
        encoder = open_encoder(setup.compress, setup.codecs, setup.codec_settings, counters)
        most = long_batch_bytes(setup.batch_bytes) if setup.long_batches else 0
        return ChannelOutlet(channel, encoder, blocks, tracker, shared, path=setup.path, long_bytes=most)
    area_fd, *fds = target_fds
    area = SharedArea(
        area_fd,
        workers=setup.workers,
        blocks=setup.blocks,
        regions=len(regions),
        page_digests=setup.target_digests,
    )
    targets = open_blocks(setup.targets, fds)
    return DirectOutlet(setup.worker, channel, blocks, targets, tracker, shared, area, attend=inbox.check)


def _reconnect(setup: SendSetup, name: str, caller: Caller, dialer: Dialer, inbox: Inbox) -> Reconnect | None:
    """What connects the channel again after a loss, if it may."""
    if not setup.reconnect_ns:
        return None
    return Reconnect(
        name,
        caller,
        dialer.dial,
        setup.reconnect_ns,
        epoch=setup.epoch,
        lost=lambda reason: inbox.report(ChannelLost(reason)),
        resumed=lambda lasted_ns, again_bytes: inbox.report(ChannelResumed(lasted_ns, again_bytes, str(dialer.route))),
    )


def _answer(instruction: Instruction, digester: RegionDigester, held: HeldCheck, memory: Memory) -> WorkerEvent:
    match instruction:
        case CheckHeld(region=region_number, first=first, digests=digests):
            return HeldChecked(region_number, *held.check(region_number, first, unpack(digests)))
        case DigestRegions(by_page=True) | DigestPages():
            return answer_by_page(instruction, MemoryDigests(memory.blocks, memory.shared.bits), memory.regions)
        case DigestRegions(regions=numbers):
            regions = {number: memory.regions[number] for number in numbers}
            return RegionDigests(
                {
                    number: digester.digest(memory.blocks[region.block], region, memory.shared.bits[region.block])
                    for number, region in regions.items()
                }
            )
    raise ProtocolError(f"a send worker cannot {type(instruction).__name__}")
