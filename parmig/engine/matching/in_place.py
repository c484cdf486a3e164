# SPDX-License-Identifier: Apache-2.0
"""Which RAM blocks stay in place: both monitors map the same memory file, and the block is not copied. Pure.

Both sides must be on one host, and connected by a Unix socket. The source passes the descriptors of its memory files
with its first message. A block stays in place if

- the monitor at the destination was started on the same file, at the same offset, or
- it can map the source's file instead of its own (:meth:`Guest.adopt_memory`).

All other blocks are copied. A block is never copied onto itself: where both sides map the same bytes but the block
cannot stay, the source is refused.

The source keeps its memory until the hand-over. Until then the destination's monitor has not run, and parmig writes
nothing to a block that stays in place, so a source that is rolled back finds its memory as it left it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from parmig.engine.reporting.mismatch import Mismatch
from parmig.ram.blocks import BlockMemory, RamBlock
from parmig.ram.file_facts import FileFacts

FEATURE = "memory-in-place"
"""Feature: blocks may stay in place. Both sides name it on a Unix socket only."""

DIRECT_COPY = "direct-copy"
"""Feature: the destination passes what is needed to write to its memory (``direct``). Both sides use it on a Unix
socket only."""

MAX_FILES = 64
"""Descriptors that one message may bring (``transport.unix_connection``)."""


class OfferedFile(msgspec.Struct, frozen=True):
    """A memory file of the source, whose descriptor came with the message, in this order.

    Attributes:
        block: number of the block that it holds.
        offset_bytes: where the block begins in it.
        lasting: whether the end of the source's monitor leaves its content alone.
    """

    block: Annotated[int, Meta(ge=0)]
    offset_bytes: Annotated[int, Meta(ge=0)]
    lasting: bool


class Placed(msgspec.Struct, frozen=True):
    """A block and the file that holds it, on one side.

    Attributes:
        number: of the block, as the source numbers them.
        lasting: see :class:`OfferedFile`.
    """

    number: int
    block: RamBlock
    offset_bytes: int
    facts: FileFacts
    lasting: bool

    @property
    def end_bytes(self) -> int:
        """Where the block ends in the file."""
        return self.offset_bytes + self.block.size_bytes

    def overlaps(self, other: Placed) -> bool:
        """Whether both hold some of the same bytes."""
        same_file = (self.facts.device, self.facts.inode) == (other.facts.device, other.facts.inode)
        return same_file and self.offset_bytes < other.end_bytes and other.offset_bytes < self.end_bytes


class Staying(msgspec.Struct, frozen=True):
    """What stays in place.

    Attributes:
        numbers: of the blocks, as the source numbers them, ascending.
        adopted: those of them whose file the destination's monitor takes from the source.
        mismatches: why the source cannot come in.
    """

    numbers: tuple[int, ...] = ()
    adopted: tuple[int, ...] = ()
    mismatches: tuple[Mismatch, ...] = ()


def decide(source: Sequence[Placed], here: Sequence[Placed], blocks: Sequence[RamBlock], *, adopts: bool) -> Staying:
    """Which blocks stay in place.

    Args:
        source: the files that the source offers.
        here: the files that hold blocks here.
        blocks: all blocks here, as the source numbers them.
        adopts: whether the monitor here can map other files instead of its own.
    """
    by_number = {placed.number: placed for placed in here}
    same = {placed.number for placed in source if _is_same(placed, by_number.get(placed.number))}
    mismatches = [
        _onto_itself(theirs, ours)
        for theirs in source
        for ours in here
        if theirs.overlaps(ours) and not (theirs.number == ours.number and theirs.number in same)
    ]
    rest = set(range(len(blocks))) - same
    adoptable = {placed.number for placed in source if _can_be_adopted(placed, blocks)} if adopts else set()
    adopted = rest if rest <= adoptable else set()  # a monitor that takes memory takes all of it
    return Staying(tuple(sorted(same | adopted)), tuple(sorted(adopted)), tuple(mismatches))


def _is_same(theirs: Placed, ours: Placed | None) -> bool:
    return (
        ours is not None
        and theirs.overlaps(ours)
        and theirs.offset_bytes == ours.offset_bytes
        and theirs.block.size_bytes == ours.block.size_bytes
        and theirs.lasting
        and ours.lasting
    )


def _can_be_adopted(theirs: Placed, blocks: Sequence[RamBlock]) -> bool:
    same_pages = theirs.number < len(blocks) and blocks[theirs.number].page_size_bytes == theirs.block.page_size_bytes
    fits = theirs.offset_bytes == 0 and theirs.end_bytes <= theirs.facts.size_bytes
    return theirs.lasting and same_pages and fits and theirs.facts.usable


def _onto_itself(theirs: Placed, ours: Placed) -> Mismatch:
    names = [f"block {placed.block.name!r} at byte {placed.offset_bytes:#x}" for placed in (theirs, ours)]
    advice = "give the destination a memory file of its own, or the same one with the same offset and no discard-data"
    return Mismatch("memory file", f"{names[0]} of a file", f"{names[1]} of the same file", advice)


def copied(count: int, staying: Collection[int]) -> list[int]:
    """The numbers of the blocks that are copied, of *count* blocks."""
    return [number for number in range(count) if number not in staying]


FEW_BYTES = 64 << 20
"""One channel carries this much, if most of the memory stays in place. A second pair of workers takes 40 ms to start;
it saves less than that with the video memory and the ROMs of a QEMU."""


def channels(workers: int, blocks: Sequence[RamBlock], staying: Collection[int]) -> int:
    """How many channels carry the pages, if the source wishes for *workers*: one if little or nothing is copied."""
    rest_bytes = sum(blocks[number].size_bytes for number in copied(len(blocks), staying))
    return 1 if staying and rest_bytes <= FEW_BYTES else workers


def kept_blocks(memory: Sequence[BlockMemory], staying: Collection[int]) -> list[BlockMemory]:
    """The blocks of *memory* that are copied."""
    return [memory[number] for number in copied(len(memory), staying)]
