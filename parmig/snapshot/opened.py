# SPDX-License-Identifier: Apache-2.0
"""A snapshot file, opened and understood as far as that is possible without reading its pages."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from parmig.errors import SnapshotError, SnapshotRefusedError, StreamError
from parmig.linux import trusted_files
from parmig.stream import trailer
from parmig.stream.configuration import IGNORE_SHARED
from parmig.stream.data_file import MigrationDataFile
from parmig.stream.device_part import Description, find_end
from parmig.stream.ram_blocks import BlockEntry
from parmig.stream.stream_walk import StreamHead, StreamWalk
from parmig.transport.file import FileStream

QEMU = "qemu"
"""The kind of guest of a file without a trailer: QEMU wrote it."""


class OpenSnapshot:
    """A snapshot that can be read; a context manager.

    Args:
        path: of the file, which parmig or QEMU wrote.

    Attributes:
        fd: of the file, readable; valid until close().
        name: of the file, for errors.
        file_bytes: its size.
        trailer: parmig's; None in a file of QEMU's own.
        head: its configuration and its blocks.
        description: of the devices, or None.

    Raises:
        SnapshotRefusedError: it cannot be read, is damaged, cut short, or no snapshot of all memory.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self.description: Description | None = None
        try:
            self.fd = trusted_files.open_file(
                str(path), os.O_RDONLY | os.O_NONBLOCK
            )  # a pipe without a writer would wait
        except OSError as error:
            raise SnapshotRefusedError(f"{path} cannot be read: {error.strerror}") from error
        try:
            status = os.fstat(self.fd)
            if not stat.S_ISREG(status.st_mode):
                raise SnapshotRefusedError(
                    f"{path} is not a file, expected one, because pages are read from many places at once"
                )
            self.file_bytes = status.st_size
            self._understand()
        except StreamError as error:
            self.close()
            raise SnapshotRefusedError(f"{path} is damaged, or not a snapshot: {error}") from error
        except SnapshotError as error:
            self.close()
            raise SnapshotRefusedError(str(error)) from error
        except BaseException:
            self.close()
            raise

    def _understand(self) -> None:
        at = trailer.trailer_offset(self.file_bytes)
        self.trailer = trailer.decode(os.pread(self.fd, self.file_bytes - at, at), at)
        walk = StreamWalk(self.data())
        self.head: StreamHead = walk.head()
        if self.head.ram_section_id is None:
            raise SnapshotRefusedError(f"{self.name} holds no memory, so it is not a snapshot")
        if self.trailer is None and self.head.ram_section_id == trailer.MARKED_SECTION_ID:
            raise SnapshotRefusedError(
                f"{self.name} does not end with parmig's trailer; it was cut short, or something was added to it"
            )
        if IGNORE_SHARED in self.head.configuration.capabilities:
            raise SnapshotRefusedError(
                f"{self.name} was written with {IGNORE_SHARED}, so it lacks the guest's shared memory"
            )
        end, self.description, exact = find_end(self.fd, self.body_bytes)
        if self.trailer is None and not (exact and self.description is not None):
            # Zeros are everywhere in memory, so the end mark alone proves nothing.
            raise SnapshotRefusedError(
                f"{self.name} does not end with QEMU's description of devices; it was cut short, or written with "
                "suppress-vmdesc=on, and then nothing shows whether it is complete"
            )
        self._devices_end_bytes = end
        self._devices_begin_bytes = -1
        if self.head.mapped_ram:
            for run in walk.pages():
                raise SnapshotRefusedError(f"{self.name} has pages of {run.block!r} outside their places")
            self.note_devices(walk.devices_offset_bytes)

    def data(self) -> MigrationDataFile:
        """The file from its start."""
        return MigrationDataFile(FileStream(self.fd, self.name), self.name)

    @property
    def body_bytes(self) -> int:
        """Size of the file without its trailer."""
        return self.file_bytes if self.trailer is None else self.trailer.body_bytes

    @property
    def kind(self) -> str:
        """Kind of the guest."""
        return QEMU if self.trailer is None else self.trailer.guest

    @property
    def blocks(self) -> tuple[BlockEntry, ...]:
        """All blocks of memory that are not empty."""
        return tuple(block for block in self.head.blocks if block.size_bytes)

    def note_devices(self, begin_bytes: int) -> None:
        """Note that the devices begin at *begin_bytes*. In a sequential file only the reader of its pages learns that.

        Raises:
            SnapshotRefusedError: they would begin after their end.
        """
        if begin_bytes > self._devices_end_bytes:
            raise SnapshotRefusedError(f"{self.name} is damaged: its devices begin after their end")
        self._devices_begin_bytes = begin_bytes

    @property
    def devices(self) -> range:
        """(after :meth:`note_devices`) The bytes of the file that hold the devices."""
        return range(self._devices_begin_bytes, self._devices_end_bytes)

    def close(self) -> None:
        """Close the file. Calling it twice is fine."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> OpenSnapshot:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
