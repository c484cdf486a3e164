# SPDX-License-Identifier: Apache-2.0
"""Lets the guest at the destination use the memory files of a source, as far as they stay in place."""

from __future__ import annotations

from collections.abc import Sequence

from parmig.engine.guest_thread import GuestThread
from parmig.engine.matching.in_place import Staying
from parmig.engine.messages.peer_messages import Configure
from parmig.engine.one_host.memory_files import compare_files
from parmig.guests.guest import Guest
from parmig.ram.blocks import BlockMemory


class Adoption:
    """What the guest here has taken from a source.

    Args:
        guest: not owned.
        thread: in which the guest is called; not owned.
    """

    def __init__(self, guest: Guest, thread: GuestThread) -> None:
        self._guest = guest
        self._thread = thread
        self._adopted = False

    def decide(self, wish: Configure, fds: Sequence[int], memory: Sequence[BlockMemory]) -> Staying:
        """Which blocks stay in place.

        Args:
            wish: of the source, whose blocks match.
            fds: the descriptors that came with it.
            memory: here, as the source numbers the blocks.
        """
        lasting = self._thread.call(self._guest.lasting_blocks)
        return compare_files(wish, fds, memory, lasting, adopts=self._guest.adopts_memory)

    def take(self, wish: Configure, fds: Sequence[int], memory: Sequence[BlockMemory], staying: Staying) -> None:
        """Let the guest use the files that it adopts; arguments as for :meth:`decide`. Raises what the guest raises."""
        files = {
            memory[file.block].block.name: fd
            for file, fd in zip(wish.files, fds, strict=True)
            if file.block in staying.adopted
        }
        if files or self._adopted:
            self._thread.call(self._guest.adopt_memory, files)
            self._adopted = bool(files)

    def give_back(self) -> None:
        """Let the guest use memory of its own again. Raises what the guest raises."""
        if self._adopted:
            self._thread.call(self._guest.adopt_memory, {})
            self._adopted = False
