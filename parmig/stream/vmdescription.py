# SPDX-License-Identifier: Apache-2.0
"""VMDESCRIPTION: the JSON after a stream that describes the bytes of its devices field by field.

With it a device's bytes have a length and can be read without the code of the device. It describes one stream, not a
format: it lists only the optional fields and subsections that are there, and arrays with the length that they have.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import msgspec
import numpy as np

from parmig.errors import StreamDataError, StreamTooLongError
from parmig.stream.flags import MIGRATION_VM_SUBSECTION, MIGRATION_VM_VMDESCRIPTION, TARGET_PAGE_BYTES
from parmig.transport.transport import Buffer
from parmig.units import KIB, MIB

MAX_PARSED_BYTES = 4 * MIB
MAX_OBJECTS = 1 << 16
"""Objects and lists in a description: a small guest has 2,000 in 100 KiB, each further CPU adds 100 in 6 KiB. A
description at these limits takes 25 MiB once it is read."""
MAX_DEPTH = 32
"""The most structs inside each other; QEMU's own go to about 6."""
MAX_VALUES = 1 << 17
"""The most values of one device: integers, structs, elements of arrays. Decoded, each takes about 100 bytes."""
MAX_DEVICE_BYTES = 4 * MIB
"""The most that a reader should load of one device to decode it. The largest plain devices have some 100 KiB."""
TAIL_BYTES = 8 * MIB + 64 * KIB
"""How much of the end of a file :func:`find` needs: the longest description, and what may follow it."""

Size = Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]
Version = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
Value = Any
"""int, bool, bytes, str, None, a list or a dict of values."""


