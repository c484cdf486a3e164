# SPDX-License-Identifier: Apache-2.0
"""Folders that only the user of this process may use."""

from __future__ import annotations

import os
import stat

from parmig.errors import HostRefusedError
from parmig.linux import trusted_files


def open_private_folder(path: str, what: str, option: str) -> int:
    """A descriptor of the folder *path*, which is made if it is not there. The caller closes it.

    Args:
        what: it is for, in words.
        option: that names another folder.

    Raises:
        HostRefusedError: it cannot be made, or others may use it.
    """
    try:
        fd = trusted_files.make_folder(path)
    except OSError as error:
        raise HostRefusedError(
            f"the directory for {what}, {path}, cannot be used: {error.strerror}; "
            f"make it, or name another with {option}"
        ) from error
    entry = os.fstat(fd)
    if entry.st_uid != os.geteuid() or entry.st_mode & 0o077:
        os.close(fd)
        raise HostRefusedError(
            f"{path} has mode {stat.S_IMODE(entry.st_mode):04o} and belongs to user {entry.st_uid}, "
            f"expected mode 0700 and user {os.geteuid()}; run chmod 700, or name another with {option}"
        )
    return fd
