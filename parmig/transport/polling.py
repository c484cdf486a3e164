# SPDX-License-Identifier: Apache-2.0
"""Waits for descriptors and transports together, whatever library a transport uses."""

from __future__ import annotations

import select
from typing import Protocol


class Pollable(Protocol):
    """Something that can be waited for, such as a transport.

    Attributes:
        attend_ms: read it at least this often, even if its descriptors show nothing. None: only when they do.
    """

    attend_ms: int | None

    def pollables(self) -> list[int]:
        """Descriptors that become readable when there may be something to read."""

    def ready(self) -> bool:
        """Whether there is something to read although no descriptor may show it."""


class Poller:
    """Waits until any of its items can be read.

    Args:
        items: descriptors and transports; a transport must be open and is watched until this object is dropped.
            None is ignored.
    """

    def __init__(self, *items: int | Pollable | None) -> None:
        self._poll = select.poll()
        self._sources: list[Pollable] = []
        self.watch(*items)

    def watch(self, *items: int | Pollable | None) -> None:
        """Watch *items* as well."""
        for item in items:
            if isinstance(item, int):
                self._poll.register(item, select.POLLIN)
            elif item is not None:
                self._sources.append(item)
                self.watch(*item.pollables())

    def unwatch(self, fd: int) -> None:
        """Stop watching the descriptor *fd*.

        Raises:
            KeyError: it was not watched.
        """
        self._poll.unregister(fd)

    def poll(self, timeout_ms: float | None = None) -> set[int]:
        """Wait until an item can be read, or for *timeout_ms* (None: for ever). ``attend_ms`` may end the wait earlier.

        Returns:
            The descriptors that are readable or broken, and all of a transport that is ready. Empty after the timeout.
        """
        ready = {fd for source in self._sources if source.ready() for fd in source.pollables()}
        limits_ms: list[float] = [source.attend_ms for source in self._sources if source.attend_ms is not None]
        if timeout_ms is not None:
            limits_ms.append(timeout_ms)
        return ready | {fd for fd, _ in self._poll.poll(0 if ready else min(limits_ms, default=None))}
