# SPDX-License-Identifier: Apache-2.0
"""Opens files by name where other users may put something in the way: openat(2), path_resolution(7).

A folder that every user may write to is *shared*: /tmp, /dev/shm. What lies in it belongs to whoever was first. So on
the way through a shared folder only entries of root and of this user are taken. A link, a folder or a file of anybody
else is refused. The kernel has such a rule (fs.protected_symlinks, fs.protected_regular), but it can be switched off,
and leaves out folders and sockets.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections import deque
from typing import NamedTuple

MAX_LINKS = 40
"""As many symbolic links as the kernel follows in one name."""

_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class Entry(NamedTuple):
    """What a name leads to.

    Attributes:
        fd: of O_PATH: it can be looked at and opened through :func:`name_of`; the caller closes it.
        shared_folder: the folder that it lies in, if that is shared; empty otherwise.
    """

    fd: int
    shared_folder: str


def find(path: str) -> Entry:
    """Look up *path*; links are followed, those at its end too.

    Raises:
        PermissionError: something of another user lies in a shared folder on the way.
        OSError: there is no such entry, or it cannot be reached.
    """
    return _Walk().to(path)


def open_file(path: str, flags: int, mode: int = 0o600) -> int:
    """Open *path* as open(2) does. With O_CREAT a new file gets *mode*. The caller closes the descriptor.

    Raises:
        PermissionError: something of another user lies in a shared folder on the way, also the file itself.
        OSError: as for open(2).
    """
    folder, name = os.path.split(path)
    if flags & os.O_CREAT and name:
        entry = find(folder or ".")
        try:
            return os.open(name, flags | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=entry.fd)
        except FileExistsError:
            if flags & os.O_EXCL:
                raise
        finally:
            os.close(entry.fd)
    entry = find(path)
    try:
        return os.open(name_of(entry.fd), flags & ~(os.O_CREAT | os.O_NOFOLLOW) | os.O_CLOEXEC)
    finally:
        os.close(entry.fd)


def make_folder(path: str) -> int:
    """Open the folder *path*. Folders that are missing on the way are made with mode 0700. The caller closes it.

    Raises:
        PermissionError: something of another user lies in a shared folder on the way.
        OSError: it cannot be made, or is no folder.
    """
    entry = _Walk(makes_folders=True).to(path)
    try:
        return os.open(name_of(entry.fd), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    finally:
        os.close(entry.fd)


def name_of(fd: int) -> str:
    """A name of what *fd* is open on, whatever became of its own name."""
    return f"/proc/self/fd/{fd}"


class _Walk:
    """Follows a name entry by entry.

    Args:
        makes_folders: whether missing folders are made.
    """

    def __init__(self, *, makes_folders: bool = False) -> None:
        self._makes_folders = makes_folders
        self._links = 0
        self._fd = -1
        self._shared_folder = ""

    def to(self, path: str) -> Entry:
        if not path:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        try:
            self._go_to("/" if path.startswith("/") else ".")
            names = deque(path.split("/"))
            while names:
                if (name := names.popleft()) not in ("", "."):
                    self._step(name, names)
        except BaseException:
            if self._fd >= 0:
                os.close(self._fd)
            raise
        return Entry(self._fd, self._shared_folder)

    def _go_to(self, start: str) -> None:
        self._replace(os.open(start, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))

    def _replace(self, fd: int) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = fd

    def _step(self, name: str, names: deque[str]) -> None:
        """Go on to the entry *name* of the folder. The parts of a link are put before *names*, which are left."""
        folder = os.fstat(self._fd)
        fd = self._open(name)
        try:
            entry = os.fstat(fd)
            shared = stat.S_ISDIR(folder.st_mode) and folder.st_mode & stat.S_IWOTH and name != ".."
            self._shared_folder = os.readlink(name_of(self._fd)) if shared else ""
            if shared and entry.st_uid not in (0, os.geteuid()):
                raise PermissionError(
                    errno.EPERM,
                    f"{self._shared_folder}/{name} belongs to user {entry.st_uid} in a folder that everyone may write "
                    f"to, expected root or user {os.geteuid()}",
                )
            if stat.S_ISLNK(entry.st_mode):
                self._follow(name, fd, names)
                return
        except BaseException:
            os.close(fd)
            raise
        self._replace(fd)

    def _open(self, name: str) -> int:
        try:
            return os.open(name, _LOOK, dir_fd=self._fd)
        except FileNotFoundError:
            if not self._makes_folders:
                raise
            with contextlib.suppress(FileExistsError):  # another process was faster
                os.mkdir(name, 0o700, dir_fd=self._fd)
            return os.open(name, _LOOK, dir_fd=self._fd)

    def _follow(self, name: str, link_fd: int, names: deque[str]) -> None:
        self._links += 1
        if self._links > MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        if os.fstat(link_fd).st_dev == os.stat("/proc/self").st_dev:
            # A link of the kernel, which need not be a name at all: to a pipe, or to a file that has none any more.
            self._replace(os.open(name, os.O_PATH | os.O_CLOEXEC, dir_fd=self._fd))
        else:
            target = os.readlink("", dir_fd=link_fd)
            if target.startswith("/"):
                self._go_to("/")
            names.extendleft(reversed(target.split("/")))
        os.close(link_fd)
