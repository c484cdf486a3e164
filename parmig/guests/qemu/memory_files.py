# SPDX-License-Identifier: Apache-2.0
"""Looks up the RAM of a running QEMU, and opens what is needed to reach it.

The rules are in ``layout``, ``ram_list``, ``ram_structs`` and ``maps``. How a block is reached:

================================== ====================================================
what QEMU maps                     what the ``BlockMemory`` has
================================== ====================================================
a file, shared                     the file; QEMU's process has no part in it
a file, private                    the process, and the file for pages it never wrote
anonymous memory, private          the process
================================== ====================================================

A shared file that cannot be opened is refused: pages that QEMU has not touched since it mapped the file may
have data, and the process's page tables do not say which.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from parmig.errors import GuestError, GuestRefusedError
from parmig.guests.qemu import layout, ram_structs
from parmig.guests.qemu.layout import Piece
from parmig.guests.qemu.maps import Place, Vma, find_place, find_segments, parse_maps
from parmig.guests.qemu.qemu_files import open_mapped
from parmig.guests.qemu.qmp import Qmp
from parmig.guests.qemu.ram_list import RamEntry, backend_name, parse_ram_list
from parmig.ram.blocks import PAGE_BYTES, BlockMemory, RamBlock, Segment
from parmig.units import format_size


class MappedBlock(NamedTuple):
    """A block, how it is reached, and where QEMU maps it."""

    memory: BlockMemory
    segments: tuple[Segment, ...]


def open_memory(qmp: Qmp, pid: int, state: str) -> list[MappedBlock]:
    """The RAM blocks of QEMU that parmig moves, by name. The caller closes the descriptors.

    Args:
        qmp: a session with QEMU.
        pid: QEMU's process.
        state: ``devices``: all blocks that have a name, with video memory and ROMs; ``migrate``: the shared memory
            backends, since QEMU's own migration moves the rest.

    Raises:
        GuestRefusedError: RAM cannot be reached from outside; the message names the QEMU option that helps.
        GuestError: QEMU failed meanwhile.
    """
    protection = qmp.execute("qom-get", path="/machine", property="confidential-guest-support")
    layout.check_moved(str(protection), qmp.execute("query-memory-devices"))
    entries = parse_ram_list(qmp.monitor("info ramblock"))
    pieces = _backend_pieces(qmp, entries, state)
    names = set(pieces) if state == "migrate" else {entry.name for entry in entries if entry.name}
    maps = parse_maps(_proc_text(pid, "maps"))
    addresses = _addresses(qmp, pid, entries, names, pieces, maps)
    blocks: list[MappedBlock] = []
    try:
        for entry in sorted(entry for entry in entries if entry.name in names and entry.used_bytes):
            place = find_place(maps, addresses[entry.name], entry.total_bytes)
            if place is None or (state == "migrate" and not place.shared):
                raise _not_there(qmp, pid, entry.name)
            blocks.append(_open_block(pid, entry, addresses[entry.name], place, maps, pieces.get(entry.name, [])))
    except BaseException:
        close_memory(blocks)
        raise
    return blocks


def close_memory(blocks: list[MappedBlock]) -> None:
    """Close the descriptors of *blocks* and empty the list."""
    while blocks:
        fd = blocks.pop().memory.fd
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.close(fd)


def lasting_blocks(qmp: Qmp, blocks: Sequence[MappedBlock]) -> list[str]:
    """Names of the blocks in shared files that QEMU leaves alone when it ends: backends without ``discard-data=on``.

    Raises:
        GuestError: QEMU failed.
    """
    backends = layout.backends(qmp.execute("query-memdev"), qmp.execute("qom-list", path="/objects"))
    kinds = {backend.name: backend.kind for backend in backends}
    lasting = []
    for block in blocks:
        name = block.memory.block.name
        backend = backend_name(name)
        if block.memory.pid or backend not in kinds:
            continue
        discards = kinds[backend] == "memory-backend-file" and qmp.execute(
            "qom-get", path=f"/objects/{backend}", property="discard-data"
        )
        if not discards:
            lasting.append(name)
    return lasting


def _backend_pieces(qmp: Qmp, entries: Sequence[RamEntry], state: str) -> dict[str, list[Piece]]:
    """Name of each block that is a memory backend's, and where the guest sees it; empty: nowhere."""
    backends = layout.backends(qmp.execute("query-memdev"), qmp.execute("qom-list", path="/objects"))
    names = {backend_name(entry.name): entry.name for entry in entries if entry.name}
    used = [backend for backend in backends if backend.name in names]
    seen = layout.parse_mtree(qmp.monitor("info mtree -f"))
    pieces = {names[backend.name]: seen.get(names[backend.name], []) for backend in used}
    if state == "migrate":
        layout.check_backends(used, qmp.version)
        for name in pieces:
            if not pieces[name]:
                raise GuestRefusedError(
                    f"RAM block {name!r} is not in the guest's memory, expected every shared backend to be the "
                    f"guest's RAM; {layout.SHARED_MEMORY_HINT}"
                )
    return pieces


