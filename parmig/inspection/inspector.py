# SPDX-License-Identifier: Apache-2.0
"""Goes through a stream once, from its header to its end, and writes down what is there.

Sections have no length field. Memory marks its own end, and the description at the end of the stream has the length of
each device. Without the description, everything after memory is one piece.
"""

from __future__ import annotations

from uuid import UUID

from parmig.errors import ParmigError, StreamError, StreamSectionError, StreamTruncatedError
from parmig.inspection.device_reader import DeviceReader
from parmig.inspection.inspection_report import (
    DeviceInspection,
    Inspection,
    InspectionError,
    SectionInspection,
    TrailerInspection,
)
from parmig.inspection.memory_reader import MemoryReader
from parmig.inspection.stream_source import Source, open_source
from parmig.stream import trailer, vmdescription
from parmig.stream.configuration import MAPPED_RAM, Configuration
from parmig.stream.data_file import MigrationDataFile
from parmig.stream.flags import (
    MIGRATION_VM_EOF,
    MIGRATION_VM_FILE_VERSION,
    MIGRATION_VM_SECTION_FOOTER,
    MIGRATION_VM_VMDESCRIPTION,
)
from parmig.stream.sections import Command, EndOfStream, SectionHead, SectionKind, SectionReader
from parmig.units import KIB, MIB

MOST_TRAILING_BYTES = 64 * KIB
"""At most this much after the end of the stream is read; parmig's trailer, with the filling before it, is smaller."""
SHOWN_BYTES = 80
MOST_NAMED = 10
EOF_TAIL_BYTES = 6
"""A footer, be32 of its section, and EOF."""


def inspect_file(path: str) -> Inspection:
    """What the stream in the file or pipe at *path* (``-``: standard input) holds.

    A stream that is damaged or cut short is described as far as it goes: ``complete`` is False, ``error`` and
    ``notes`` give the reason.

    Raises:
        UsageError: *path* cannot be opened.
    """
    with open_source(path) as source:
        walk = _Walk(source)
        inspection = walk.inspection
        try:
            walk.whole()
            inspection.complete = True
        except ParmigError as error:
            offset_bytes = error.offset_bytes if isinstance(error, StreamError) else None
            inspection.error = InspectionError(type=type(error).__name__, message=str(error), offset_bytes=offset_bytes)
            inspection.notes.append(str(error))
        walk.sum_up()
    return inspection


