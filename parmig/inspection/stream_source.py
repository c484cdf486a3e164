# SPDX-License-Identifier: Apache-2.0
"""Where a stream comes from: a file, which can be looked at anywhere, or a pipe, which is read once.

A device's state can only be split with the description at the very end of the stream. The end of a file is read
directly. Of a pipe, everything after the guest's memory is kept in memory, within a limit.
"""

from __future__ import annotations

import os
import select
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from parmig.errors import LimitExceededError, SnapshotError, StreamTooLongError, TransportError, UsageError
from parmig.stream.vmdescription import TAIL_BYTES
from parmig.transport.byte_stream import ByteStream
from parmig.transport.file import READ_BYTES, FileStream
from parmig.units import MIB

STANDARD_INPUT = "-"
PIPE_SILENCE_S = 60.0
"""A program in front of a pipe may need a while for its first byte; silence for this long means that it hangs."""
LOOK_AHEAD_BYTES = 32 * MIB
"""At most this much of a pipe is kept. Device state and its description, of a guest with 255 CPUs, have about 8 MiB."""


class Source:
    """A regular file or a block device; the caller owns *fd*.

    Attributes:
        name: for people.
        fd: to read anywhere from, or None for a pipe.
        transport: its bytes in their order.
        allocated_bytes: its storage on the disk, or None if it is no regular file.
    """

    def __init__(self, name: str, fd: int) -> None:
        self.name = name
        self.fd: int | None = fd
        self.transport: ByteStream = FileStream(fd, name)
        status = os.fstat(fd)
        regular = stat.S_ISREG(status.st_mode)
        self._size_bytes = status.st_size if regular else os.lseek(fd, 0, os.SEEK_END)
        self.allocated_bytes = status.st_blocks * 512 if regular else None

    def size_bytes(self) -> int:
        """Size of the stream; of a pipe, of what came so far."""
        return self._size_bytes

    def tail(self) -> bytes:
        """The end of the stream, long enough for a description and what may follow it.

        Raises:
            StreamTooLongError: too much comes from a pipe before its end.
            SnapshotError, LimitExceededError, TransportError: it cannot be read.
        """
        assert self.fd is not None
        try:
            return os.pread(self.fd, TAIL_BYTES, max(0, self._size_bytes - TAIL_BYTES))
        except OSError as error:
            raise SnapshotError(f"{self.name}: cannot read the end of the file: {error.strerror}") from error


class _Pipe(FileStream):
    """The bytes of a pipe, a terminal or a socket, with a way to look ahead to their end."""

    def __init__(self, fd: int, name: str) -> None:
        super().__init__(fd, name)
        self.count_bytes = 0
        self.last = memoryview(b"")
        self.ahead = bytearray()

    def read(self) -> memoryview | None:
        if self.ahead:
            piece, self.ahead = memoryview(self.ahead), bytearray()
        else:
            piece = memoryview(self._receive())
        self.last = piece
        return piece if piece else None

    def skip(self, count_bytes: int) -> int:
        return 0

    def _receive(self) -> bytes:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        if not poll.poll(PIPE_SILENCE_S * 1000):
            raise LimitExceededError(f"{self._name}: no bytes arrived for {PIPE_SILENCE_S:g} s; check its writer")
        try:
            piece = os.read(self._fd, READ_BYTES)
        except OSError as error:
            raise TransportError(f"{self._name}: cannot read: {error.strerror}") from error
        self.count_bytes += len(piece)
        return piece

    def look_ahead(self) -> None:
        """Read everything that still comes into ``ahead``."""
        while piece := self._receive():
            self.ahead += piece
            if len(self.ahead) > LOOK_AHEAD_BYTES:
                raise StreamTooLongError(
                    f"{self._name}: over {LOOK_AHEAD_BYTES // MIB} MiB follow, and only their end describes them; "
                    "write them to a file and inspect the file",
                )


class PipeSource(Source):
    """Something that can only be read once."""

    def __init__(self, name: str, fd: int) -> None:
        self.name, self.fd, self.allocated_bytes = name, None, None
        self.transport = self._pipe = _Pipe(fd, name)

    def size_bytes(self) -> int:
        return self._pipe.count_bytes

    def tail(self) -> bytes:
        # What the reader of the stream still holds is part of the piece that it got last.
        self._pipe.look_ahead()
        return bytes(self._pipe.last) + self._pipe.ahead


@contextmanager
def open_source(path: str) -> Iterator[Source]:
    """The stream in the file or pipe at *path*; ``-`` is standard input.

    Raises:
        UsageError: it cannot be opened, or is a directory or a terminal.
    """
    standard = path == STANDARD_INPUT
    name = "standard input" if standard else path
    try:
        # A FIFO without a writer is waited for when it is read, with a limit, not here.
        fd = 0 if standard else os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        mode = os.fstat(fd).st_mode
    except OSError as error:
        raise UsageError(f"{name} cannot be opened: {error.strerror}; name a file with a stream") from error
    try:
        if stat.S_ISDIR(mode) or os.isatty(fd):
            raise UsageError(f"{name} is a directory or a terminal; name a file with a stream, or use - and a pipe")
        yield Source(name, fd) if stat.S_ISREG(mode) or stat.S_ISBLK(mode) else PipeSource(name, fd)
    finally:
        if not standard:
            os.close(fd)
