# SPDX-License-Identifier: Apache-2.0
"""Which RAM block of the destination takes the content of which block of the source. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from parmig.engine.reporting.mismatch import Mismatch
from parmig.ram.blocks import RamBlock
from parmig.units import format_size


def pair_blocks(
    source: Sequence[RamBlock], destination: Sequence[RamBlock], *, by_place: bool
) -> list[tuple[RamBlock | None, RamBlock | None]]:
    """The blocks of the source, each with that of the destination; None stands for a block that one side lacks.

    Args:
        by_place: blocks of different names match where the guest sees them at the same addresses. QEMU calls its RAM
            ``pc.ram``, and with a memory backend by the name of that.

    Returns:
        In the order of *source*; behind those, blocks that only the destination has, by name.
    """
    left = {block.name: block for block in destination}
    pairs: list[tuple[RamBlock | None, RamBlock | None]] = [(block, left.pop(block.name, None)) for block in source]
    if by_place:
        places = {block.ranges: block for block in left.values() if block.ranges}
        for number, (block, other) in enumerate(pairs):
            if block is not None and other is None and (match := places.pop(block.ranges, None)) is not None:
                pairs[number] = (block, left.pop(match.name))
    return pairs + [(None, block) for _, block in sorted(left.items())]


def block_mismatches(
    source: Sequence[RamBlock], destination: Sequence[RamBlock], *, by_place: bool = False
) -> list[Mismatch]:
    """How the RAM blocks differ; their order does not matter, and neither does the size of their pages."""
    names = [{block.name for block in side} for side in (source, destination)]
    if (len(source), len(destination)) != (len(names[0]), len(names[1])):
        counts = [f"{len(names[side])} for {len(blocks)} blocks" for side, blocks in enumerate((source, destination))]
        return [Mismatch("RAM block names", counts[0], counts[1], "each block needs a name of its own")]
    mismatches = []
    pairs = pair_blocks(source, destination, by_place=by_place)
    for a, b in sorted(pairs, key=lambda pair: next(block.name for block in pair if block is not None)):
        if a is None or b is None:
            sizes = ["" if side is None else format_size(side.size_bytes) for side in (a, b)]
            name = next(block.name for block in (a, b) if block is not None)
            advice = "start both with the same devices and memory" if by_place else "backend ids must match"
            mismatches.append(Mismatch(f"RAM block {name!r}", sizes[0], sizes[1], advice))
        else:
            mismatches += _differences(a, b)
    return mismatches


def _differences(source: RamBlock, destination: RamBlock) -> list[Mismatch]:
    """How two blocks differ that belong together."""
    label = f"RAM block {source.name!r}"
    if source.size_bytes != destination.size_bytes:
        sizes = [format_size(side.size_bytes) for side in (source, destination)]
        return [Mismatch(f"{label}: memory size", sizes[0], sizes[1], "start both with the same -m")]
    if source.ranges != destination.ranges:
        places = [", ".join(f"{part.gpa:#x}" for part in side.ranges) for side in (source, destination)]
        advice = "start both with the same -machine and -m"
        return [Mismatch(f"{label}: guest physical addresses", places[0], places[1], advice)]
    return []