class StructDescription(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A struct or a subsection: its fields in their order, then its subsections."""

    vmsd_name: str = ""
    version: Version = 0
    fields: list[FieldDescription] = []
    subsections: list[StructDescription] = []


class FieldDescription(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A field.

    Attributes:
        array_len: number of elements, if this describes all elements of an array.
        index: place in its array, if this describes a single element.
        type: QEMU's name: ``uint8`` to ``uint64``, ``int8`` to ``int64``, ``bool``, ``buffer``, ``struct``, ...
        struct: what a ``struct`` has in it.
        size: in bytes, of one element.
        fields, subsections: of a ``vstruct`` or ``tmp``, which has them in its own place.
    """

    name: str
    array_len: Size | None = None
    index: Size | None = None
    type: str
    struct: StructDescription | None = None
    vmsd_name: str = ""
    version: Version = 0
    fields: list[FieldDescription] = []
    subsections: list[StructDescription] = []
    size: Size


class DeviceDescription(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What the FULL section of a device holds; ``size`` is there if no struct describes it."""

    name: str
    instance_id: int
    vmsd_name: str = ""
    version: Version = 0
    size: Size | None = None
    fields: list[FieldDescription]
    subsections: list[StructDescription] = []


class VmDescription(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The whole description; ``configuration`` since QEMU 9.0."""

    configuration: StructDescription | None = None
    page_size: int
    devices: list[DeviceDescription]


FieldParent = StructDescription | FieldDescription | DeviceDescription
_DECODER = msgspec.json.Decoder(VmDescription)


def parse(json_bytes: Buffer) -> VmDescription:
    """The description in *json_bytes*.

    Raises:
        StreamDataError: it is no such description, or of another page size.
        StreamTooLongError: it is over 4 MiB, or has too many objects, or too many inside each other.
    """
    content = bytes(json_bytes)
    objects = content.count(b"{") + content.count(b"[")
    if len(content) > MAX_PARSED_BYTES or objects > MAX_OBJECTS:
        raise StreamTooLongError(
            f"the description of devices has {objects} objects in {len(content)} bytes, "
            f"expected at most {MAX_OBJECTS} in {MAX_PARSED_BYTES}"
        )
    try:
        description = _DECODER.decode(content)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise StreamDataError(f"the description of devices cannot be read: {error}") from error
    if description.page_size != TARGET_PAGE_BYTES:
        raise StreamDataError(
            f"the description has pages of {description.page_size} bytes, expected {TARGET_PAGE_BYTES}"
        )
    _check_depth([*description.devices, *([description.configuration] if description.configuration else [])])
    return description


def _check_depth(parents: Sequence[FieldParent]) -> None:
    for _ in range(MAX_DEPTH):
        parents = [child for parent in parents for child in _children(parent)]
        if not parents:
            return
    raise StreamTooLongError(f"the description of devices has structs deeper than {MAX_DEPTH}, expected no deeper ones")


def _children(parent: FieldParent) -> Iterator[FieldParent]:
    yield from parent.subsections
    for field in parent.fields:
        if field.struct:
            yield field.struct
        elif field.fields or field.subsections:
            yield field


def build(description: VmDescription) -> bytes:
    """The JSON of *description*, without a NUL; analyze-migration.py finds it at the end of a file."""
    content = msgspec.json.encode(description)
    # That program looks for the first brace after the last NUL: the length before the JSON must have no brace in it.
    while b"{" in len(content).to_bytes(4, "big"):
        content += b" "
    return content


def find(tail: bytes) -> slice | None:
    """Where in *tail*, the end of a file, the JSON of a VMDESCRIPTION is; None when it is not there.

    The search begins at the end: text without a NUL may follow the JSON. The length before the JSON is below 16 MiB, so
    it begins with a NUL.
    """
    nul = tail.rfind(b"\0")
    for start in range(nul + 1, nul + 5):
        end = start + int.from_bytes(tail[start - 4 : start], "big")
        if start >= 5 and tail[start - 5] == MIGRATION_VM_VMDESCRIPTION and start < end <= len(tail):
            return slice(start, end)
    return None


def device_bytes(device: DeviceDescription) -> int:
    """Bytes between the head and the footer of the device's section."""
    return _fields_bytes(device)


def _fields_bytes(parent: FieldParent) -> int:
    own = sum(field.size * (1 if field.array_len is None else field.array_len) for field in parent.fields)
    return own + sum(6 + len(sub.vmsd_name.encode()) + _fields_bytes(sub) for sub in parent.subsections)


def decode(device: DeviceDescription, content: Buffer) -> dict[str, Value]:
    """The values of a device: by field, and by subsection.

    Elements that are described one by one, and fields of one name, make a list. What has no known type is bytes.

    Args:
        content: all of the section between its head and its footer.

    Raises:
        StreamDataError: the bytes are not as described.
        StreamTooLongError: more than 131072 values.
    """
    decoder = _Decoder(content, f"{device.name}/{device.instance_id}")
    values = decoder.struct(device)
    if decoder.at != len(decoder.content):
        raise decoder.error(f"{len(decoder.content) - decoder.at} bytes follow the last field, expected none")
    return values


_INTEGER = re.compile(r"(u?)int(8|16|32|64)( equal| le)?")
_INTEGER_BYTES = {"8": 1, "16": 2, "32": 4, "64": 8}
_NULL = b"0"
"""What QEMU writes for a pointer to nothing."""


class _Decoder:
    """The bytes of a device, and how far they are decoded."""

    def __init__(self, content: Buffer, owner: str) -> None:
        self.content = memoryview(content).cast("B")
        self.at = 0
        self._owner = owner
        self._left_values = MAX_VALUES

    def error(self, text: str) -> StreamDataError:
        return StreamDataError(f"device {self._owner}, byte {self.at} of its state: {text}")

    def take(self, size_bytes: int, what: str) -> bytes:
        """The next bytes."""
        if size_bytes > len(self.content) - self.at:
            raise self.error(
                f"{what} has {size_bytes} bytes, expected at most the {len(self.content) - self.at} that are left"
            )
        self.at += size_bytes
        return bytes(self.content[self.at - size_bytes : self.at])

    def count(self, values: int) -> None:
        """Count *values* towards MAX_VALUES."""
        self._left_values -= max(1, values)  # looking at no value takes time too
        if self._left_values < 0:
            raise StreamTooLongError(f"device {self._owner} has more than {MAX_VALUES} values, expected no more")

    def struct(self, parent: FieldParent) -> dict[str, Value]:
        """Fields, then subsections."""
        values: dict[str, Value] = {}
        lists: set[str] = set()
        for field in parent.fields:
            value = self.field(field)
            if field.name not in values and field.index is None:
                values[field.name] = value
                continue
            if field.name not in lists:
                lists.add(field.name)
                values[field.name] = [values[field.name]] if field.name in values else []
            values[field.name].append(value)
        for subsection in parent.subsections:
            values[subsection.vmsd_name] = self.subsection(subsection)
        return values

    def subsection(self, description: StructDescription) -> dict[str, Value]:
        name = description.vmsd_name.encode()
        expected = bytes((MIGRATION_VM_SUBSECTION, len(name) & 0xFF)) + name + description.version.to_bytes(4, "big")
        head = self.take(len(expected), f"head of subsection {description.vmsd_name!r}")
        if head != expected:
            raise self.error(f"the state has {head[:40]!r}, expected subsection {description.vmsd_name!r}")
        self.count(1)
        return self.struct(description)

    def field(self, field: FieldDescription) -> Value:
        """One value, or the list of an array's."""
        inner = field.struct or (field if field.type in ("vstruct", "tmp") else None)
        if inner is not None and (inner.fields or inner.subsections):
            if field.array_len is None:
                return self.inner(inner, field)
            self.count(field.array_len)
            return [self.inner(inner, field) for _ in range(field.array_len)]
        return self.plain(field)

    def inner(self, inner: FieldParent, field: FieldDescription) -> dict[str, Value]:
        self.count(1)
        start = self.at
        values = self.struct(inner)
        if self.at - start != field.size:
            raise self.error(f"struct {field.name!r} has {self.at - start} bytes, expected {field.size} as described")
        return values

    def plain(self, field: FieldDescription) -> Value:
        """A value without a struct in it, or an array of such values."""
        elements = 1 if field.array_len is None else field.array_len
        content = self.take(field.size * elements, f"{field.type} {field.name!r}")
        integer = _INTEGER.fullmatch(field.type)
        if integer and _INTEGER_BYTES[integer[2]] == field.size:
            if field.array_len is not None and field.type == "uint8":
                self.count(1)
                return content
            self.count(elements)
            kind = f">{'u' if integer[1] else 'i'}{field.size}"
            values = np.frombuffer(content, dtype=kind).tolist()
        else:
            self.count(elements)
            parts = (content[at : at + field.size] for at in range(0, len(content), max(1, field.size)))
            values = [_other(field.type, part) for part in parts]
        return values if field.array_len is not None else values[0] if values else b""


def _other(kind: str, content: bytes) -> Value:
    """A value of a type that is no integer."""
    if kind == "bool" and len(content) == 1:
        return content != b"\0"
    if kind == "timer" and len(content) == 8:
        return int.from_bytes(content, "big", signed=True)
    if kind in ("nullptr", "struct") and content == _NULL:
        return None
    if kind == "capability" and content[:1] == bytes((len(content) - 1,)):
        return content[1:].decode(errors="replace")
    return content
