# SPDX-License-Identifier: Apache-2.0
"""The memory files of a guest, as one side offers them and the other compares them. See :mod:`.in_place`."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence

import msgspec

from parmig.engine.matching import in_place
from parmig.engine.matching.block_pairs import pair_blocks
from parmig.engine.matching.in_place import OfferedFile, Placed, Staying
from parmig.engine.messages.peer_messages import Configure
from parmig.engine.reporting.mismatch import Mismatch
from parmig.guests.guest import GuestInfo
from parmig.ram.blocks import BlockMemory, RamBlock
from parmig.ram.file_facts import facts_of


def offer_files(memory: Sequence[BlockMemory], lasting: Collection[str]) -> tuple[tuple[OfferedFile, ...], list[int]]:
    """(source) The shared files of *memory*, and their descriptors. A guest with very many offers none.

    Args:
        lasting: names of the blocks whose files outlast their monitor.
    """
    files = [
        OfferedFile(number, part.file_offset_bytes, part.block.name in lasting)
        for number, part in enumerate(memory)
        if not part.pid
    ]
    if len(files) > in_place.MAX_FILES:
        return (), []
    return tuple(files), [memory[file.block].fd for file in files]


def compare_files(
    wish: Configure, fds: Sequence[int], memory: Sequence[BlockMemory], lasting: Collection[str], *, adopts: bool
) -> Staying:
    """(destination) Which blocks stay in place.

    Args:
        wish: the source's, whose blocks match.
        fds: the descriptors that came with it.
        memory: here, as the source numbers the blocks.
        lasting: names of the blocks here whose files outlast their monitor.
        adopts: whether the monitor here can map other files instead of its own.
    """
    numbers = [file.block for file in wish.files]
    if len(fds) != len(numbers) or len(set(numbers)) < len(numbers) or max(numbers, default=-1) >= len(wish.blocks):
        what, many = "memory files", f"{len(numbers)} for {len(wish.blocks)} blocks"
        wrong = Mismatch(what, many, f"{len(fds)} came", "install the same parmig on both sides")
        return Staying(mismatches=(wrong,))
    source = [
        Placed(file.block, wish.blocks[file.block], file.offset_bytes, facts_of(fd), file.lasting)
        for file, fd in zip(wish.files, fds, strict=True)
    ]
    here = [
        Placed(number, part.block, part.file_offset_bytes, facts_of(part.fd), part.block.name in lasting)
        for number, part in enumerate(memory)
        if not part.pid
    ]
    return in_place.decide(source, here, [part.block for part in memory], adopts=adopts)


def without_staying(wish: Configure, staying: Collection[int], fds: Sequence[int] = ()) -> Configure:
    """*wish* for the blocks that are copied.

    Args:
        fds: descriptors of the files of *wish*, if known: what they have allocated needs no space.
    """
    allocated_bytes = wish.allocated_bytes
    for file, fd in zip(wish.files, fds, strict=False):
        if file.block in staying:
            allocated_bytes -= os.fstat(fd).st_blocks * 512
    return msgspec.structs.replace(
        wish,
        blocks=tuple(wish.blocks[number] for number in in_place.copied(len(wish.blocks), staying)),
        workers=in_place.channels(wish.workers, wish.blocks, staying),
        allocated_bytes=max(0, allocated_bytes),
    )


def in_order_of(blocks: Sequence[RamBlock], memory: Sequence[BlockMemory], info: GuestInfo) -> list[BlockMemory]:
    """The memory here that takes the content of each of the source's *blocks*, which match."""
    by_name = {part.block.name: part for part in memory}
    pairs = pair_blocks(blocks, [part.block for part in memory], by_place=info.blocks_by_place)
    return [by_name[here.name] for _, here in pairs if here is not None]


def close_files(files: list[int]) -> None:
    """Close *files*, and empty the list."""
    while files:
        os.close(files.pop())
