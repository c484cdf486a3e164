# SPDX-License-Identifier: Apache-2.0
"""The directory of a fleet: an authority, and a directory of keys for each host. Nothing is ever overwritten.

::

    DIR/ca-key.pem        signs certificates; stays where it is
    DIR/ca-cert.pem
    DIR/HOST/             the five files for one host, as key_files names them
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence

from parmig.errors import HostRefusedError, UsageError
from parmig.linux import trusted_files
from parmig.transport.security import key_files
from parmig.transport.security.authority import Pair, make_authority, make_certificate
from parmig.transport.security.key_files import AUTHORITY_FILE, Role

AUTHORITY_KEY_FILE = "ca-key.pem"

ROLES: tuple[Role, ...] = ("server", "client")


def add_hosts(directory: str, hosts: Sequence[tuple[str, ...]], days: int) -> list[str]:
    """Make the files of *hosts*, from ``parse_host``, and the authority if there is none. All, or nothing.

    Returns:
        The directory of each host.

    Raises:
        UsageError: a host is there already or named twice, or the authority cannot sign.
        HostRefusedError: the directory cannot be written, or others may read the authority's key.
    """
    names = [host[0] for host in hosts]
    if len(set(names)) < len(names):
        raise UsageError("a host is named twice; give each host once, with all of its names and addresses")
    with _errors(directory):
        os.close(trusted_files.make_folder(directory))
        targets = [os.path.join(directory, name) for name in names]
        for target in targets:
            if os.path.lexists(target):
                raise UsageError(f"{target} exists, and keys are never overwritten; move it away to replace the keys")
        scratch = tempfile.mkdtemp(prefix=".new-", dir=directory)
        try:
            authority = _authority(directory, scratch)
            for host in hosts:
                files = {AUTHORITY_FILE: authority.certificate}
                for role in ROLES:
                    pair = make_certificate(authority, role, host, days)
                    files |= {key_files.certificate_file(role): pair.certificate, key_files.key_file(role): pair.key}
                _write(os.path.join(scratch, host[0]), files)
            for name, target in zip(names, targets, strict=True):
                os.rename(os.path.join(scratch, name), target)
            _sync(directory)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return targets


def _authority(directory: str, scratch: str) -> Pair:
    """The authority of *directory*, which is made if there is none."""
    key, certificate = (os.path.join(directory, name) for name in (AUTHORITY_KEY_FILE, AUTHORITY_FILE))
    if os.path.lexists(key) or os.path.lexists(certificate):
        return Pair(*(_read(directory, name) for name in (AUTHORITY_FILE, AUTHORITY_KEY_FILE)))
    authority = make_authority()
    new = os.path.join(scratch, ".authority")
    _write(new, {AUTHORITY_FILE: authority.certificate, AUTHORITY_KEY_FILE: authority.key})
    for path in (certificate, key):
        os.link(os.path.join(new, os.path.basename(path)), path)  # unlike a rename, it never overwrites
    return authority


def _read(directory: str, name: str) -> bytes:
    with key_files.opened(directory, name, private=name == AUTHORITY_KEY_FILE) as path, open(path, "rb") as file:
        return file.read()


def _write(directory: str, files: Mapping[str, bytes]) -> None:
    os.mkdir(directory, 0o700)
    for name, data in files.items():
        fd = os.open(os.path.join(directory, name), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
    _sync(directory)


def _sync(directory: str) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def _errors(directory: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise HostRefusedError(
            f"cannot write keys to {directory}: {error.strerror}; choose another directory"
        ) from error
