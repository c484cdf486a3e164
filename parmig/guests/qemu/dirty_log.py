# SPDX-License-Identifier: Apache-2.0
"""Chooses the dirty log of a QEMU: the kernel's write tracking if it sees every write, else digests."""

from __future__ import annotations

from collections.abc import Sequence

from parmig.errors import GuestRefusedError, UsageError
from parmig.guests.qemu.hardware import Hardware
from parmig.guests.qemu.memory_files import MappedBlock
from parmig.linux import ptrace, syscalls, uffd
from parmig.ram.blocks import PAGE_BYTES


def choose_log(kind: str, hardware: Hardware) -> tuple[str, str]:
    """The kind of dirty log to use, ``pagemap`` or ``digest``, and why.

    Args:
        kind: what the user wants: ``auto``, ``pagemap`` or ``digest``; or ``none``, if nothing is copied.
        hardware: notes what there is now.

    Raises:
        GuestRefusedError: the guest cannot have this kind.
        UsageError: there is no such kind.
    """
    if kind == "bitmap":
        raise GuestRefusedError(
            "QEMU shows its own dirty log to no other process; use --tracker pagemap, digest or auto"
        )
    if kind == "none":
        hardware.note()
        return kind, "nothing is copied"
    if kind not in ("auto", "pagemap", "digest"):
        raise UsageError(f"unknown tracker {kind!r} for a QEMU guest; choose auto, pagemap or digest")
    hardware.note()
    unseen = hardware.unseen()
    if kind == "pagemap" and unseen:
        raise GuestRefusedError(f"{unseen}; remove it from the guest before the migration, or use --tracker digest")
    if kind != "auto":
        return kind, "as asked for"
    missing = _attach_obstacle() or unseen
    return ("digest", missing) if missing else ("pagemap", "the kernel tracks writes of QEMU")


def tracked_ranges(blocks: Sequence[MappedBlock]) -> list[tuple[int, int]]:
    """Address and size in bytes of each part of QEMU's memory that holds guest memory."""
    return [(item.address, item.pages * PAGE_BYTES) for block in blocks for item in block.segments]


def _attach_obstacle() -> str | None:
    if syscalls.MACHINE not in ptrace.SYSCALL_INSTRUCTION:
        return f"attaching to QEMU is not written for {syscalls.MACHINE}"
    return uffd.probe_write_tracking()
