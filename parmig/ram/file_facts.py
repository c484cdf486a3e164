# SPDX-License-Identifier: Apache-2.0
"""What is known of a memory file by its descriptor, which may come from another process."""

from __future__ import annotations

import fcntl
import os
import stat

import msgspec

from parmig.linux import files


class FileFacts(msgspec.Struct, frozen=True):
    """A file, as :func:`facts_of` found it.

    Attributes:
        device, inode: which file it is, on this host.
        size_bytes: its size.
        usable: whether a guest may run on it by this descriptor: a regular file that can be read and written, and that
            nobody can shorten, if it has no name. A file with a name is under the control of whoever gave it that.
    """

    device: int
    inode: int
    size_bytes: int
    usable: bool


def facts_of(fd: int) -> FileFacts:
    """Look at the file of *fd*. Raises OSError."""
    status = os.fstat(fd)
    usable = stat.S_ISREG(status.st_mode) and fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
    if usable and not status.st_nlink:
        usable = files.seals(fd) & (files.SEALS_OF_MEMORY | files.SEALS_AGAINST_WRITES) == files.SEALS_OF_MEMORY
    return FileFacts(status.st_dev, status.st_ino, status.st_size, usable)
