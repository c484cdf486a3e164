# SPDX-License-Identifier: Apache-2.0
"""What a worker gives up once it has opened all that it needs. What it reads from then on comes from a peer or a file.

The rights that remain are in docs/privileges.md.
"""

from __future__ import annotations

from collections.abc import Iterable

from parmig.linux import privileges
from parmig.ram.blocks import BlockMemory
from parmig.transport.transport import UNIX_SCHEME, Endpoint


def begin_confined() -> None:
    """Keep only what any worker needs to attach to memory. The threads of ZeroMQ, which begin later, have no more."""
    privileges.keep_only(
        (
            privileges.CAP_DAC_OVERRIDE,
            privileges.CAP_DAC_READ_SEARCH,
            privileges.CAP_FOWNER,
            privileges.CAP_NET_ADMIN,
            privileges.CAP_SYS_PTRACE,
        )
    )


def confine(memory: Iterable[BlockMemory], *, listens_at: Endpoint | None = None) -> None:
    """Keep only the capabilities that this worker still needs, and keep its memory out of core dumps.

    Args:
        memory: that it reads or writes. Memory of another process stays reachable.
        listens_at: where it listens for its peer, if it does. It limits what strangers may send, and makes its socket
            in the folder of any user.
    """
    kept = [privileges.CAP_FOWNER]  # mincore(2) tells which pages of a file exist only to who may write it, or owns it
    if any(item.pid for item in memory):
        kept.append(privileges.CAP_SYS_PTRACE)
    if listens_at is not None:
        kept.append(privileges.CAP_DAC_OVERRIDE if listens_at.scheme == UNIX_SCHEME else privileges.CAP_NET_ADMIN)
    privileges.keep_only(kept)
    privileges.hide_memory()
