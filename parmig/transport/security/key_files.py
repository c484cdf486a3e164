# SPDX-License-Identifier: Apache-2.0
"""A directory of keys and certificates, with the file names of QEMU and Cloud Hypervisor.

======================  =======================================================================
``ca-cert.pem``         the certificates of the authorities whose certificates are let in
``ca-crl.pem``          (if it exists) the certificates that the authority has revoked
``server-cert.pem``     the certificate of a receiver, and those between it and the authority
``server-key.pem``      its private key
``client-cert.pem``     the same for a sender
``client-key.pem``
======================  =======================================================================

One directory may hold the files of both roles.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from typing import Literal

from parmig.errors import HostRefusedError
from parmig.linux import trusted_files
from parmig.units import MIB

Role = Literal["server", "client"]
"""A receiver is a server, a sender a client: by whichever side listens."""

AUTHORITY_FILE = "ca-cert.pem"
REVOKED_FILE = "ca-crl.pem"

MAX_FILE_BYTES = MIB
"""A certificate has about 1 KiB. Whatever is larger is no file of keys."""


def certificate_file(role: Role) -> str:
    """The name of the certificate of *role*."""
    return f"{role}-cert.pem"


def key_file(role: Role) -> str:
    """The name of the private key of *role*."""
    return f"{role}-key.pem"


@contextlib.contextmanager
def opened(directory: str, name: str, *, private: bool = False) -> Iterator[str]:
    """While the context is open, a name under which the file *name* of *directory* can be read.

    The file was checked through a descriptor, and the name leads to the same descriptor.

    Args:
        private: nobody else may read it. Root's file may be readable by its group, as QEMU's is on some hosts.

    Raises:
        HostRefusedError: it is missing, or belongs to somebody else, or others can read or write it.
    """
    path = os.path.join(directory, name)
    try:
        fd = trusted_files.open_file(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        advice = "check the path of --keys; `parmig keygen` makes all files of such a directory"
        raise HostRefusedError(f"cannot read {path}: {error.strerror}; {advice}") from error
    try:
        reason = _why_unfit(os.fstat(fd), private=private)
        if reason:
            raise HostRefusedError(f"{path} {reason}")
        yield trusted_files.name_of(fd)
    finally:
        os.close(fd)


def _why_unfit(status: os.stat_result, *, private: bool) -> str:
    """What is wrong with a file, and what to do; empty: nothing."""
    if not stat.S_ISREG(status.st_mode) or not 0 < status.st_size <= MAX_FILE_BYTES:
        return f"is no file of 1 to {MAX_FILE_BYTES} bytes; expected text that begins with -----BEGIN"
    if status.st_uid not in (0, os.geteuid()):
        return f"belongs to user {status.st_uid}, expected root or user {os.geteuid()}; change its owner"
    allowed = 0o640 if status.st_uid == 0 else 0o600
    most = allowed if private else 0o755
    if stat.S_IMODE(status.st_mode) & ~most & 0o077:
        return (
            f"has mode {stat.S_IMODE(status.st_mode):04o}, so others can {'read' if private else 'change'} it; "
            f"expected {most if private else 0o644:04o} at most: chmod {allowed if private else 0o644:o}"
        )
    return ""
