# SPDX-License-Identifier: Apache-2.0
"""What a worker gets once, when it starts."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from parmig import logs
from parmig.engine.messages.message import Message
from parmig.ram.blocks import BlockMemory, RamBlock
from parmig.ram.codecs.codec import CodecSettings
from parmig.transport.dial import Route
from parmig.transport.security.security import Security


class MemorySetup(Message, frozen=True, kw_only=True):
    """What every worker needs to know of the guest's memory, sent once; the descriptors come beside it.

    Attributes:
        workers: how many there are on this side.
        blocks: as the source has them; regions are cut from these.
        memory: each block on this side and what holds its bytes; ``fd`` is the place in the list of descriptors, or -1.
        cpus: the processors that it may use; empty: all.
        log_level: the lowest level of log lines to send.
        page_digests: keep a digest of each page that is placed.
        security: of the worker's channel.
    """

    worker: int
    workers: int
    blocks: tuple[RamBlock, ...]
    memory: tuple[BlockMemory, ...]
    region_pages: int
    cpus: tuple[int, ...] = ()
    log_level: int = msgspec.field(default_factory=logs.level)
    page_digests: bool = False
    security: Security | None = None


def memory_for_workers(memory: Iterable[BlockMemory]) -> tuple[tuple[BlockMemory, ...], list[int]]:
    """*memory* as :class:`MemorySetup` has it, and the descriptors to send with it."""
    items: list[BlockMemory] = []
    descriptors: list[int] = []
    for item in memory:
        place = -1
        if item.fd >= 0:
            place = len(descriptors)
            descriptors.append(item.fd)
        items.append(msgspec.structs.replace(item, fd=place))
    return tuple(items), descriptors


class SendSetup(MemorySetup, frozen=True):
    """To a send worker, once: everything it needs besides descriptors.

    Attributes:
        session: the secret of the migration.
        proves: whether the channel proves that it knows the session; else it sends it.
        long_batches: whether its batches may be long.
        credit_bytes: the most that its channel may have unacknowledged.
        protocol: the agreed version.
        compress: what the user chose.
        codecs: those that the channel uses for it, in the order in which a batch tries them.
        codec_settings: of this channel.
        targets: what holds the blocks at the destination, if the worker is to write there itself; the descriptors
            follow those of ``memory``: the destination's shared area first, then those whose numbers are in ``fd``.
        target_digests: whether that area has a digest of each page.
        routes: ways to its receive worker; the first is tried first.
        reconnect_ns: how long its channel may be lost; 0: a loss is an error.
        epoch: of its first connection; not 0: it replaces a worker that has died.
        path: number of its path, for the limit of that; 0 if there is only one.
        probe_port: a port of the destination that refuses connections, to find out whether a path is back.
    """

    routes: tuple[Route, ...]
    session: bytes
    protocol: int
    compress: str
    codecs: tuple[str, ...]
    codec_settings: CodecSettings
    batch_bytes: int
    credit_bytes: int
    connect_timeout_ns: int
    reconnect_ns: int = 0
    epoch: int = 0
    targets: tuple[BlockMemory, ...] = ()
    target_digests: bool = False
    path: int = 0
    probe_port: int = 0
    proves: bool = False
    long_batches: bool = False


class ReceiveSetup(MemorySetup, frozen=True):
    """To a receive worker, once.

    Attributes:
        session: the secret of the migration.
        proves: whether the send worker proves that it knows the session; else it sends it.
        long_batches: whether batches may be long.
        credit_bytes: the most that its channel may have unacknowledged.
        protocol: the agreed version.
        outlives_losses: whether its channel goes on after a loss.
        replaces: whether a worker of this number was there before, and has ended.
    """

    uri: str
    session: bytes
    protocol: int
    codecs: tuple[str, ...]
    batch_bytes: int
    credit_bytes: int
    outlives_losses: bool = False
    replaces: bool = False
    proves: bool = False
    long_batches: bool = False
