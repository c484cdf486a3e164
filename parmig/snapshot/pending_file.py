# SPDX-License-Identifier: Apache-2.0
"""A file that gets its name only once it is complete, so that nothing half-written ever has that name.

It is made without any name (O_TMPFILE) and linked when all of it is on the disk. If the file system cannot do that, the
file has a hidden name until then, and a writer that is killed leaves it behind.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import tempfile
from pathlib import Path

from parmig.errors import HostRefusedError, SnapshotError

MODE = 0o600
"""It holds all of a guest's memory: only its owner may read it."""


class PendingFile:
    """A new file in the directory of *path*; a context manager that removes it unless it was committed.

    Args:
        path: its name to be.
        replace: whether there may be a file of that name, which is then replaced at the end.

    Attributes:
        fd: readable and writable; valid until close().

    Raises:
        HostRefusedError: no file can be made there, or there is one already.
    """

    def __init__(self, path: Path, *, replace: bool) -> None:
        self.path = path.absolute()
        self._replace = replace
        self._hidden: Path | None = None
        self._check_name()
        try:
            self.fd = os.open(self.path.parent, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, MODE)
        except OSError as error:
            self.fd = self._open_hidden(error)

    def _check_name(self) -> None:
        try:
            mode = os.stat(self.path).st_mode
        except FileNotFoundError:
            return
        except OSError as error:
            raise HostRefusedError(f"{self.path} cannot be written: {error.strerror}") from error
        if not stat.S_ISREG(mode):
            raise HostRefusedError(f"{self.path} exists and is not a file; give another name")
        if not self._replace:
            raise HostRefusedError(f"{self.path} already exists; give another name, or --force to replace it")

    def _open_hidden(self, reason: OSError) -> int:
        """Open a file with a hidden name, because O_TMPFILE failed with *reason*."""
        try:
            fd, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.", suffix=".part")
        except OSError as error:
            raise HostRefusedError(
                f"no file can be created in {self.path.parent}: {error.strerror or reason.strerror}"
            ) from error
        self._hidden = Path(name)
        return fd

    def sync(self) -> None:
        """Bring its content to the disk.

        Raises:
            SnapshotError: the disk failed.
        """
        try:
            os.fsync(self.fd)
        except OSError as error:
            raise SnapshotError(f"{self.path} cannot be synced to the disk: {error.strerror}") from error

    def commit(self) -> None:
        """(after :meth:`sync`) Give it its name. After that it stays.

        Raises:
            SnapshotError: the disk failed, or a file of that name was created meanwhile.
        """
        try:
            self._name()
            directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except FileExistsError as error:
            raise SnapshotError(f"{self.path} was created in the meantime; give another name") from error
        except OSError as error:
            raise SnapshotError(f"{self.path} cannot be given its name: {error.strerror}") from error

    def _name(self) -> None:
        if self._hidden is None and not self._replace:
            self._link(self.path)
            return
        if self._hidden is None:
            hidden = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}.part")
            self._link(hidden)
            self._hidden = hidden
        if self._replace:
            os.replace(self._hidden, self.path)
        else:
            os.link(self._hidden, self.path)  # unlike a rename it replaces nothing
            os.unlink(self._hidden)
        self._hidden = None

    def _link(self, path: Path) -> None:
        # With a directory descriptor Python calls linkat(2), which alone follows the link in /proc to the file.
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.link(f"/proc/self/fd/{self.fd}", path.name, dst_dir_fd=directory, follow_symlinks=True)
        finally:
            os.close(directory)

    def close(self) -> None:
        """Close it, and delete it unless it was committed. Never raises; calling it twice is fine."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)
        if self._hidden is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._hidden)
            self._hidden = None

    def __enter__(self) -> PendingFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
