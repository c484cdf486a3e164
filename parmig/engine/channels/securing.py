# SPDX-License-Identifier: Apache-2.0
"""What secures a migration: the keys that the user gave, and what the report says of them."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from typing import Protocol

from parmig.errors import UsageError
from parmig.transport.registry import data_scheme, needs_curve
from parmig.transport.security.curve_keys import has_curve
from parmig.transport.security.key_files import Role
from parmig.transport.security.security import Security
from parmig.transport.transport import UNIX_SCHEME, Endpoint


class WithKeys(Protocol):
    """Options that name keys."""

    @property
    def keys(self) -> str:
        """A directory, or empty."""

    @property
    def peers(self) -> tuple[str, ...]:
        """Whom to talk to."""


def security_of(config: WithKeys, endpoint: Endpoint) -> Security | None:
    """What secures channels to or at *endpoint*. None: nothing, or the kernel, which knows who is at a Unix socket.

    Raises:
        UsageError: the pages would not be encrypted.
    """
    if not config.keys or endpoint.scheme == UNIX_SCHEME:
        return None
    return Security(config.keys, config.peers)


def can_encrypt(transport: str) -> bool:
    """Whether pages can be encrypted here if the transport called *transport* carries them."""
    return not needs_curve(data_scheme(transport)) or has_curve()


def check_encrypted(choice: str) -> None:
    """Raise :class:`UsageError` if the transport that *choice* means cannot encrypt pages here."""
    if not can_encrypt(choice):
        raise UsageError(
            "the ZeroMQ of this host was built without CURVE, so --transport zmq cannot encrypt pages; "
            "leave it out, or install a pyzmq with libsodium"
        )


def is_exposed(host: str) -> bool:
    """Whether *host* is an address, or has one, that is not on loopback. A wildcard is all addresses.

    Raises:
        OSError, UnicodeError: *host* cannot be resolved.
    """
    bare = host.strip("[]")
    if bare in ("*", ""):
        return True
    addresses = {entry[4][0] for entry in socket.getaddrinfo(bare, None)}
    return not all(ipaddress.ip_address(str(address).partition("%")[0]).is_loopback for address in addresses)


def is_insecure(security: Security | None, endpoint: Endpoint, hosts: Iterable[str] = ()) -> bool:
    """Whether guests travel beyond this host without encryption, to or at *endpoint* or any of *hosts*."""
    if security is not None or endpoint.scheme == UNIX_SCHEME:
        return False
    for host in (*endpoint.hosts, *hosts):
        try:
            if is_exposed(host):
                return True
        except (OSError, UnicodeError):
            pass  # what uses it tells more
    return False


def prepare(security: Security | None, role: Role) -> list[str]:
    """Read the keys of this side, and return a line for each of its certificates that ends soon.

    Raises:
        HostRefusedError: a file is missing or unfit.
    """
    if security is None:
        return []
    _ = security.server_context if role == "server" else security.client_context
    from parmig.transport.security.expiry import ends_soon, expiries  # takes 50 ms to import, and only keys need it

    return [str(expiry) for expiry in expiries(security.directory, role) if ends_soon(expiry)]
