# SPDX-License-Identifier: Apache-2.0
"""When the certificates of a directory end."""

from __future__ import annotations

import datetime as dt
import os
from typing import NamedTuple

from parmig.errors import HostRefusedError, UsageError
from parmig.transport.security import key_files
from parmig.transport.security.authority import read_certificate
from parmig.transport.security.key_files import Role

WARN_DAYS = 30
"""From so many days before its end on, a certificate is warned of."""


class Expiry(NamedTuple):
    """The end of one certificate.

    Attributes:
        path: of its file.
        end: in UTC.
        days_left: rounded down; negative: it has ended.
    """

    path: str
    end: dt.datetime
    days_left: int

    def __str__(self) -> str:
        if self.days_left < 0:
            return f"{self.path} has expired on {self.end:%Y-%m-%d}; make a new one, for example by parmig keygen"
        return f"{self.path} is valid until {self.end:%Y-%m-%d}, for {self.days_left} more days"


def expiries(directory: str, role: Role) -> list[Expiry]:
    """The ends of the certificates that a host with *role* uses: the authority's and its own.

    Raises:
        HostRefusedError: one of them is missing or unfit.
    """
    return [read_expiry(directory, name) for name in (key_files.AUTHORITY_FILE, key_files.certificate_file(role))]


def certificates(directory: str) -> list[str]:
    """The names of the certificates in *directory*: the authority's, and those of the roles that the host has."""
    roles: tuple[Role, ...] = ("server", "client")
    names = [key_files.certificate_file(role) for role in roles]
    return [key_files.AUTHORITY_FILE, *(name for name in names if os.path.lexists(os.path.join(directory, name)))]


def read_expiry(directory: str, name: str) -> Expiry:
    """The end of the first certificate in the file *name*. Raises as :func:`expiries`."""
    path = os.path.join(directory, name)
    with key_files.opened(directory, name) as readable, open(readable, "rb") as file:
        pem = file.read()
    try:
        end = read_certificate(pem).not_valid_after_utc
    except UsageError as error:
        raise HostRefusedError(f"{path}: {error}") from error
    return Expiry(path, end, (end - dt.datetime.now(dt.UTC)).days)


def ends_soon(expiry: Expiry) -> bool:
    """Whether to warn of this certificate."""
    return expiry.days_left < WARN_DAYS
