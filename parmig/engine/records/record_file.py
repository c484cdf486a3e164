# SPDX-License-Identifier: Apache-2.0
"""One record of a hand-over on disk. Each change is one write of one block that exists, and one fdatasync(2)."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from typing import Any, Self

from msgspec.structs import replace

from parmig.engine.records.handover_record import FILE_BYTES, SLOT_BYTES, HandOverRecord, decode_file, encode_slot
from parmig.errors import RecordError


class RecordFile:
    """A record that only this process may change. Made by ``RecordStore``. A context manager.

    Args:
        directory_fd: of its directory; owned.
        name: in that directory.
        fd: of the file, locked; owned.
        path: for people, and for other processes that read it.
        slot, sequence: which slot has the newest record, and the number of that record.
        record: the newest one.

    Attributes:
        path, record: as given; *record* is the one that was written last.
    """

    def __init__(
        self, directory_fd: int, name: str, fd: int, path: str, slot: int, sequence: int, record: HandOverRecord
    ) -> None:
        self.path = path
        self.record = record
        self._directory_fd = directory_fd
        self._name = name
        self._fd = fd
        self._slot = slot
        self._sequence = sequence
        self._lock = threading.Lock()

    def write(self, **changes: Any) -> HandOverRecord:
        """Change fields of the record. On return the change is on disk.

        Raises:
            RecordError: it cannot be shown to be on disk. It may be there all the same.
        """
        with self._lock:
            record = replace(self.record, changed_ns=time.time_ns(), **changes)
            # A write that failed may be on disk all the same, so the next one has a higher number, in the same slot.
            self._sequence += 1
            slot = 1 - self._slot
            try:
                if os.pwrite(self._fd, encode_slot(record, self._sequence), slot * SLOT_BYTES) != SLOT_BYTES:
                    raise OSError(errno.EIO, "only a part of the block was written")
                os.fdatasync(self._fd)
            except OSError as error:
                raise RecordError(
                    f"the record of the hand-over, {self.path}, cannot be written: {error.strerror}"
                ) from error
            self._slot, self.record = slot, record
            return record

    def remove(self) -> None:
        """Remove the file: nothing depends on it. Never raises."""
        with contextlib.suppress(OSError):
            os.unlink(self._name, dir_fd=self._directory_fd)

    def close(self) -> None:
        """Close it; another process may change it from now on. Calling it twice is fine."""
        fds, self._fd, self._directory_fd = (self._fd, self._directory_fd), -1, -1
        for fd in fds:
            if fd >= 0:
                os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class RecordReader:
    """Reads a record that another process writes. It stays readable when its name is removed.

    Args:
        path: of the file.

    Raises:
        RecordError: it cannot be opened.
    """

    def __init__(self, path: str) -> None:
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise RecordError(f"the record {path} cannot be opened: {error.strerror}") from error

    def read(self) -> HandOverRecord:
        """The newest record.

        Raises:
            RecordError: it cannot be read.
        """
        try:
            return decode_file(os.pread(self._fd, FILE_BYTES, 0))[2]
        except OSError as error:
            raise RecordError(f"the record cannot be read: {error.strerror}") from error

    def close(self) -> None:
        """Close it."""
        os.close(self._fd)
