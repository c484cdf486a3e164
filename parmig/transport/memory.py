# SPDX-License-Identifier: Apache-2.0
"""A stream of bytes in memory, to save to and to load from within one process."""

from __future__ import annotations

from collections.abc import Sequence

from parmig.transport.byte_stream import ByteStream
from parmig.transport.transport import Buffer


class MemoryStream(ByteStream):
    """Reads *data* from its beginning, or keeps what is written.

    Args:
        data: what is read. It is not copied.

    Attributes:
        written: copies of all that was written.
    """

    def __init__(self, data: Buffer = b"") -> None:
        self.written = bytearray()
        self._unread = [memoryview(data).cast("B")]

    def write(self, pieces: Sequence[Buffer]) -> None:
        for piece in pieces:
            self.written += piece

    def read(self) -> memoryview | None:
        return (self._unread.pop() or None) if self._unread else None
