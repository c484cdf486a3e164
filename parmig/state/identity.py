# SPDX-License-Identifier: Apache-2.0
"""Names, numbers and versions of what is in a stream: what may be declared, and what may be loaded."""

from __future__ import annotations

from parmig.errors import StateError
from parmig.stream.flags import MAX_NAME_BYTES

U32_MAX = 0xFFFF_FFFF
"""Versions, instances and counts are u32."""


def check_name(name: str) -> None:
    """Refuse a name that cannot be written.

    Raises:
        ValueError: it is not 1 to 255 printable ASCII characters.
    """
    if not (name.isascii() and name.isprintable() and 0 < len(name) <= MAX_NAME_BYTES):
        raise ValueError(f"idstr {name!r} is not allowed, expected 1 to {MAX_NAME_BYTES} printable ASCII characters")


def check_instance(name: str, instance_id: int) -> None:
    """Refuse a number that cannot be written.

    Raises:
        ValueError: it is no u32.
    """
    if not 0 <= instance_id <= U32_MAX:
        raise ValueError(f"{name} has instance_id {instance_id}, expected 0 to {U32_MAX}")


def check_versions(name: str, version: int, minimum_version: int) -> None:
    """Refuse versions that cannot be written.

    Raises:
        ValueError: they are out of range, or the oldest is above the newest.
    """
    if not 1 <= minimum_version <= version <= U32_MAX:
        raise ValueError(
            f"{name} has versions {minimum_version} to {version}, expected ascending ones from 1 to {U32_MAX}"
        )


def refuse_version(record_version: int, version: int, minimum_version: int) -> None:
    """Refuse a record whose version is not known here.

    Raises:
        StateError: *record_version* is newer than *version* or older than *minimum_version*.
    """
    if record_version > version:
        raise StateError(
            f"version {record_version} is unknown, expected {minimum_version} to {version}; "
            "use a destination that is at least as new as the source"
        )
    if record_version < minimum_version:
        raise StateError(
            f"version {record_version} is too old, expected {minimum_version} to {version}; use a newer source"
        )
