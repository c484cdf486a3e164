# SPDX-License-Identifier: Apache-2.0
"""The interface of a stream of bytes, such as a file: no peer, no messages, no answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from parmig.transport.transport import Buffer


class ByteStream(ABC):
    """A sequence of bytes. An object either writes it or reads it, never both."""

    @abstractmethod
    def write(self, pieces: Sequence[Buffer]) -> None:
        """Write all of *pieces*. They are no longer needed afterwards.

        Raises:
            SnapshotError: the file system is full or failed.
        """

    @abstractmethod
    def read(self) -> memoryview | None:
        """The next bytes, at least one, or None at the end. They stay valid while referenced.

        Raises:
            SnapshotError: the bytes cannot be read.
        """

    def skip(self, count_bytes: int) -> int:
        """Skip *count_bytes* and return how many were skipped. 0: this stream must read or write every byte."""
        return 0
