# SPDX-License-Identifier: Apache-2.0
"""Writes sections: the counterpart of :mod:`parmig.stream.sections`, without a check of their order."""

from __future__ import annotations

from collections.abc import Sequence

from parmig.stream.configuration import Configuration, write_configuration
from parmig.stream.data_file import MigrationDataFile
from parmig.stream.flags import (
    MIGRATION_VM_COMMAND,
    MIGRATION_VM_EOF,
    MIGRATION_VM_FILE_MAGIC,
    MIGRATION_VM_FILE_VERSION,
    MIGRATION_VM_SECTION_END,
    MIGRATION_VM_SECTION_FOOTER,
    MIGRATION_VM_SECTION_FULL,
    MIGRATION_VM_SECTION_PART,
    MIGRATION_VM_SECTION_START,
    MIGRATION_VM_VMDESCRIPTION,
)
from parmig.units import MIB

MAX_COMMAND_BYTES = 0xFFFF
MAX_VMDESCRIPTION_BYTES = 8 * MIB
"""A small guest's has 100 KiB, each further CPU adds 6 KiB (QEMU 7.2, x86)."""


class SectionWriter:
    """Puts sections into *data*. The caller puts each body, between its head and its footer."""

    def __init__(self, data: MigrationDataFile) -> None:
        self._data = data

    def header(self) -> None:
        """Magic and version."""
        self._data.put_be32(MIGRATION_VM_FILE_MAGIC)
        self._data.put_be32(MIGRATION_VM_FILE_VERSION)

    def configuration(self, machine: str, capabilities: Sequence[str] = (), uuid: bytes | None = None) -> None:
        """What must match at the reader, and which capabilities change the format.

        Raises:
            StreamTooLongError, StreamDataError: it cannot be written.
        """
        write_configuration(self._data, Configuration(machine, tuple(capabilities), uuid))

    def start(self, section_id: int, idstr: str, instance_id: int, version_id: int) -> None:
        """The head of a section that PARTs and an END will continue."""
        self._put_head(MIGRATION_VM_SECTION_START, section_id, idstr, instance_id, version_id)

    def full(self, section_id: int, idstr: str, instance_id: int, version_id: int) -> None:
        """The head of a section that is complete in itself."""
        self._put_head(MIGRATION_VM_SECTION_FULL, section_id, idstr, instance_id, version_id)

    def part(self, section_id: int) -> None:
        """The head of a further part of a started section."""
        self._data.put_byte(MIGRATION_VM_SECTION_PART)
        self._data.put_be32(section_id)

    def end(self, section_id: int) -> None:
        """The head of the last part of a started section."""
        self._data.put_byte(MIGRATION_VM_SECTION_END)
        self._data.put_be32(section_id)

    def footer(self, section_id: int) -> None:
        """The bytes after each body."""
        self._data.put_byte(MIGRATION_VM_SECTION_FOOTER)
        self._data.put_be32(section_id)

    def command(self, command: int, payload: bytes = b"") -> None:
        """A COMMAND section, all of it.

        Raises:
            StreamTooLongError: *payload* is over 65535 bytes.
        """
        self._data.check_length(len(payload), MAX_COMMAND_BYTES, "a command")
        self._data.put_byte(MIGRATION_VM_COMMAND)
        self._data.put_be16(command)
        self._data.put_be16(len(payload))
        self._data.put_buffer(payload)

    def eof(self) -> None:
        """The end of the sections."""
        self._data.put_byte(MIGRATION_VM_EOF)

    def vmdescription(self, json_bytes: bytes) -> None:
        """(after ``eof``) The JSON that describes the devices.

        Raises:
            StreamTooLongError: it is over 8 MiB.
        """
        self._data.check_length(len(json_bytes), MAX_VMDESCRIPTION_BYTES, "a description of devices")
        self._data.put_byte(MIGRATION_VM_VMDESCRIPTION)
        self._data.put_be32(len(json_bytes))
        self._data.put_buffer(json_bytes)

    def _put_head(self, kind: int, section_id: int, idstr: str, instance_id: int, version_id: int) -> None:
        self._data.put_byte(kind)
        self._data.put_be32(section_id)
        self._data.put_counted_string(idstr)
        self._data.put_be32(instance_id)
        self._data.put_be32(version_id)
