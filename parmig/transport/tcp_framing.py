# SPDX-License-Identifier: Apache-2.0
"""Messages on a TCP connection: encodes them, and decodes them within limits. No I/O.

Each side first sends a greeting of eight bytes. Then come messages; integers are big-endian::

    u32 frames (0: a keep-alive, nothing follows)    frames x u32 length    the frames

Every number is checked before anything is kept for it, and memory grows only by bytes that have arrived.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from parmig.errors import PeerNotTrustedError, ProtocolError
from parmig.transport.transport import Buffer

GREETING = b"parmig2\n"
"""Names this framing. The messages name the version of the protocol themselves."""

TLS_ALERT = b"\x15\x03"
"""How the answer of a side with keys begins for a peer that has none (RFC 8446, 5.1)."""

MAX_FRAMES = 8

_NUMBER = struct.Struct(">I")
KEEP_ALIVE = _NUMBER.pack(0)


def vectors(frames: Sequence[Buffer]) -> list[memoryview]:
    """One message of 1 to 8 frames, as buffers: its numbers, and the frames, which are not copied."""
    views = [memoryview(frame).cast("B") for frame in frames]
    numbers = struct.pack(f">{1 + len(views)}I", len(views), *map(len, views))
    return [memoryview(numbers), *(view for view in views if len(view))]


def encode(frames: Sequence[Buffer]) -> bytes:
    """One message of 1 to 8 frames, as one piece of bytes."""
    return b"".join(vectors(frames))


class Inbox:
    """What has arrived on one connection.

    Args:
        max_frame_bytes: limit of one frame.
        max_message_bytes: limit of all frames of a message together; may be changed between messages.

    Attributes:
        greeted: whether the peer's greeting has arrived.
    """

    def __init__(self, max_frame_bytes: int, max_message_bytes: int) -> None:
        self._max_frame_bytes = max_frame_bytes
        self.max_message_bytes = max_message_bytes
        self._data = bytearray()
        self.greeted = False

    def feed(self, data: bytes) -> None:
        """Add what has arrived."""
        self._data += data

    def take_greeting(self, challenge_bytes: int) -> bytes | None:
        """The challenge of this size that follows the greeting; None until it has arrived. Raises as :meth:`take`."""
        if not (self.greeted or self._greet()) or len(self._data) < challenge_bytes:
            return None
        challenge = bytes(self._data[:challenge_bytes])
        del self._data[:challenge_bytes]
        return challenge

    def take(self) -> list[memoryview] | None:
        """The next message; None until all of it has arrived. The caller owns its frames.

        Raises:
            ProtocolError: the bytes are no message within the limits. The connection cannot be read any further.
            PeerNotTrustedError: the peer wants TLS.
        """
        lengths = self._lengths()
        if lengths is None:
            return None
        body = self._cut(lengths, sum(lengths))
        return None if body is None else split(body, lengths)

    def take_head(self) -> tuple[memoryview, list[int]] | None:
        """The first frame of the next message, and the lengths of its other frames; None until the frame has arrived.

        The caller must then take the bytes of the other frames: :meth:`move_into` gives those that have arrived, and
        the rest follows on the connection.

        Raises:
            ProtocolError: as :meth:`take`.
        """
        lengths = self._lengths()
        if lengths is None:
            return None
        head = self._cut(lengths, lengths[0])
        return None if head is None else (head, lengths[1:])

    def move_into(self, target: memoryview) -> int:
        """Move bytes that have arrived to *target*, as many as fit, and return their number."""
        count = min(len(target), len(self._data))
        with memoryview(self._data) as data:
            target[:count] = data[:count]
        del self._data[:count]
        return count

    def _lengths(self) -> list[int] | None:
        """The lengths of the frames of the next message; None until they have arrived. Skips keep-alives."""
        if not self.greeted and not self._greet():
            return None
        if self._data.startswith(KEEP_ALIVE):  # there may be thousands: drop them all at once
            zeros = len(self._data) - len(self._data.lstrip(b"\0"))
            del self._data[: zeros - zeros % len(KEEP_ALIVE)]
        if len(self._data) < _NUMBER.size:
            return None
        (frames,) = _NUMBER.unpack_from(self._data)
        if frames > MAX_FRAMES:
            raise ProtocolError(f"a message has {frames} frames, expected at most {MAX_FRAMES}")
        head = _NUMBER.size * (1 + frames)
        if len(self._data) < head:
            return None
        lengths = list(struct.unpack_from(f">{frames}I", self._data, _NUMBER.size))
        if max(lengths) > self._max_frame_bytes or sum(lengths) > self.max_message_bytes:
            raise ProtocolError(
                f"a message has {sum(lengths)} bytes, expected at most {self._max_frame_bytes} in a frame "
                f"and {self.max_message_bytes} in all"
            )
        return lengths

    def _cut(self, lengths: list[int], size: int) -> memoryview | None:
        """Remove a message up to *size* bytes after its *lengths*; return these bytes, or None until they are there."""
        begin = _NUMBER.size * (1 + len(lengths))
        if len(self._data) < begin + size:
            return None
        with memoryview(self._data) as whole:
            frames = memoryview(bytes(whole[begin : begin + size]))
        del self._data[: begin + size]
        return frames

    def _greet(self) -> bool:
        """Remove the greeting; False until all of it has arrived."""
        if self._data.startswith(TLS_ALERT):
            raise PeerNotTrustedError("the peer wants keys, and this side has none; give --keys, as on the other host")
        if not GREETING.startswith(self._data[: len(GREETING)]):
            raise ProtocolError("the first bytes are not those of parmig")
        if len(self._data) < len(GREETING):
            return False
        del self._data[: len(GREETING)]
        self.greeted = True
        return True


def split(body: memoryview, lengths: Sequence[int]) -> list[memoryview]:
    """Frames of these *lengths* that lie one after the other in *body*."""
    frames, at = [], 0
    for length in lengths:
        frames.append(body[at : at + length])
        at += length
    return frames
