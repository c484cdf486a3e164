# SPDX-License-Identifier: Apache-2.0
"""Lets the source's workers write to the destination's memory themselves, where both sides are on one host.

The destination passes the descriptors of its memory files and of its workers' shared area over the Unix socket, and
says which process has the memory that is in no file. The source uses them if it may reach all of that memory. Otherwise
it sends the pages over its channels, which exist in any case.

The first descriptor that comes with Accept is that of the shared area. The others are those of the memory files; ``fd``
of each target is a place among these.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import msgspec

from parmig.engine.messages.peer_messages import Accept
from parmig.errors import ParmigError, ProtocolError
from parmig.processes.wire import MOST_FDS
from parmig.ram.blocks import BlockMemory, RamBlock
from parmig.ram.file_facts import facts_of
from parmig.ram.reach.open_reach import check_reachable

_logger = logging.getLogger(__name__)


def usable_targets(accept: Accept, files: Sequence[int], blocks: Sequence[RamBlock], own_fds: int) -> bool:
    """(source) Whether the workers here can write to the destination's memory.

    Args:
        files: the descriptors that came with *accept*.
        blocks: those that are copied.
        own_fds: how many descriptors a worker needs besides.

    Raises:
        ProtocolError: the destination's description does not fit *blocks*.
    """
    targets = accept.targets
    if not targets or own_fds + len(files) + 2 > MOST_FDS:  # two are for the worker's pipe and standard error
        return False
    _check(targets, files, blocks)
    try:
        check_reachable(opened(targets, files[1:]))
    except ParmigError as error:
        _logger.info("pages go over the channels, because the destination's memory cannot be reached: %s", error)
        return False
    return True


def opened(targets: Sequence[BlockMemory], fds: Sequence[int]) -> list[BlockMemory]:
    """*targets* with descriptors in place of their numbers among *fds*."""
    return [msgspec.structs.replace(target, fd=fds[target.fd] if target.fd >= 0 else -1) for target in targets]


def _check(targets: Sequence[BlockMemory], files: Sequence[int], blocks: Sequence[RamBlock]) -> None:
    sizes = [target.block.size_bytes for target in targets]
    if sizes != [block.size_bytes for block in blocks] or any(target.fd >= len(files) - 1 for target in targets):
        raise ProtocolError("the destination describes other memory than that of the guest")
    for target in targets:
        name, size_bytes = target.block.name, target.block.size_bytes
        if target.pid <= 0:
            if target.pid or target.fd < 0:
                raise ProtocolError(f"the destination's block {name!r} is neither in a file nor in a process")
            facts = facts_of(files[1 + target.fd])
            if target.file_offset_bytes < 0 or facts.size_bytes < target.file_offset_bytes + size_bytes:
                raise ProtocolError(f"the destination's file of block {name!r} has {facts.size_bytes} bytes, too few")
        elif sum(segment.pages for segment in target.segments) != target.block.pages:
            raise ProtocolError(f"the destination's block {name!r} is not whole in process {target.pid}")
