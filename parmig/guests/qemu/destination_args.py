# SPDX-License-Identifier: Apache-2.0
"""Asks a running QEMU for everything on which the command line of its destination depends."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from parmig.errors import GuestError, GuestRefusedError, UsageError
from parmig.guests.qemu import layout
from parmig.guests.qemu.command_line import IN_PLACE, DestinationLine, SourceQemu, rewrite
from parmig.guests.qemu.memory_files import close_memory, open_memory
from parmig.guests.qemu.options import connect
from parmig.guests.qemu.qmp import Qmp
from parmig.guests.qemu.ram_list import backend_name


def destination_line(guest: str, maps: Sequence[tuple[str, str]], memory: str) -> DestinationLine:
    """The command line of a destination for *guest*.

    Args:
        guest: ``qemu:QMP-SOCKET[,OPTIONS]``, as for ``parmig send``. It is only asked, and need not be movable.
        maps, memory: as for :func:`~parmig.guests.qemu.command_line.rewrite`.

    Raises:
        UsageError: not a QEMU guest, or an option is not allowed.
        GuestRefusedError: no QEMU answers, or its command line cannot be read.
        GuestError: QEMU failed.
    """
    scheme, _, text = guest.partition(":")
    if scheme != "qemu":
        raise UsageError(f"{guest!r} has no command line; give a QEMU: qemu:QMP-SOCKET")
    qmp, options = connect(text)
    with contextlib.closing(qmp):
        pid = options.pid or qmp.peer_pid
        source = _ask(qmp)
        if memory == IN_PLACE:
            source = source._replace(files=_memory_paths(qmp, pid))
        return rewrite(_command_line(pid), source, maps, memory)


def _command_line(pid: int) -> list[str]:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]
    except OSError as error:
        raise GuestRefusedError(
            f"cannot read the command line of process {pid}: {error.strerror}; add ,pid=NUMBER with QEMU's process"
        ) from error
    if not words:
        raise GuestRefusedError(f"process {pid} has no command line; add ,pid=NUMBER with QEMU's process")
    try:
        return [word.decode() for word in words]
    except UnicodeDecodeError as error:
        raise GuestRefusedError(f"the command line of process {pid} is not UTF-8, so it cannot be printed") from error


def _memory_paths(qmp: Qmp, pid: int) -> dict[str, str]:
    """Where another process can open the shared memory file of each backend.

    That is its name, or the descriptor of QEMU if it has none any more.
    """
    paths: dict[str, str] = {}
    blocks = open_memory(qmp, pid, "devices")
    try:
        for memory in (block.memory for block in blocks if not block.memory.pid):
            status = os.fstat(memory.fd)
            for link in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    if os.path.samestat(os.stat(link), status):
                        named = os.readlink(link)
                        same = os.path.exists(named) and os.path.samestat(os.stat(named), status)
                        paths[backend_name(memory.block.name)] = named if same else str(link)
                        break
    finally:
        close_memory(blocks)
    return paths


def _ask(qmp: Qmp) -> SourceQemu:
    objects = qmp.execute("qom-list", path="/objects")
    devices = qmp.execute("qom-list", path="/machine/peripheral")
    named = [item["name"] for item in [*objects, *devices] if item["type"].startswith("child<")]
    try:
        backend = str(qmp.execute("qom-get", path="/machine", property="memory-backend"))
    except GuestError:  # before QEMU 5.0
        backend = ""
    return SourceQemu(
        machine=str(qmp.execute("qom-get", path="/machine", property="type")).removesuffix("-machine"),
        machine_backend=backend.rpartition("/")[2],
        backends=tuple(layout.backends(qmp.execute("query-memdev"), objects)),
        named=tuple(named),
    )
