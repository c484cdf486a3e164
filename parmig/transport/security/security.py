# SPDX-License-Identifier: Apache-2.0
"""Whom the channels of one migration trust, and by which files."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import msgspec

from parmig.transport.security.encryption import Encryption
from parmig.transport.security.key_files import Role

if TYPE_CHECKING:
    import ssl


class Security(msgspec.Struct, frozen=True, dict=True):
    """What secures the channels of one migration. It may travel to workers: it names files, and holds no key.

    Each process reads the files once, so a migration goes on if they are replaced meanwhile.

    Attributes:
        directory: of keys and certificates; see ``key_files``.
        peers: whom to talk to, from ``parse_peer``; empty: a sender asks for the host that it connects to, and a
            receiver lets in every certificate of the authority.
        pinned: the fingerprint of the only certificate that is let in, whatever ``peers`` says; empty: any of those.
    """

    directory: str
    peers: tuple[str, ...] = ()
    pinned: str = ""

    def pin(self, encryption: Encryption | None) -> Security:
        """The same, for further channels to the peer of a channel with this *encryption*."""
        return msgspec.structs.replace(self, pinned=encryption.fingerprint) if encryption is not None else self

    @cached_property
    def server_context(self) -> ssl.SSLContext:
        """For the side that listens.

        Raises:
            HostRefusedError: a file is missing or unfit.
        """
        return self._context("server")

    @cached_property
    def client_context(self) -> ssl.SSLContext:
        """For the side that connects. Raises as :attr:`server_context`."""
        return self._context("client")

    def _context(self, role: Role) -> ssl.SSLContext:
        # OpenSSL takes 40 ms to import; only keys need it.
        from parmig.transport.security.tls_context import make_context

        return make_context(self.directory, role, check_name=not (self.pinned or self.peers))
