# SPDX-License-Identifier: Apache-2.0
"""Compares a snapshot with the guest that is to be started from it. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from parmig.guests.guest import GuestInfo
from parmig.ram.blocks import RamBlock
from parmig.stream.ram_blocks import BlockEntry
from parmig.units import format_size


def mismatches(
    kind: str,
    machine: str,
    in_file: Sequence[BlockEntry],
    info: GuestInfo,
    memory: Sequence[RamBlock],
    state_blocks: Collection[str],
) -> list[str]:
    """Everything in which the guest differs from the one that was saved.

    Args:
        kind, machine, in_file: of the one that was saved.
        info, memory: of the guest.
        state_blocks: names of the blocks that the guest takes with its state; it judges their sizes itself.
    """
    if kind != info.kind:
        return [f"guest kind: {kind!r} in the file, {info.kind!r} here"]
    differences = []
    if machine != info.machine:
        differences.append(
            f"machine type: {machine!r} in the file, {info.machine!r} here (start it with the same -machine)"
        )
    there = {entry.name: entry.size_bytes for entry in in_file}
    here = {block.name: block.size_bytes for block in memory}
    expected = here.keys() | set(state_blocks)
    for name in sorted(expected ^ there.keys()):
        where = "here" if name in expected else "in the file"
        differences.append(f"RAM block {name!r}: only {where} (same devices, and the same id of the memory backend)")
    for name in sorted(here.keys() & there.keys()):
        if here[name] != there[name]:
            differences.append(
                f"RAM block {name!r}: memory size {format_size(there[name])} in the file, "
                f"{format_size(here[name])} here"
            )
    return differences