def _addresses(
    qmp: Qmp,
    pid: int,
    entries: Sequence[RamEntry],
    names: set[str],
    pieces: Mapping[str, Sequence[Piece]],
    maps: Sequence[Vma],
) -> dict[str, int]:
    """Where each block of *names* begins in QEMU's process.

    QEMU translates addresses that the guest sees. Its answers for guest RAM check the addresses in its list (from 8.0
    on), or those that were read from its memory (before).
    """
    seen: dict[str, int] = {}
    for name, runs in pieces.items():
        if not runs:
            continue
        # QEMU reports the address of its mapping, so neither a chroot nor an unlinked file hides the file.
        address = layout.parse_host_address(qmp.monitor(f"gpa2hva {runs[0].gpa:#x}"))
        if address is None:
            raise _not_there(qmp, pid, name)
        seen[name] = address - runs[0].offset_bytes
    listed = {entry.name: entry.address for entry in entries if entry.name in names and entry.address is not None}
    if not listed and names - set(seen):
        with _open_process(pid) as fd:
            found_addresses = ram_structs.find_addresses(entries, maps, lambda address, size: _read(fd, address, size))
        listed = {
            entry.name: address for entry, address in zip(entries, found_addresses, strict=True) if entry.name in names
        }
    addresses = {**seen, **listed}
    for name, address in seen.items():
        if addresses[name] != address:
            raise GuestRefusedError(
                f"RAM block {name!r} is at {addresses[name]:#x} of QEMU by its list and at {address:#x} by the "
                "guest's address, expected the same; try again when nothing is plugged in or out"
            )
    return addresses


def _not_there(qmp: Qmp, pid: int, name: str) -> GuestRefusedError:
    return GuestRefusedError(
        f"RAM block {name!r} is not in memory that process {pid}, which listens at {qmp.path}, may write; expected "
        "QEMU's memory, and backends without readonly=on; if that process is not QEMU itself (libvirt opens sockets "
        "for it), add ,pid=NUMBER to the guest's name"
    )


def _open_block(
    pid: int, entry: RamEntry, address: int, place: Place, maps: Sequence[Vma], pieces: Sequence[Piece]
) -> MappedBlock:
    if entry.used_bytes % max(entry.page_size_bytes, PAGE_BYTES):
        raise GuestRefusedError(
            f"RAM block {entry.name!r} has {entry.used_bytes} bytes, expected whole pages of "
            f"{format_size(entry.page_size_bytes)}; give its backend a size that is"
        )
    block = RamBlock(
        name=entry.name,
        size_bytes=entry.used_bytes,
        page_size_bytes=entry.page_size_bytes,
        # Where the guest sees video memory and ROMs changes as it boots, so that only RAM has ranges.
        ranges=layout.guest_ranges(pieces, entry.used_bytes) if pieces else (),
    )
    own = (Segment(0, block.pages, address),)
    if place.extent is None:
        return MappedBlock(BlockMemory(block, pid=pid, segments=own), own)
    segments = find_segments(maps, place.extent, entry.used_bytes) if place.shared else own
    # Which huge pages a file has shows only in a mapping that may be written to: see ``linux.files.hugetlb_pages``.
    writable = place.shared or block.unit_pages > 1
    fd = open_mapped(pid, place.extent, address, entry.name, writable=writable)
    try:
        _check_size(fd, place.extent.offset_bytes + entry.used_bytes, entry.name)
    except BaseException:
        os.close(fd)
        raise
    memory = BlockMemory(block, fd, place.extent.offset_bytes)
    return MappedBlock(memory if place.shared else BlockMemory(block, fd, memory.file_offset_bytes, pid, own), segments)


def _check_size(fd: int, needed_bytes: int, name: str) -> None:
    found_bytes = os.fstat(fd).st_size
    if found_bytes < needed_bytes:
        raise GuestRefusedError(
            f"the file of RAM block {name!r} has {found_bytes} bytes, expected {needed_bytes}; truncate it to "
            f"{format_size(needed_bytes)}, or let QEMU create it (mem-path= a new name)"
        )


@contextlib.contextmanager
def _open_process(pid: int) -> Iterator[int]:
    """A descriptor that reads QEMU's memory."""
    with _proc_errors(pid, "mem"):
        fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _read(fd: int, address: int, size_bytes: int) -> bytes:
    try:
        return os.pread(fd, size_bytes, address)
    except (OSError, OverflowError):  # nothing is mapped there, or it is no address at all
        return b""


def _proc_text(pid: int, name: str) -> str:
    with _proc_errors(pid, name):
        return Path(f"/proc/{pid}/{name}").read_text()


@contextlib.contextmanager
def _proc_errors(pid: int, name: str) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise GuestRefusedError(
            f"/proc/{pid}/{name} may not be read; run parmig as root, as QEMU's own user, or with CAP_SYS_PTRACE, "
            "CAP_DAC_READ_SEARCH and CAP_FOWNER"
        ) from error
    except OSError as error:
        raise GuestError(f"QEMU (process {pid}) is gone: {error.strerror}") from error
