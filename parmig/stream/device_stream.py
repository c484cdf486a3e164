# SPDX-License-Identifier: Apache-2.0
"""A stream that QEMU loads, made from what its command ``xen-save-devices-state`` wrote.

That command writes a header, devices, and the mark of the end. A QEMU that loads a stream expects a configuration
behind the header, and a description behind the end. Bytes in, bytes out: no I/O.
"""

from __future__ import annotations

import contextlib
import struct
from dataclasses import dataclass

from parmig.errors import (
    StreamDataError,
    StreamFooterError,
    StreamMagicError,
    StreamSectionError,
    StreamTruncatedError,
    StreamVersionError,
)
from parmig.stream.data_file import MigrationDataFile
from parmig.stream.flags import (
    MIGRATION_VM_EOF,
    MIGRATION_VM_FILE_MAGIC,
    MIGRATION_VM_FILE_VERSION,
    MIGRATION_VM_SECTION_FOOTER,
    MIGRATION_VM_SECTION_FULL,
    TARGET_PAGE_BYTES,
)
from parmig.stream.section_writer import SectionWriter
from parmig.stream.sections import MAX_SECTIONS
from parmig.stream.vmdescription import DeviceDescription, FieldDescription, VmDescription, build
from parmig.transport.memory import MemoryStream

_HEADER = struct.Struct(">II")
_FOOTER = struct.Struct(">BI")
_NUMBERS = struct.Struct(">II")
_NAME_AT = 6
"""Bytes of a head before its name: type, number of the section, length of the name."""


@dataclass(frozen=True, slots=True)
class SavedDevice:
    """A FULL section.

    Attributes:
        body: its bytes in what was saved, between head and footer.
    """

    section_id: int
    idstr: str
    instance_id: int
    version_id: int
    body: range


def opening(machine: str) -> bytes:
    """The beginning of the stream, up to the configuration. It can be sent before any device is saved.

    Args:
        machine: the guest's machine type, which must be that of the QEMU that loads the stream.

    Raises:
        StreamError: the machine type cannot be written.
    """
    stream = MemoryStream()
    data = MigrationDataFile(stream, "device state")
    sections = SectionWriter(data)
    sections.header()
    sections.configuration(machine)
    data.flush_data()
    return bytes(stream.written)


def remainder(saved: bytes, *, describe: bool = True) -> bytes:
    """What follows :func:`opening`: *saved* without its header, and a description.

    Without a description, if the devices cannot be told apart: a guest can write bytes into its devices that look
    like other devices, and that must not keep it from moving.

    Args:
        saved: all that ``xen-save-devices-state`` wrote.
        describe: list the devices in the description. A QEMU that loads the stream skips it, and finding 60 devices
            takes 0.8 ms of a pause, so it can be left empty where nobody else reads the stream.

    Raises:
        StreamError: *saved* is not what this command writes.
    """
    check_saved(saved)
    stream = MemoryStream()
    data = MigrationDataFile(stream, "device state")
    sections = SectionWriter(data)
    data.put_buffer(saved[_HEADER.size :])
    with contextlib.suppress(StreamFooterError, StreamSectionError):
        sections.vmdescription(describe_devices(find_devices(saved) if describe else []))
    data.flush_data()
    return bytes(stream.written)


def compose(saved: bytes, machine: str) -> bytes:
    """The whole stream: :func:`opening` and :func:`remainder`."""
    return opening(machine) + remainder(saved)


def describe_devices(devices: list[SavedDevice]) -> bytes:
    """The JSON that describes *devices*: each has one field, which holds all its bytes."""
    described = [
        DeviceDescription(
            name=device.idstr,
            instance_id=device.instance_id,
            vmsd_name=device.idstr,
            version=device.version_id,
            fields=[FieldDescription(name="state", type="buffer", size=len(device.body))],
        )
        for device in devices
    ]
    return build(VmDescription(page_size=TARGET_PAGE_BYTES, devices=described))


