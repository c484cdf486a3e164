# SPDX-License-Identifier: Apache-2.0
"""Bytes in memory as a channel: for what is saved to bytes, or loaded from them, within one process."""

from __future__ import annotations

from collections.abc import Sequence

from parmig.errors import TransportError
from parmig.transport.transport import Buffer, Endpoint, MigrationTransport


class MemoryTransport(MigrationTransport):
    """Reads *data* from its beginning, or keeps what is written.

    Args:
        data: what is there to be read, in place; not copied.
    """

    def __init__(self, data: Buffer = b"") -> None:
        self.written = bytearray()
        self._unread = [memoryview(data).cast("B")]

    def write(self, frames: Sequence[Buffer], *, kept: bool = False) -> None:
        """Append copies of *frames* to ``written``."""
        for frame in frames:
            self.written += frame

    def read(self, timeout_ms: int = 0) -> list[memoryview] | None:
        """All of *data*, once."""
        return [self._unread.pop()] if self._unread else None

    def bind(self, endpoint: Endpoint) -> Endpoint:
        """There is nobody to reach.

        Raises:
            TransportError: always.
        """
        raise TransportError(f"memory is no address: {endpoint}")

    def connect(self, endpoint: Endpoint, *, local: str = "", timeout_ns: int = 0) -> None:
        """See :meth:`bind`."""
        self.bind(endpoint)

    def accept(self) -> None:
        """Nothing: there are no strangers."""

    def pollables(self) -> list[int]:
        """None: memory is always ready."""
        return []

    def shutdown(self, linger_ms: int = 0) -> None:
        """Nothing to close."""
