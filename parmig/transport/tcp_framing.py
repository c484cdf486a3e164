# SPDX-License-Identifier: Apache-2.0
"""Messages on a TCP connection: their bytes, and taking them apart within limits. No I/O.

Each side begins with a greeting of eight bytes. A message is then, all integers big-endian::

    u32 frames (0: a keep-alive, nothing follows)    frames x u32 length    the frames

Every number is checked before anything is kept for it, and memory grows only by bytes that have arrived.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from parmig.errors import ProtocolError
from parmig.transport.transport import Buffer

GREETING = b"parmig2\n"
MAX_FRAMES = 8

_NUMBER = struct.Struct(">I")
KEEP_ALIVE = _NUMBER.pack(0)


def encode(frames: Sequence[Buffer]) -> bytes:
    """The bytes of one message, of 1 to 8 frames."""
    views = [memoryview(frame).cast("B") for frame in frames]
    numbers = struct.pack(f">{1 + len(views)}I", len(views), *(view.nbytes for view in views))
    return b"".join([numbers, *views])


class Inbox:
    """What has arrived on one connection.

    Args:
        max_frame_bytes: of one frame.
        max_message_bytes: of all frames of a message; may be changed between messages.
    """

    def __init__(self, max_frame_bytes: int, max_message_bytes: int) -> None:
        self._max_frame_bytes = max_frame_bytes
        self.max_message_bytes = max_message_bytes
        self._data = bytearray()
        self._greeted = False

    def feed(self, data: bytes) -> None:
        """Add what has arrived."""
        self._data += data

    def take(self) -> list[memoryview] | None:
        """The next whole message, if it is there; its frames are the caller's.

        Raises:
            ProtocolError: the bytes are no message within the limits. Nothing more can be read here.
        """
        if not self._greeted and not self._greet():
            return None
        if self._data.startswith(KEEP_ALIVE):  # one or thousands of them
            zeros = len(self._data) - len(self._data.lstrip(b"\0"))
            del self._data[: zeros - zeros % len(KEEP_ALIVE)]
        if len(self._data) < _NUMBER.size:
            return None
        (frames,) = _NUMBER.unpack_from(self._data)
        if frames > MAX_FRAMES:
            raise ProtocolError(f"a message of {frames} frames, at most {MAX_FRAMES} are allowed")
        head = _NUMBER.size * (1 + frames)
        if len(self._data) < head:
            return None
        lengths = struct.unpack_from(f">{frames}I", self._data, _NUMBER.size)
        if max(lengths) > self._max_frame_bytes or sum(lengths) > self.max_message_bytes:
            raise ProtocolError(
                f"a message of {sum(lengths)} bytes, at most {self._max_frame_bytes} in a frame "
                f"and {self.max_message_bytes} in all are allowed"
            )
        size = head + sum(lengths)
        if len(self._data) < size:
            return None
        with memoryview(self._data) as whole:
            body = memoryview(bytes(whole[head:size]))
        del self._data[:size]
        found, at = [], 0
        for length in lengths:
            found.append(body[at : at + length])
            at += length
        return found

    def _greet(self) -> bool:
        """Whether the greeting is there."""
        if not GREETING.startswith(self._data[: len(GREETING)]):
            raise ProtocolError("the first bytes are not those of parmig")
        if len(self._data) < len(GREETING):
            return False
        del self._data[: len(GREETING)]
        self._greeted = True
        return True