def find_devices(saved: bytes) -> list[SavedDevice]:
    """The devices in *saved*, in its order.

    A section has no length. It ends with its footer, where another head or the mark of the end follows. Bytes of a
    device that look like both end it too early; that makes the description wrong, and nothing else.

    Args:
        saved: as for :func:`remainder`.

    Raises:
        StreamFooterError: the end of a device is not found.
        StreamSectionError: there are too many.
        StreamError: as :func:`check_saved`.
    """
    check_saved(saved)
    devices: list[SavedDevice] = []
    numbers: set[int] = set()
    at = _HEADER.size
    while at != len(saved) - 1:
        head = _head_at(saved, at)
        assert head is not None  # check_saved() looked at the first, _end_of_body() at all others
        if len(devices) == MAX_SECTIONS:
            raise StreamSectionError(f"there are more than {MAX_SECTIONS} devices, expected no more", at)
        numbers.add(head.section_id)
        end = _end_of_body(saved, head, numbers)
        devices.append(
            SavedDevice(head.section_id, head.idstr, head.instance_id, head.version_id, range(head.body.start, end))
        )
        at = end + _FOOTER.size
    return devices


def check_saved(saved: bytes) -> None:
    """Check the header, the first device and the mark of the end.

    Raises:
        StreamMagicError, StreamVersionError: it begins with another header.
        StreamDataError: no device is in it.
        StreamTruncatedError: it is cut short.
    """
    if len(saved) <= _HEADER.size or saved[-1] != MIGRATION_VM_EOF:
        raise StreamTruncatedError(
            f"the saved devices, {len(saved)} bytes, do not end with the mark of the end: they were cut short"
        )
    magic, version = _HEADER.unpack_from(saved)
    if magic != MIGRATION_VM_FILE_MAGIC:
        raise StreamMagicError(f"the saved devices begin with {magic:#x}, expected {MIGRATION_VM_FILE_MAGIC:#x}", 0)
    if version != MIGRATION_VM_FILE_VERSION:
        raise StreamVersionError(f"the saved devices have version {version}, expected {MIGRATION_VM_FILE_VERSION}", 4)
    if _head_at(saved, _HEADER.size) is None:
        raise StreamDataError("no device follows the header of the saved devices, expected one", _HEADER.size)


def _head_at(saved: bytes, at: int) -> SavedDevice | None:
    """The head of a FULL section at byte *at*, with all that follows as its body; None: there is none."""
    if at + _NAME_AT > len(saved) or saved[at] != MIGRATION_VM_SECTION_FULL:
        return None
    name_at, name_bytes = at + _NAME_AT, saved[at + _NAME_AT - 1]
    body_at = name_at + name_bytes + _NUMBERS.size
    name = saved[name_at : name_at + name_bytes]
    if body_at > len(saved) or not name.isascii() or not name.decode().isprintable() or not name:
        return None
    instance_id, version_id = _NUMBERS.unpack_from(saved, name_at + name_bytes)
    section_id = int.from_bytes(saved[at + 1 : at + 5], "big")
    return SavedDevice(section_id, name.decode(), instance_id, version_id, range(body_at, len(saved)))


def _end_of_body(saved: bytes, head: SavedDevice, numbers: set[int]) -> int:
    """Where the footer of *head* is.

    Args:
        numbers: of the sections so far, which the next one cannot have.
    """
    footer = _FOOTER.pack(MIGRATION_VM_SECTION_FOOTER, head.section_id)
    at = saved.find(footer, head.body.start)
    while at >= 0:
        behind = at + len(footer)
        following = _head_at(saved, behind)
        if behind == len(saved) - 1 or (following is not None and following.section_id not in numbers):
            return at
        at = saved.find(footer, at + 1)
    raise StreamFooterError(
        f"device {head.idstr!r} has no end, expected the footer of section {head.section_id} and a device behind it",
        head.body.start,
    )
