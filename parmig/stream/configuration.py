# SPDX-License-Identifier: Apache-2.0
"""The CONFIGURATION section: the writer's description of the guest, before anything else.

It has a machine type, then subsections, each at most once. One of these lists the capabilities that change the format
of what follows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from parmig.errors import StreamDataError, StreamSectionError, StreamVersionError
from parmig.stream.data_file import MigrationDataFile
from parmig.stream.flags import MIGRATION_VM_CONFIGURATION, MIGRATION_VM_SUBSECTION, TARGET_PAGE_BITS

MAX_MACHINE_BYTES = 255
"""The longest name of a machine type; QEMU's longest has about 30."""
MAX_CAPABILITIES = 64
"""QEMU has about 25, of which it writes two."""
UUID_BYTES = 16
MAPPED_RAM = "mapped-ram"
"""Capability: pages are at fixed places of the file."""
IGNORE_SHARED = "x-ignore-shared"
"""Capability: the stream leaves out memory that both sides share."""
SUBSECTION_VERSION = 1

_CAPABILITIES = "configuration/capabilities"
_UUID = "configuration/uuid"
_PAGE_BITS = "configuration/target-page-bits"


@dataclass(frozen=True, slots=True)
class Configuration:
    """The writer's description of the guest.

    Attributes:
        machine: the machine type, which must be the reader's.
        capabilities: those that change the format: ``x-ignore-shared``, ``mapped-ram``.
        uuid: of the guest, 16 bytes, if ``validate-uuid`` was on.
        page_bits: of the guest's pages, if its kind of CPU leaves their size open.
    """

    machine: str
    capabilities: tuple[str, ...] = ()
    uuid: bytes | None = None
    page_bits: int | None = None


def read_configuration(data: MigrationDataFile) -> Configuration:
    """Read the configuration. Its type byte was read before.

    Raises:
        StreamTooLongError: a name or a list over its limit.
        StreamDataError: a value that makes no sense.
        StreamSectionError: a subsection that is not known, or there twice.
        StreamVersionError: a subsection of another version than 1.
        StreamTruncatedError: the stream ends before the configuration does.
    """
    offset_bytes = data.position_bytes
    size_bytes = data.get_be32()
    data.check_length(size_bytes, MAX_MACHINE_BYTES, "a machine type")
    name = data.get_buffer(size_bytes)
    if not name.isascii():
        raise data.error(StreamDataError, f"the configuration has {name[:40]!r}, expected a machine type", offset_bytes)
    subsections: dict[str, Any] = {}
    while not data.at_end() and data.peek_byte() == MIGRATION_VM_SUBSECTION:
        _read_subsection(data, subsections)
    return Configuration(
        name.decode(), subsections.get(_CAPABILITIES, ()), subsections.get(_UUID), subsections.get(_PAGE_BITS)
    )


def _read_subsection(data: MigrationDataFile, subsections: dict[str, Any]) -> None:
    offset_bytes = data.position_bytes
    data.get_byte()
    name, version = data.get_counted_string(), data.get_be32()
    if name not in _SUBSECTIONS or name in subsections:
        known = ", ".join(_SUBSECTIONS)
        raise data.error(
            StreamSectionError, f"the configuration has {name!r}, expected one each of {known}", offset_bytes
        )
    if version != SUBSECTION_VERSION:
        raise data.error(
            StreamVersionError, f"{name} has version {version}, expected {SUBSECTION_VERSION}", offset_bytes
        )
    subsections[name] = _SUBSECTIONS[name](data)


def _read_capabilities(data: MigrationDataFile) -> tuple[str, ...]:
    count = data.get_be32()
    data.check_length(count, MAX_CAPABILITIES, "a list of capabilities")
    return tuple(data.get_counted_string() for _ in range(count))


def _read_uuid(data: MigrationDataFile) -> bytes:
    return data.get_buffer(UUID_BYTES)


def _read_page_bits(data: MigrationDataFile) -> int:
    bits = data.get_be32()
    if bits != TARGET_PAGE_BITS:
        raise data.error(
            StreamDataError,
            f"the guest has pages of 2^{bits} bytes, expected 2^{TARGET_PAGE_BITS}",
            data.position_bytes - 4,
        )
    return bits


_SUBSECTIONS: dict[str, Callable[[MigrationDataFile], Any]] = {
    _PAGE_BITS: _read_page_bits,
    _CAPABILITIES: _read_capabilities,
    _UUID: _read_uuid,
}
"""Subsections in the order in which QEMU writes them."""


def write_configuration(data: MigrationDataFile, configuration: Configuration) -> None:
    """Write the whole section.

    Raises:
        StreamTooLongError: a name or the list is over its limit.
        StreamDataError: a machine type that is not ASCII, or a UUID of another length.
    """
    machine, uuid = configuration.machine.encode(), configuration.uuid
    if not machine.isascii() or (uuid is not None and len(uuid) != UUID_BYTES):
        raise data.error(
            StreamDataError, f"{configuration} cannot be written, expected a machine in ASCII and a UUID of 16 bytes"
        )
    data.check_length(len(machine), MAX_MACHINE_BYTES, "a machine type")
    data.check_length(len(configuration.capabilities), MAX_CAPABILITIES, "a list of capabilities")
    data.put_byte(MIGRATION_VM_CONFIGURATION)
    data.put_be32(len(machine))
    data.put_buffer(machine)
    if configuration.page_bits is not None:
        _put_head(data, _PAGE_BITS)
        data.put_be32(configuration.page_bits)
    if configuration.capabilities:
        _put_head(data, _CAPABILITIES)
        data.put_be32(len(configuration.capabilities))
        for name in configuration.capabilities:
            data.put_counted_string(name)
    if uuid is not None:
        _put_head(data, _UUID)
        data.put_buffer(uuid)


def _put_head(data: MigrationDataFile, name: str) -> None:
    data.put_byte(MIGRATION_VM_SUBSECTION)
    data.put_counted_string(name)
    data.put_be32(SUBSECTION_VERSION)
