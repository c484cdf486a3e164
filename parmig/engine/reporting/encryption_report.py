# SPDX-License-Identifier: Apache-2.0
"""What a report says of encryption."""

from __future__ import annotations

import msgspec

from parmig.probes.kernel_tls import why_not_used
from parmig.transport.registry import data_scheme, needs_curve
from parmig.transport.security.encryption import Encryption


class EncryptionReport(msgspec.Struct, kw_only=True):
    """How the channels were encrypted: ``kind`` is ``tls``, and ``pages`` is ``curve`` if ZeroMQ carried them.

    ``version`` and ``cipher`` are those of the control channel. ``kernel``: whether the kernel encrypts, not parmig's
    workers; ``kernel_reason``: why it does not. ``peer`` has the names in the certificate of the other host, and
    ``fingerprint`` is its SHA-256.
    """

    kind: str = "tls"
    pages: str = "tls"
    version: str = ""
    cipher: str = ""
    kernel: bool = False
    kernel_reason: str = ""
    peer: list[str] = []
    fingerprint: str = ""


def encryption_report(encryption: Encryption | None, transport: str) -> EncryptionReport | None:
    """What the report says of the *encryption* of the control channel, if *transport* carries the pages."""
    if encryption is None:
        return None
    return EncryptionReport(
        pages="curve" if needs_curve(data_scheme(transport)) else "tls",
        version=encryption.version,
        cipher=encryption.cipher,
        kernel=encryption.kernel,
        kernel_reason="" if encryption.kernel else why_not_used(),
        peer=list(encryption.peer_names),
        fingerprint=encryption.fingerprint,
    )
