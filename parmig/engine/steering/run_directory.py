# SPDX-License-Identifier: Apache-2.0
"""The directory with the control sockets of this user's running commands."""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Iterator

from parmig.engine.private_folder import open_private_folder
from parmig.errors import UsageError
from parmig.linux import trusted_files

ENVIRONMENT = "PARMIG_RUN_DIR"
ROOT_DIRECTORY = "/run/parmig"
SUFFIX = ".sock"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def default_directory() -> str:
    """$PARMIG_RUN_DIR; else ``/run/parmig`` for root, and the runtime or state directory of any other user."""
    if chosen := os.environ.get(ENVIRONMENT):
        return chosen
    if os.geteuid() == 0:
        return ROOT_DIRECTORY
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        return os.path.join(runtime, "parmig")
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return os.path.join(state, "parmig", "run")


def check_name(name: str) -> None:
    """Raise UsageError unless *name* may be that of a command."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} is not a name; expected up to 64 letters, digits, dots, dashes and underscores")


@contextlib.contextmanager
def opened_directory() -> Iterator[int]:
    """A descriptor of the directory, which is made if it is not there.

    Raises:
        HostRefusedError: it cannot be made, or others may use it.
    """
    fd = open_private_folder(default_directory(), "control sockets", f"${ENVIRONMENT}")
    try:
        yield fd
    finally:
        os.close(fd)


def names() -> list[str]:
    """The commands whose sockets are in the directory, in order. What was killed may have left one."""
    try:
        entries = os.listdir(default_directory())
    except OSError:
        return []  # no command ever ran
    return sorted(
        entry.removesuffix(SUFFIX)
        for entry in entries
        if entry.endswith(SUFFIX) and _NAME.fullmatch(entry.removesuffix(SUFFIX))
    )


def connect(directory_fd: int, name: str, limit_s: float) -> socket.socket | None:
    """A connection to the command *name*; None: nobody listens. The caller closes it.

    Raises:
        OSError: somebody listens, and did not take the connection within *limit_s*.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(limit_s)
    try:
        sock.connect(f"{trusted_files.name_of(directory_fd)}/{name}{SUFFIX}")  # the path itself may be too long
    except (FileNotFoundError, ConnectionRefusedError):
        sock.close()
        return None
    except BaseException:
        sock.close()
        raise
    return sock
