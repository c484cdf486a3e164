# SPDX-License-Identifier: Apache-2.0
"""A message whose head was read from a TCP connection, and whose payload was not."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from parmig.transport.tcp_framing import split
from parmig.transport.transport import Incoming
from parmig.units import KIB

HEAD_CHUNK_BYTES = 16 * KIB
"""The size of a read where a payload may follow. It is small, because payload that comes with it is copied twice."""


class StreamedMessage(Incoming):
    """A message whose payload is still with the kernel, or on its way.

    Args:
        head: its first frame.
        lengths: of its other frames.
        fill: puts the next bytes of the connection into buffers.
        scratch: gives memory for a payload, the same each time.
    """

    places = True

    def __init__(
        self,
        head: memoryview,
        lengths: list[int],
        fill: Callable[[Sequence[memoryview]], None],
        scratch: Callable[[int], memoryview],
    ) -> None:
        super().__init__([head])
        self.frame_count = 1 + len(lengths)
        self.payload_bytes = self._left_bytes = sum(lengths)
        self._lengths = lengths
        self._fill = fill
        self._scratch = scratch

    def into(self, targets: Sequence[memoryview]) -> None:
        self._left_bytes -= sum(target.nbytes for target in targets)
        self._fill(targets)

    def frames(self) -> list[memoryview]:
        body = self._scratch(self.payload_bytes)
        self.into([body])
        return split(body, self._lengths)

    def drop(self) -> None:
        """Skip the payload if it was not taken.

        Raises:
            PeerLostError: as :meth:`into`.
        """
        while self._left_bytes:
            piece = self._scratch(min(self._left_bytes, HEAD_CHUNK_BYTES))
            self._fill([piece])
            self._left_bytes -= len(piece)
