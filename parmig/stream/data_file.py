# SPDX-License-Identifier: Apache-2.0
"""The proposal's ``MigrationDataFile``: big-endian values, one after the other, over any stream of bytes.

Writing gathers small values in a buffer and keeps references to large ones; a full buffer or a full list of vectors
goes to the transport as one message. Reading hands out views of what the transport delivered, without a copy where a
value lies within one piece. Nothing here knows what the values mean.
"""

from __future__ import annotations

import struct
from collections import deque

from parmig.errors import StreamDataError, StreamError, StreamTooLongError, StreamTruncatedError
from parmig.stream.flags import MAX_NAME_BYTES
from parmig.transport.byte_stream import ByteStream
from parmig.transport.transport import Buffer
from parmig.units import KIB, MIB

BUFFER_BYTES = 32 * KIB
"""Small values wait here, as in QEMU's QEMUFile."""
MAX_VECTORS = 64
"""The most pieces in one message, as in QEMU's QEMUFile."""
BY_REFERENCE_BYTES = 4 * KIB
"""Buffers of a page or more are not copied; for shorter ones a vector of their own costs more than the copy."""
GET_LIMIT_BYTES = MIB
"""Most bytes that ``get_buffer`` and ``peek_view`` return at once, unless their caller allows more."""

_BE16, _BE32, _BE64 = struct.Struct(">H"), struct.Struct(">I"), struct.Struct(">Q")


