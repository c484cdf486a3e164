# SPDX-License-Identifier: Apache-2.0
"""The directory with the records of a host. Only its owner may use it, and no link in it is followed.

It is bounded: at most :data:`MAX_FILES` files of one size. Each new record first removes what has ended: records that
are older than :data:`KEPT_NS`, and the oldest ones where there are too many. A record that is not settled stays,
whatever its age.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
import time
from collections.abc import Iterator
from typing import NamedTuple, Self

from parmig.engine.private_folder import open_private_folder
from parmig.engine.records.handover_record import FILE_BYTES, HandOverRecord, RecordState, decode_file, encode_slot
from parmig.engine.records.record_file import RecordFile
from parmig.errors import HostRefusedError, RecordError
from parmig.units import NS_PER_S

MAX_FILES = 256
KEPT_NS = 30 * 24 * 3600 * NS_PER_S
"""How long a record that has ended is kept, for people who ask where a guest went."""

ROOT_DIRECTORY = "/var/lib/parmig"
ENVIRONMENT = "PARMIG_STATE_DIR"

_NAME = re.compile(r"[0-9a-f]{8}-(source|destination)\.record")


class Entry(NamedTuple):
    """One file of the directory.

    Attributes:
        name: of the file.
        record: None: it cannot be read.
        problem: why it cannot be read; empty: it can.
        in_use: whether the process of a migration, or of ``parmig recover``, has it open.
        unfinished: its writer was killed while it made the file, before it promised anything.
    """

    name: str
    record: HandOverRecord | None = None
    problem: str = ""
    in_use: bool = False
    unfinished: bool = False


def default_directory() -> str:
    """$PARMIG_STATE_DIR; else ``/var/lib/parmig`` for root, and the directory for state of any other user."""
    if chosen := os.environ.get(ENVIRONMENT):
        return chosen
    if os.geteuid() == 0:
        return ROOT_DIRECTORY
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return os.path.join(state, "parmig")


class RecordStore:
    """The records in one directory, which is made if it is not there. A context manager.

    Args:
        directory: empty: the default.

    Raises:
        HostRefusedError: it cannot be made or written, or others may write to it.
    """

    def __init__(self, directory: str = "") -> None:
        self.directory = os.path.abspath(directory or default_directory())
        self._fd = open_private_folder(self.directory, "records of hand-overs", "--state-dir")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the directory. Calling it twice is fine."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    # -- one record -----------------------------------------------------------------------------

    def create(self, record: HandOverRecord) -> RecordFile:
        """Write *record* to a new file, with all the space that it will ever need. The caller closes it.

        Raises:
            HostRefusedError: there is no space, or there are too many records that are not settled.
            RecordError: the record is too large.
        """
        self._clean()
        name = file_name(record)
        first = encode_slot(record, 1)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(name, flags, 0o600, dir_fd=self._fd)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.pwrite(fd, first.ljust(FILE_BYTES, b"\0"), 0) != FILE_BYTES:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(fd)
                os.fsync(self._fd)
            except BaseException:
                os.close(fd)
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=self._fd)
                raise
        except OSError as error:
            raise HostRefusedError(
                f"the record of the hand-over, {self.directory}/{name}, cannot be written: {error.strerror}; "
                "nothing was touched; make room there, or name another directory with --state-dir"
            ) from error
        return RecordFile(self.directory_fd(), name, fd, f"{self.directory}/{name}", 0, 1, record)

    def open(self, name: str) -> RecordFile:
        """Open the file *name* of this directory to change it. The caller closes it.

        Raises:
            HostRefusedError: another process uses it, or it is not a file of ours.
            RecordError: it is damaged.
        """
        fd = self.open_file(name, os.O_RDWR)
        try:
            if not try_lock(fd):
                raise HostRefusedError(
                    f"{self.directory}/{name} is in use by a running parmig; wait for it, or cancel it"
                )
            slot, sequence, record = decode_file(os.pread(fd, FILE_BYTES, 0))
        except BaseException:
            os.close(fd)
            raise
        return RecordFile(self.directory_fd(), name, fd, f"{self.directory}/{name}", slot, sequence, record)

    def directory_fd(self) -> int:
        """A descriptor of the directory, which the caller owns."""
        return os.dup(self._fd)

    def open_file(self, name: str, flags: int) -> int:
        """A descriptor of the file *name* of this directory, which the caller owns.

        Raises:
            HostRefusedError: it cannot be opened, or it is not a file of this user alone.
        """
        try:
            fd = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._fd)
        except OSError as error:
            raise HostRefusedError(f"{self.directory}/{name} cannot be opened: {error.strerror}") from error
        entry = os.fstat(fd)
        regular = stat.S_ISREG(entry.st_mode) and entry.st_nlink == 1
        if not regular or entry.st_uid != os.geteuid() or entry.st_mode & 0o077:
            os.close(fd)
            raise HostRefusedError(f"{self.directory}/{name} is not a file of mode 0600 of this user; remove it")
        return fd

    # -- all records ----------------------------------------------------------------------------

    def entries(self) -> list[Entry]:
        """All records, the newest first; at most MAX_FILES of them."""
        entries = [self._look(name) for name in self._names()]
        return sorted(entries, key=lambda entry: entry.record.changed_ns if entry.record else 0, reverse=True)

    def _names(self) -> Iterator[str]:
        with os.scandir(self._fd) as scan:
            names = [entry.name for entry in scan if _NAME.fullmatch(entry.name)]
        return iter(sorted(names)[: 2 * MAX_FILES])

    def _look(self, name: str) -> Entry:
        try:
            fd = self.open_file(name, os.O_RDONLY)
        except HostRefusedError as error:
            return Entry(name, problem=str(error))
        in_use = not try_lock(fd)
        try:
            data = os.pread(fd, FILE_BYTES, 0)
            return Entry(name, decode_file(data)[2], in_use=in_use)
        except RecordError as error:
            return Entry(name, problem=str(error), in_use=in_use, unfinished=len(data) < FILE_BYTES)
        finally:
            os.close(fd)

    def _clean(self) -> None:
        """Remove what has ended, so that there is room for one more.

        Raises:
            HostRefusedError: nothing may be removed.
        """
        entries = self.entries()
        now_ns = time.time_ns()
        excess = len(entries) - (MAX_FILES - 1)
        for entry in reversed(entries):
            if not has_ended(entry):
                continue
            changed_ns = entry.record.changed_ns if entry.record is not None else 0
            if excess > 0 or now_ns - changed_ns > KEPT_NS:
                excess -= 1
                with contextlib.suppress(OSError):
                    os.unlink(entry.name, dir_fd=self._fd)
        if excess > 0:
            raise HostRefusedError(
                f"{self.directory} has {len(entries)} records of hand-overs that are not settled, expected fewer than "
                f"{MAX_FILES}; see parmig status --host, and run parmig recover for each"
            )


def has_ended(entry: Entry) -> bool:
    """Whether nothing depends on the record of *entry* any more.

    A file that was never written to its end has promised nothing. A source that was never handed over is its own.
    """
    if entry.in_use:
        return False
    if entry.record is None:
        return entry.unfinished
    return entry.record.settled or entry.record.state is RecordState.OPEN


def file_name(record: HandOverRecord) -> str:
    """The name of the file with *record*."""
    return f"{record.name}-{record.side}.record"


def try_lock(fd: int) -> bool:
    """Take the file at *fd* for this process, until it is closed. False: another process has it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
