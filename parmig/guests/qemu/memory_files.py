# SPDX-License-Identifier: Apache-2.0
"""Looks up the RAM of a running QEMU and opens the files behind it. The rules are in ``layout``."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

from parmig.errors import GuestError, GuestRefusedError
from parmig.guests.guest import Segment
from parmig.guests.qemu import layout
from parmig.guests.qemu.layout import Backend, Extent, Piece
from parmig.guests.qemu.qmp import Qmp
from parmig.linux import files
from parmig.ram.blocks import PAGE_BYTES, BlockMemory, RamBlock
from parmig.units import format_size


class MappedBlock(NamedTuple):
    """A block, its descriptor, and where QEMU maps it."""

    memory: BlockMemory
    segments: tuple[Segment, ...]


def open_memory(qmp: Qmp, pid: int) -> list[MappedBlock]:
    """All RAM blocks of QEMU, by name. The caller closes the descriptors.

    Raises:
        GuestRefusedError: RAM cannot be reached from outside; the message names the QEMU option that helps.
        GuestError: QEMU failed meanwhile.
    """
    names = layout.ram_names(qmp.monitor("info ramblock"))
    found = layout.backends(qmp.execute("query-memdev"), qmp.execute("qom-list", path="/objects"))
    used = [backend for backend in found if backend.name in names]
    layout.check_backends(used, qmp.version)
    pieces = layout.parse_mtree(qmp.monitor("info mtree -f"))
    blocks: list[MappedBlock] = []
    try:
        for backend in used:
            blocks.append(_open_block(qmp, pid, backend, names[backend.name], pieces.get(names[backend.name], [])))
    except BaseException:
        close_memory(blocks)
        raise
    return blocks


def close_memory(blocks: list[MappedBlock]) -> None:
    """Close the descriptors of *blocks* and empty the list."""
    while blocks:
        with contextlib.suppress(OSError):
            os.close(blocks.pop().memory.fd)


def _open_block(qmp: Qmp, pid: int, backend: Backend, name: str, pieces: list[Piece]) -> MappedBlock:
    if backend.size_bytes % PAGE_BYTES or not pieces:
        raise GuestRefusedError(
            f"RAM block {name!r} ({backend.size_bytes} bytes) is not in the guest's memory, or is not whole "
            f"pages; expected every shared backend to be the guest's RAM; {layout.SHARED_MEMORY_HINT}"
        )
    maps = layout.parse_maps(_proc_text(pid, "maps"))
    # QEMU reports the address of its mapping, so neither a chroot nor an unlinked file hides the file.
    address = layout.parse_host_address(qmp.monitor(f"gpa2hva {pieces[0].gpa:#x}"))
    extent = None if address is None else layout.find_extent(maps, address)
    if extent is None:
        raise GuestRefusedError(
            f"RAM block {name!r} is not in the memory of process {pid}, which listens at {qmp.path}; if that is not "
            "QEMU itself (libvirt opens sockets for it), add ,pid=NUMBER to the guest's name"
        )
    extent = extent._replace(offset_bytes=extent.offset_bytes - pieces[0].offset_bytes)
    segments = layout.find_segments(maps, extent, backend.size_bytes)
    fd = _open_file(pid, extent, segments[0].address, name)
    try:
        _check_size(fd, extent.offset_bytes + backend.size_bytes, name)
        page_size = os.fstatvfs(fd).f_bsize if files.is_hugetlbfs(fd) else PAGE_BYTES
    except BaseException:
        os.close(fd)
        raise
    ranges = layout.guest_ranges(pieces, backend.size_bytes)
    block = RamBlock(name=name, size_bytes=backend.size_bytes, page_size_bytes=page_size, ranges=ranges)
    return MappedBlock(BlockMemory(block, fd, extent.offset_bytes), segments)


def _check_size(fd: int, needed_bytes: int, name: str) -> None:
    found_bytes = os.fstat(fd).st_size
    if found_bytes < needed_bytes:
        raise GuestRefusedError(
            f"the file of RAM block {name!r} has {found_bytes} bytes, expected {needed_bytes}; truncate it to "
            f"{format_size(needed_bytes)}, or let QEMU create it (mem-path= a new name)"
        )


def _open_file(pid: int, extent: Extent, address: int, name: str) -> int:
    """A descriptor, readable and writable, of the file behind a block: by way of one that QEMU has open."""
    candidates = [f"/proc/{pid}/fd/{number}" for number in _proc_names(pid, "fd")]
    # QEMU keeps the file open (RAMBlock.fd), but need not; these links need CAP_CHECKPOINT_RESTORE.
    start = f"{address:x}-"
    candidates += [f"/proc/{pid}/map_files/{span}" for span in _proc_names(pid, "map_files") if span.startswith(start)]
    refusal = "no descriptor of it is open in QEMU"
    for path in candidates:
        try:
            found = os.stat(path)
            if (os.major(found.st_dev), os.minor(found.st_dev), found.st_ino) != (*extent.device, extent.inode):
                continue
            return os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            refusal = error.strerror or str(error)
    raise GuestRefusedError(
        f"the file of RAM block {name!r} (inode {extent.inode}) cannot be opened for reading and writing: {refusal}; "
        "run parmig as root or as QEMU's own user"
    )


def _proc_text(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text()
    except PermissionError as error:
        raise GuestRefusedError(
            f"/proc/{pid}/{name} may not be read; run parmig as root or as QEMU's own user"
        ) from error
    except OSError as error:
        raise GuestError(f"QEMU (process {pid}) is gone: {error.strerror}") from error


def _proc_names(pid: int, name: str) -> list[str]:
    try:
        return os.listdir(f"/proc/{pid}/{name}")
    except OSError:
        return []