class _Walk:
    """One walk through *source*. ``inspection`` describes what was read so far."""

    def __init__(self, source: Source) -> None:
        self.inspection = Inspection(file=source.name, allocated_bytes=source.allocated_bytes)
        self._source = source
        self._data = MigrationDataFile(source.transport, source.name)
        self._reader = SectionReader(self._data)
        self._sections: dict[tuple[str, int], SectionInspection] = {}
        self._memory = MemoryReader(self._data, source, self.inspection)
        self._devices: DeviceReader | None = None

    def whole(self) -> None:
        """Go from the header to the end.

        Raises:
            StreamError, SnapshotError, TransportError, LimitExceededError: why it goes no further.
        """
        self._reader.read_header()
        self.inspection.format, self.inspection.version = "qemu-stream", MIGRATION_VM_FILE_VERSION
        while not isinstance(item := self._reader.next(), EndOfStream):
            if isinstance(item, Configuration):
                self._configuration(item)
            elif isinstance(item, Command):
                name = item.command.name
                self.inspection.commands[name] = self.inspection.commands.get(name, 0) + 1
            elif not self._section(item):
                return
        if self._memory.unfinished:
            raise self._data.error(
                StreamSectionError, "the stream ends within its RAM, expected the end of RAM first", item.offset_bytes
            )
        self._description()
        self._trailing()

    def _configuration(self, configuration: Configuration) -> None:
        inspection = self.inspection
        inspection.machine, inspection.capabilities = configuration.machine, list(configuration.capabilities)
        inspection.uuid = str(UUID(bytes=configuration.uuid)) if configuration.uuid else None
        if MAPPED_RAM in inspection.capabilities:
            inspection.format = MAPPED_RAM

    def _section(self, head: SectionHead) -> bool:
        """A section with its body and footer; False when its end cannot be known."""
        kind = "full" if head.kind is SectionKind.FULL else "live"
        section = self._sections.get((kind, head.section_id))
        if section is None:
            section = self._sections[kind, head.section_id] = SectionInspection(
                kind=kind,
                section_id=head.section_id,
                idstr=head.idstr,
                instance_id=head.instance_id,
                version=head.version_id,
                offset_bytes=head.offset_bytes,
            )
            self.inspection.sections.append(section)
        if kind == "live":
            self._memory.read(head)
        elif not self._device(head):
            return False
        self._reader.footer(head)
        section.parts += 1
        section.bytes = (section.bytes or 0) + self._data.position_bytes - head.offset_bytes
        return True

    # -- devices --------------------------------------------------------------------------------

    def _device(self, head: SectionHead) -> bool:
        """The body of a device's section; False if its length is unknown."""
        if self._devices is None:
            tail = self._source.tail()
            place = vmdescription.find(tail)
            if place is None:
                self._undescribed(head, tail)
                return False
            self._devices = DeviceReader(vmdescription.parse(tail[place]), self.inspection.notes)
        self.inspection.devices.append(self._devices.read(self._data, head))
        return True

    def _undescribed(self, head: SectionHead, tail: bytes) -> None:
        """Without a description, the rest is the state of *head* and of other devices, and cannot be split."""
        name, size_bytes = head.idstr, self._source.size_bytes() - head.offset_bytes
        self.inspection.devices.append(
            DeviceInspection(idstr=name, instance_id=head.instance_id, version=head.version_id)
        )
        if self._memory.unfinished:
            raise self._data.error(
                StreamSectionError,
                f"device {name!r} comes before the end of memory, and no description has its length",
                head.offset_bytes,
            )
        self.inspection.device_state_bytes = size_bytes
        mark, last = tail[-EOF_TAIL_BYTES : 1 - EOF_TAIL_BYTES], tail[-1:]
        whole = mark == bytes((MIGRATION_VM_SECTION_FOOTER,)) and last == bytes((MIGRATION_VM_EOF,))
        if not whole or self._is_snapshot():  # a snapshot of parmig always has a description
            raise self._data.error(
                StreamTruncatedError,
                f"the stream is cut short in or after its device state, {size_bytes} bytes from {name!r} on; expected "
                "a description at its end, or a footer and the end mark",
                head.offset_bytes,
            )
        self.inspection.notes.append(
            f"no description of devices at the end (VMDESCRIPTION): device state, {size_bytes} bytes from {name!r} on, "
            "cannot be split into devices"
        )

    # -- the end --------------------------------------------------------------------------------

    def _description(self) -> None:
        inspection = self.inspection
        if self._data.at_end() or self._data.peek_byte() != MIGRATION_VM_VMDESCRIPTION:
            inspection.notes.append("no description of devices at the end (VMDESCRIPTION)")
        else:
            inspection.vmdescription_bytes = len(self._reader.vmdescription() or b"")
        if left := self._devices.left if self._devices else []:
            more = " and more" if len(left) > MOST_NAMED else ""
            inspection.notes.append(f"described, but not there: devices {', '.join(left[:MOST_NAMED])}{more}")

    def _trailing(self) -> None:
        """What follows the end of the stream: nothing, parmig's trailer, or something else."""
        data, inspection, end_bytes = self._data, self.inspection, self._data.position_bytes
        content = bytearray()
        while len(content) < MOST_TRAILING_BYTES and not data.at_end():
            content += data.peek_view(1, MOST_TRAILING_BYTES)
            data.advance(end_bytes + len(content) - data.position_bytes)
        while self._source.fd is None and not data.at_end():  # a pipe has no length before its end
            data.advance(len(data.peek_view(1, MIB)))
        total_bytes = self._source.size_bytes()
        inspection.trailing_bytes = total_bytes - end_bytes
        offset_bytes = max(end_bytes, trailer.trailer_offset(total_bytes))
        end = trailer.decode(bytes(content[offset_bytes - end_bytes :]), offset_bytes)
        if end is not None:
            inspection.trailer = TrailerInspection(
                parmig=end.parmig, guest=end.guest, body_bytes=end.body_bytes, digest=end.digest
            )
            inspection.notes.append("a snapshot of parmig; its digest was not compared with its content")
        elif self._is_snapshot():
            raise data.error(
                StreamTruncatedError, "the snapshot has no trailer, expected parmig's; it was cut short", end_bytes
            )
        elif content:
            shown = bytes(content[:SHOWN_BYTES])
            inspection.notes.append(f"{inspection.trailing_bytes} bytes follow the end of the stream: {shown!r}")

    def _is_snapshot(self) -> bool:
        """Whether parmig wrote this as a snapshot, which ends with a trailer."""
        return any(section.section_id == trailer.MARKED_SECTION_ID for section in self.inspection.sections)

    def sum_up(self) -> None:
        """Add what only the whole stream shows."""
        inspection = self.inspection
        inspection.total_bytes = self._source.size_bytes()
        inspection.device_state_bytes += sum(
            section.bytes or 0 for section in inspection.sections if section.kind == "full"
        )
        inspection.notes += self._memory.sum_up()
        if (
            inspection.format
            and inspection.allocated_bytes is not None
            and inspection.allocated_bytes + MIB < inspection.total_bytes
        ):
            inspection.notes.append(
                f"sparse: {inspection.total_bytes} bytes long, "
                f"{inspection.allocated_bytes} of them allocated on the disk"
            )
