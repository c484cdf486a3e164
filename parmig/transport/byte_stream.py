# SPDX-License-Identifier: Apache-2.0
"""The interface of a stream of bytes, such as a file: no peer, no messages, no answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from parmig.transport.transport import Buffer


class ByteStream(ABC):
    """Bytes in their order, written or read; an object serves one direction."""

    @abstractmethod
    def write(self, pieces: Sequence[Buffer]) -> None:
        """Write all of *pieces*. They are no longer needed afterwards.

        Raises:
            SnapshotError: the file system is full or failed.
        """

    @abstractmethod
    def read(self) -> memoryview | None:
        """The next bytes, of any number but none, or None at the end. They stay valid while referenced.

        Raises:
            SnapshotError: the bytes cannot be read.
        """

    def skip(self, count_bytes: int) -> int:
        """Go on so many bytes further, and return that; 0 where every byte must be read or written."""
        return 0