class MigrationDataFile:
    """Puts big-endian values into *transport*, or gets them from it; an object does only one of the two.

    Every method that gets raises StreamTruncatedError if the stream ends before the value does.

    Args:
        transport: the stream; the caller owns it.
        name: what errors call this stream.
        start_bytes: what ``position_bytes`` begins with: where in its file the stream starts.
    """

    def __init__(self, transport: ByteStream, name: str, *, start_bytes: int = 0) -> None:
        self.name = name
        self._transport = transport
        # Writing. Bytes [_taken, _fill) of the buffer are not among the pieces yet.
        self._put_bytes = 0
        self._pieces: list[memoryview] = []
        self._buffer = bytearray(BUFFER_BYTES)
        self._taken = self._fill = 0
        # Reading. The current piece starts at _base_bytes of the stream and is read up to _at.
        self._base_bytes = start_bytes
        self._view = memoryview(b"")
        self._at = 0
        self._waiting: deque[memoryview] = deque()
        self._ended = False

    @property
    def position_bytes(self) -> int:
        """Where in the stream the next value is put or got."""
        return self._base_bytes + self._at + self._put_bytes

    def error(self, kind: type[StreamError], text: str, offset_bytes: int | None = None) -> StreamError:
        """An error of *kind* that names this stream and *offset_bytes*, or else the present position."""
        return kind(f"{self.name}: {text}", self.position_bytes if offset_bytes is None else offset_bytes)

    # -- putting --------------------------------------------------------------------------------

    def put_byte(self, value: int) -> None:
        """One byte, 0 to 255."""
        self._put_small(bytes((value,)))

    def put_be16(self, value: int) -> None:
        """Two bytes."""
        self._put_small(_BE16.pack(value))

    def put_be32(self, value: int) -> None:
        """Four bytes."""
        self._put_small(_BE32.pack(value))

    def put_be64(self, value: int) -> None:
        """Eight bytes."""
        self._put_small(_BE64.pack(value))

    def put_counted_string(self, text: str) -> None:
        """One byte of length, then *text* in UTF-8, at most 255 bytes of it.

        Raises:
            StreamTooLongError: *text* is longer.
        """
        content = text.encode()
        if len(content) > MAX_NAME_BYTES:
            raise self.error(StreamTooLongError, f"{text!r} has {len(content)} bytes, allowed are {MAX_NAME_BYTES}")
        self._put_small(bytes((len(content),)) + content)

    def put_buffer(self, content: Buffer) -> None:
        """Bytes as they are.

        4 KiB and more are kept by reference: do not change them before ``flush_data``.
        """
        view = memoryview(content).cast("B")
        if view.nbytes < BY_REFERENCE_BYTES:
            self._put_small(view)
            return
        self._end_piece()
        self._pieces.append(view)
        self._put_bytes += view.nbytes
        if len(self._pieces) >= MAX_VECTORS - 1:  # what comes next may need two
            self.flush_data()

    def put_hole(self, size_bytes: int) -> None:
        """Flush, and leave *size_bytes* of a file unwritten.

        Raises:
            StreamDataError: the stream is no file.
        """
        self.flush_data()
        if self._transport.skip(size_bytes) != size_bytes:
            raise self.error(StreamDataError, f"a hole of {size_bytes} bytes can only be left in a file")
        self._put_bytes += size_bytes

    def flush_data(self) -> None:
        """Hand everything that was put to the transport.

        Raises:
            SnapshotError: as the stream's ``write``.
        """
        self._end_piece()
        if self._pieces:
            self._transport.write(self._pieces)
            self._pieces, self._taken, self._fill = [], 0, 0

    def _put_small(self, content: bytes | memoryview) -> None:
        end = self._fill + len(content)
        if end > BUFFER_BYTES:
            self.flush_data()
            end = len(content)
        self._buffer[self._fill : end] = content
        self._fill = end
        self._put_bytes += len(content)

    def _end_piece(self) -> None:
        if self._fill > self._taken:
            self._pieces.append(memoryview(self._buffer)[self._taken : self._fill])
            self._taken = self._fill

    # -- getting --------------------------------------------------------------------------------

    def get_byte(self) -> int:
        """One byte."""
        self._need(1)
        self._at += 1
        return self._view[self._at - 1]

    def get_be16(self) -> int:
        """Two bytes, unsigned."""
        return int(_BE16.unpack(self._take(2))[0])

    def get_be32(self) -> int:
        """Four bytes, unsigned."""
        return int(_BE32.unpack(self._take(4))[0])

    def get_be64(self) -> int:
        """Eight bytes, unsigned."""
        return int(_BE64.unpack(self._take(8))[0])

    def get_counted_string(self) -> str:
        """A string after its one byte of length.

        Raises:
            StreamDataError: it is not UTF-8.
        """
        offset_bytes = self.position_bytes
        content = bytes(self._take(self.get_byte()))
        try:
            return content.decode()
        except UnicodeDecodeError as error:
            raise self.error(StreamDataError, f"expected a name, found {content[:40]!r}", offset_bytes) from error

    def get_buffer(self, size_bytes: int, limit_bytes: int = GET_LIMIT_BYTES) -> bytes:
        """The next *size_bytes*. Memory grows as the bytes arrive, whatever the number is.

        Raises:
            StreamTooLongError: *size_bytes* is over *limit_bytes*.
        """
        self.check_length(size_bytes, limit_bytes)
        if size_bytes <= len(self._view) - self._at:
            return bytes(self._take(size_bytes))
        offset_bytes, content = self.position_bytes, bytearray()
        while len(content) < size_bytes:
            if self.at_end():
                text = f"expected {size_bytes} more bytes, found {len(content)} and the end"
                raise self.error(StreamTruncatedError, text, offset_bytes)
            content += self._take(min(size_bytes - len(content), len(self._view) - self._at))
        return bytes(content)

    def get_into(self, buffer: bytearray | memoryview) -> None:
        """The next bytes, as many as *buffer* has room for."""
        target = memoryview(buffer).cast("B")
        done = 0
        while done < target.nbytes:
            self._need(1)
            piece = self._take(min(target.nbytes - done, len(self._view) - self._at))
            target[done : done + len(piece)] = piece
            done += len(piece)

    def check_length(self, size_bytes: int, limit_bytes: int, what: str = "a buffer") -> None:
        """Refuse a length from the stream that is over its limit.

        Raises:
            StreamTooLongError: *size_bytes* is over *limit_bytes*.
        """
        if size_bytes > limit_bytes:
            raise self.error(StreamTooLongError, f"{what} of {size_bytes} bytes, allowed are {limit_bytes}")

    # -- looking ahead --------------------------------------------------------------------------

    def at_end(self) -> bool:
        """Whether no bytes follow."""
        return self._at == len(self._view) and not self._advance_piece()

    def peek_byte(self, ahead: int = 0) -> int:
        """The byte that is *ahead* bytes after the next one, without getting it."""
        self._need(ahead + 1)
        return self._view[self._at + ahead]

    def peek_view(self, minimum: int, maximum: int) -> memoryview:
        """From *minimum* to *maximum* of the next bytes, as many as lie together, without getting them.

        The view stays valid while it is referenced. Only bytes that do not lie together are copied, and of those
        no more than *minimum*.
        """
        self._need(minimum)
        return self._view[self._at : self._at + maximum]

    def advance(self, size_bytes: int) -> None:
        """Move on by *size_bytes*, which ``peek_view`` has shown."""
        self._at += size_bytes

    def skip(self, size_bytes: int) -> None:
        """Skip bytes. In a file they are not read, and it may have fewer."""
        while size_bytes:
            if self._at == len(self._view):
                if not self._waiting and (skipped := self._transport.skip(size_bytes)):
                    self._base_bytes += skipped
                    size_bytes -= skipped
                    continue
                self._need(1)
            step = min(size_bytes, len(self._view) - self._at)
            self._at += step
            size_bytes -= step

    # -- pieces ---------------------------------------------------------------------------------

    def _take(self, size_bytes: int) -> memoryview:
        self._need(size_bytes)
        self._at += size_bytes
        return self._view[self._at - size_bytes : self._at]

    def _need(self, size_bytes: int) -> None:
        """Bring the next *size_bytes*, which are few, together in the current piece."""
        if len(self._view) - self._at >= size_bytes:
            return
        if self._at == len(self._view) and self._advance_piece() and len(self._view) >= size_bytes:
            return
        parts = [self._view[self._at :]]
        gathered = len(parts[0])
        while gathered < size_bytes:
            piece = self._next_piece()
            if piece is None:
                self._waiting.extend(parts[1:])
                raise self.error(
                    StreamTruncatedError, f"expected {size_bytes} more bytes, found {gathered} and the end"
                )
            parts.append(piece)
            gathered += len(piece)
        if gathered > size_bytes:
            keep = len(parts[-1]) - (gathered - size_bytes)
            self._waiting.appendleft(parts[-1][keep:])
            parts[-1] = parts[-1][:keep]
        self._set_piece(memoryview(b"".join(parts)))

    def _advance_piece(self) -> bool:
        piece = self._next_piece()
        if piece is not None:
            self._set_piece(piece)
        return piece is not None

    def _set_piece(self, piece: memoryview) -> None:
        self._base_bytes += self._at
        self._view, self._at = piece, 0

    def _next_piece(self) -> memoryview | None:
        """The next bytes of the stream, at least one; None at the end."""
        if self._waiting:
            return self._waiting.popleft()
        piece = None if self._ended else self._transport.read()
        self._ended = piece is None
        return piece
