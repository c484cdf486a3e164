# SPDX-License-Identifier: Apache-2.0
"""What a certificate is made out to, and whether it is one of those that are let in. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from parmig.values import FINGERPRINT_PREFIX, plain_name


def names_of(certificate: Mapping[str, Any]) -> tuple[str, ...]:
    """What *certificate* is made out to: its subjectAltName; its common name only if it has no subjectAltName.

    Args:
        certificate: as ``ssl.SSLSocket.getpeercert()`` gives it.
    """
    names = [value for kind, value in certificate.get("subjectAltName", ()) if kind in ("DNS", "IP Address")]
    if "subjectAltName" not in certificate:
        subject: Sequence[Any] = certificate.get("subject", ())
        names = [value for part in subject for kind, value in part if kind == "commonName"]
    return tuple(filter(None, (plain_name(str(name).strip()) for name in names)))


def fingerprint_of(certificate: bytes) -> str:
    """SHA-256 of a *certificate* in DER, as hexadecimal digits."""
    return hashlib.sha256(certificate).hexdigest()


def is_among(names: Sequence[str], fingerprint: str, peers: Sequence[str]) -> bool:
    """Whether a certificate with these *names* and this *fingerprint* is one of *peers*, from ``parse_peer``."""
    return FINGERPRINT_PREFIX + fingerprint in peers or not set(names).isdisjoint(peers)
