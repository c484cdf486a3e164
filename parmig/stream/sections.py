# SPDX-License-Identifier: Apache-2.0
"""Sections: header, configuration, START, PART, END, FULL, footers, commands, EOF and VMDESCRIPTION.

A section's body has no length. The caller, who knows its kind, reads it between :meth:`SectionReader.next` and
:meth:`SectionReader.footer`. This module knows what surrounds bodies and in which order, and does no I/O of its
own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum

from parmig.errors import (
    StreamFooterError,
    StreamMagicError,
    StreamSectionError,
    StreamTooLongError,
    StreamVersionError,
)
from parmig.stream.configuration import Configuration, read_configuration
from parmig.stream.data_file import MigrationDataFile
from parmig.stream.flags import (
    MIGRATION_VM_COMMAND,
    MIGRATION_VM_CONFIGURATION,
    MIGRATION_VM_EOF,
    MIGRATION_VM_FILE_MAGIC,
    MIGRATION_VM_FILE_VERSION,
    MIGRATION_VM_SECTION_END,
    MIGRATION_VM_SECTION_FOOTER,
    MIGRATION_VM_SECTION_FULL,
    MIGRATION_VM_SECTION_PART,
    MIGRATION_VM_SECTION_START,
    MIGRATION_VM_VMDESCRIPTION,
    MigrationCommand,
)
from parmig.stream.section_writer import MAX_VMDESCRIPTION_BYTES

MAX_SECTIONS = 16384
"""Sections with a number of their own; a guest with 255 CPUs has about 1,500. Bounds what a reader remembers."""


class SectionKind(IntEnum):
    """The type byte of a section with a body."""

    START = MIGRATION_VM_SECTION_START
    PART = MIGRATION_VM_SECTION_PART
    END = MIGRATION_VM_SECTION_END
    FULL = MIGRATION_VM_SECTION_FULL


_HEADS = (SectionKind.START, SectionKind.FULL)
"""Kinds that contain a name; the others continue a START."""
_CONTINUED = (SectionKind.PART, SectionKind.END)


@dataclass(frozen=True, slots=True)
class SectionHead:
    """A section whose body comes next.

    PART and END carry only their number; their names are those of the START of that number.

    Attributes:
        offset_bytes: of the section's type byte in the stream.
    """

    kind: SectionKind
    section_id: int
    idstr: str
    instance_id: int
    version_id: int
    offset_bytes: int


@dataclass(frozen=True, slots=True)
class Command:
    """A COMMAND section, which is complete.

    The payload of PACKAGED is only a length; the sections that it counts follow like any others.
    """

    command: MigrationCommand
    payload: bytes
    offset_bytes: int


@dataclass(frozen=True, slots=True)
class EndOfStream:
    """The EOF mark; nothing but a VMDESCRIPTION follows."""

    offset_bytes: int


class SectionReader:
    """Reads the sections of *data*, one after the other.

    ::

        reader = SectionReader(data)
        reader.read_header()
        while not isinstance(item := reader.next(), EndOfStream):
            if isinstance(item, SectionHead):
                ...  # get the body from data
                reader.footer(item)
        description = reader.vmdescription()

    Every method raises StreamTruncatedError if the stream ends early.
    """

    def __init__(self, data: MigrationDataFile) -> None:
        self._data = data
        self._heads: dict[tuple[SectionKind, int], SectionHead] = {}
        self._ended: set[int] = set()
        self._begun = False

    def read_header(self) -> None:
        """Magic and version.

        Raises:
            StreamMagicError: this is no migration stream.
            StreamVersionError: of another version than 3.
        """
        magic = self._data.get_be32()
        if magic != MIGRATION_VM_FILE_MAGIC:
            raise self._data.error(
                StreamMagicError,
                f"the file begins with {magic:#x}, expected {MIGRATION_VM_FILE_MAGIC:#x}; it is not a migration stream",
                self._data.position_bytes - 4,
            )
        version = self._data.get_be32()
        if version != MIGRATION_VM_FILE_VERSION:
            raise self._data.error(
                StreamVersionError,
                f"the stream has version {version}, expected {MIGRATION_VM_FILE_VERSION}",
                self._data.position_bytes - 4,
            )

    def next(self) -> Configuration | SectionHead | Command | EndOfStream:
        """What comes next. After a SectionHead get the body, then call :meth:`footer`.

        Raises:
            StreamSectionError: a type that is not known, a number that is not known or used twice, a section that is
                not due here, or too many of them.
            StreamDataError: a name or a value in a head that makes no sense.
            StreamTooLongError: a length over its limit.
        """
        offset_bytes = self._data.position_bytes
        kind = self._data.get_byte()
        first, self._begun = not self._begun, True
        if kind in _HEADS:
            return self._head(SectionKind(kind), offset_bytes)
        if kind in _CONTINUED:
            return self._continued(SectionKind(kind), offset_bytes)
        if kind == MIGRATION_VM_COMMAND:
            return self._command(offset_bytes)
        if kind == MIGRATION_VM_EOF:
            return EndOfStream(offset_bytes)
        if kind == MIGRATION_VM_CONFIGURATION and first:
            return read_configuration(self._data)
        raise self._data.error(
            StreamSectionError,
            f"type {kind:#04x} is unknown, expected a section or the end; "
            "a body has an unknown length, or the stream is damaged",
            offset_bytes,
        )

    def footer(self, head: SectionHead) -> None:
        """Read the footer after the body of *head*.

        Raises:
            StreamFooterError: something else follows the body.
        """
        offset_bytes = self._data.position_bytes
        mark, section_id = self._data.get_byte(), self._data.get_be32()
        if mark != MIGRATION_VM_SECTION_FOOTER or section_id != head.section_id:
            raise self._data.error(
                StreamFooterError,
                f"{mark:#04x} {section_id} follows section {head.section_id} ({head.idstr!r}), expected its footer; "
                "the body is longer or shorter than the reader assumed",
                offset_bytes,
            )

    def vmdescription(self) -> bytes | None:
        """(after EndOfStream) The JSON that describes the devices, or None when the stream ends without one.

        What follows it, if anything, is not read.

        Raises:
            StreamTooLongError: something else follows the end, or the JSON is over 8 MiB.
        """
        if self._data.at_end():
            return None
        offset_bytes = self._data.position_bytes
        kind = self._data.get_byte()
        if kind != MIGRATION_VM_VMDESCRIPTION:
            raise self._data.error(
                StreamTooLongError,
                f"{kind:#04x} follows the end of the stream, expected a description or nothing",
                offset_bytes,
            )
        size_bytes = self._data.get_be32()
        self._data.check_length(size_bytes, MAX_VMDESCRIPTION_BYTES, "a description of devices")
        return self._data.get_buffer(size_bytes, MAX_VMDESCRIPTION_BYTES)

    # -- kinds ----------------------------------------------------------------------------------

    def _head(self, kind: SectionKind, offset_bytes: int) -> SectionHead:
        data = self._data
        section_id, idstr = data.get_be32(), data.get_counted_string()
        head = SectionHead(kind, section_id, idstr, data.get_be32(), data.get_be32(), offset_bytes)
        # A device with both live data and plain state (VFIO) has a START and a FULL of one number.
        for known in (self._heads.get((other, section_id)) for other in _HEADS):
            if known and (known.kind is kind or (known.idstr, known.instance_id) != (idstr, head.instance_id)):
                raise data.error(
                    StreamSectionError,
                    f"section {section_id} ({idstr!r}) has the number of {known.idstr!r} at byte {known.offset_bytes}",
                    offset_bytes,
                )
        if len(self._heads) >= MAX_SECTIONS:
            raise data.error(
                StreamSectionError, f"the stream has more than {MAX_SECTIONS} sections, expected no more", offset_bytes
            )
        self._heads[kind, section_id] = head
        return head

    def _continued(self, kind: SectionKind, offset_bytes: int) -> SectionHead:
        section_id = self._data.get_be32()
        begun = self._heads.get((SectionKind.START, section_id))
        if begun is None or section_id in self._ended:
            raise self._data.error(
                StreamSectionError,
                f"{kind.name} names section {section_id}, expected one that has begun and not ended",
                offset_bytes,
            )
        if kind is SectionKind.END:
            self._ended.add(section_id)
        return replace(begun, kind=kind, offset_bytes=offset_bytes)

    def _command(self, offset_bytes: int) -> Command:
        number, size_bytes = self._data.get_be16(), self._data.get_be16()
        try:
            command = MigrationCommand(number)
        except ValueError as error:
            raise self._data.error(
                StreamSectionError, f"command {number} is unknown, expected one of QEMU's commands", offset_bytes
            ) from error
        return Command(command, self._data.get_buffer(size_bytes), offset_bytes)
