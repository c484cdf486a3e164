# SPDX-License-Identifier: Apache-2.0
"""Typed fields: the proposal's ``MigrationStateField``, and the bytes of one value.

Integers are big-endian and unsigned, as in QEMU's streams. Arrays are in :mod:`parmig.state.arrays`.
"""

from __future__ import annotations

import enum
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, SupportsIndex, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from parmig.errors import StateError
from parmig.state.cursor import StateReader, StateWriter
from parmig.state.state_field import COUNT_MAX, MISSING, CountedField
from parmig.stream.vmdescription import FieldDescription


class FieldType(enum.Enum):
    """The proposal's field types; each member is also a module constant ``FIELD_TYPE_...``."""

    BYTE = "byte"
    BOOL = "bool"
    U16 = "u16"
    U32 = "u32"
    U64 = "u64"
    BUFFER = "buffer"


FIELD_TYPE_BYTE = FieldType.BYTE
FIELD_TYPE_BOOL = FieldType.BOOL
FIELD_TYPE_U16 = FieldType.U16
FIELD_TYPE_U32 = FieldType.U32
FIELD_TYPE_U64 = FieldType.U64
FIELD_TYPE_BUFFER = FieldType.BUFFER

INTEGER_BYTES = {FieldType.BYTE: 1, FieldType.U16: 2, FieldType.U32: 4, FieldType.U64: 8}
ITEM_BYTES = INTEGER_BYTES | {FieldType.BOOL: 1}
_DESCRIBED = {
    FieldType.BYTE: "uint8",
    FieldType.BOOL: "bool",
    FieldType.U16: "uint16",
    FieldType.U32: "uint32",
    FieldType.U64: "uint64",
    FieldType.BUFFER: "buffer",
}
"""The names of types in a VMDESCRIPTION, QEMU's."""

FieldValue: TypeAlias = int | bool | bytes | npt.NDArray[Any] | list[int] | list[bool] | list[bytes]
"""What a decoded field or array is; a numpy array is in the host's byte order and owns its bytes."""


@dataclass(frozen=True)
class MigrationStateField(CountedField):
    """One field of a device: the name of an attribute and how it is written.

    Attributes:
        name: attribute of the device object that is saved and set.
        field_type: one of the FIELD_TYPE constants.
        length: exact length of a BUFFER in bytes; None: it is counted.
        limit: largest length if it is counted.
        since_version: the device version that brought the field; records of older versions lack it.
        until_version: the last version that has it; None: it is still there. It is read from records of older
            versions, for ``post_load`` to convert, and no longer written.
        default: what a record that lacks the field sets the attribute to, as a copy; MISSING: it is left as it is.
        length_from: name of an integer field before it that holds the length of a BUFFER.
    """

    name: str
    field_type: FieldType
    length: int | None = None
    limit: int = COUNT_MAX
    since_version: int = 1
    until_version: int | None = field(default=None, kw_only=True)
    default: object = field(default=MISSING, kw_only=True)
    length_from: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Refuse declarations that make no sense; a mistake of the programmer, hence ValueError."""
        self._check_declaration()
        if (self.length is not None or self.length_from is not None) and not self._has_elements:
            raise ValueError(f"{self.what} has no elements, so it cannot have a length")
        if self.limit != COUNT_MAX and not self._has_elements:
            raise ValueError(f"{self.what} has no elements, so it cannot have a limit")
        if self.default is not MISSING and self.length_from is None:
            try:
                self.encode(self.default, {}, StateWriter(), self.since_version)
            except StateError as error:
                raise ValueError(f"default of {error}") from error

    @property
    def what(self) -> str:
        """Name and type, for messages."""
        return f"field {self.name!r} ({self.field_type.value})"

    @property
    def is_integer(self) -> bool:
        """Whether the value is one integer, so that another field can take its length from it."""
        return self.field_type in INTEGER_BYTES

    @property
    def _has_elements(self) -> bool:
        return self.field_type is FieldType.BUFFER

    def encode(
        self, value: object, siblings: Mapping[str, object], writer: StateWriter, version: int
    ) -> list[FieldDescription]:
        """See :meth:`parmig.state.state_field.StateField.encode`."""
        if self.field_type is FieldType.BUFFER:
            content = self._bytes_of(value)
            return [*self._put_count(len(content), siblings, writer), self._described(writer.put(content))]
        return [self._described(writer.put(self._item_of(value)))]

    def decode(self, reader: StateReader, siblings: Mapping[str, Any], version: int) -> FieldValue:
        """See :meth:`parmig.state.state_field.StateField.decode`."""
        if self.field_type is FieldType.BUFFER:
            return reader.take(self._get_count(reader, siblings), self.what)
        value = reader.integer(ITEM_BYTES[self.field_type], self.what)
        if self.field_type is not FieldType.BOOL:
            return value
        if value > 1:
            raise StateError(f"{self.what} is {value}, expected 0 or 1")
        return bool(value)

    def _item_of(self, value: object) -> bytes:
        if self.field_type is FieldType.BOOL:
            if not isinstance(value, bool | np.bool_):
                raise self._mismatch("a bool", value)
            return b"\1" if value else b"\0"
        size_bytes = INTEGER_BYTES[self.field_type]
        try:
            return operator.index(cast(SupportsIndex, value)).to_bytes(size_bytes, "big")
        except (TypeError, OverflowError) as error:
            raise self._mismatch(f"an integer of {8 * size_bytes} bits", value) from error

    def _bytes_of(self, value: object) -> bytes:
        if not isinstance(value, bytes | bytearray | memoryview):
            raise self._mismatch("bytes", value)
        return bytes(value)

    def _described(self, size_bytes: int, array_len: int | None = None) -> FieldDescription:
        return FieldDescription(name=self.name, type=_DESCRIBED[self.field_type], size=size_bytes, array_len=array_len)
