# SPDX-License-Identifier: Apache-2.0
"""What both ends of an encrypted connection have agreed on."""

from __future__ import annotations

from typing import NamedTuple


class Encryption(NamedTuple):
    """How one connection is encrypted, and who is at its other end.

    Attributes:
        version: of TLS, such as ``TLSv1.3``.
        cipher: its name in OpenSSL.
        kernel: whether the kernel encrypts.
        peer_names: what the peer's certificate is made out to: host names and addresses.
        fingerprint: SHA-256 of the peer's certificate, 64 lower-case hexadecimal digits.
        expires_s: when the peer's certificate ends, in seconds since 1970.
    """

    version: str
    cipher: str
    kernel: bool
    peer_names: tuple[str, ...]
    fingerprint: str
    expires_s: float
