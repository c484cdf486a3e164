# SPDX-License-Identifier: Apache-2.0
"""Typed fields of device state: what a device declares, and the bytes it becomes.

Integers are big-endian, as in QEMU's streams. A counted buffer or array begins with its count of
elements (u32); a fixed one has no count. Nothing here knows devices, records or versions of them.

Every length is compared with the bytes that are left before it is used, so that no input can make
the reader allocate more than it was given.
"""

from __future__ import annotations

import enum
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import SupportsIndex, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from parmig.errors import StateError

COUNT_MAX = 0xFFFF_FFFF
"""Largest count of a counted buffer or array: the count is a u32."""

_COUNT_BYTES = 4


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

_INTEGER_BYTES = {FieldType.BYTE: 1, FieldType.U16: 2, FieldType.U32: 4, FieldType.U64: 8}

IntegerArray: TypeAlias = npt.NDArray[np.unsignedinteger]
FieldValue: TypeAlias = int | bool | bytes | IntegerArray
"""What a decoded field is: int, bool, bytes, or an array in the host's byte order that owns its bytes."""


class StateReader:
    """A cursor over received bytes that never reads past their end.

    Args:
        data: the bytes; used in place, not copied.
        owner: whose bytes these are, for error messages.
    """

    def __init__(self, data: bytes | bytearray | memoryview, owner: str) -> None:
        self._data = memoryview(data).cast("B")
        self._position = 0
        self.owner = owner

    @property
    def remaining_bytes(self) -> int:
        """Bytes not yet taken."""
        return len(self._data) - self._position

    def take(self, size_bytes: int, what: str) -> memoryview:
        """The next *size_bytes*, as a view of the data.

        Raises:
            StateError: fewer are left; the message says what they were for.
        """
        if size_bytes > self.remaining_bytes:
            raise StateError(
                f"{self.owner}: {what} needs {size_bytes} bytes at offset {self._position}, "
                f"{self.remaining_bytes} are left; the state is cut short or damaged"
            )
        start = self._position
        self._position += size_bytes
        return self._data[start : self._position]

    def integer(self, size_bytes: int, what: str) -> int:
        """The next big-endian unsigned integer of *size_bytes*.

        Raises:
            StateError: fewer bytes are left.
        """
        return int.from_bytes(self.take(size_bytes, what), "big")

    def finish(self) -> None:
        """Say that everything was read.

        Raises:
            StateError: bytes are left over.
        """
        if self.remaining_bytes:
            raise StateError(
                f"{self.owner}: {self.remaining_bytes} bytes are left over after offset {self._position}, expected none"
            )


@dataclass(frozen=True)
class MigrationStateField:
    """One field of a device: the name of an attribute and how it is written.

    Attributes:
        name: attribute of the device object that is saved and set.
        field_type: one of the FIELD_TYPE constants.
        length: exact length of a BUFFER in bytes; None: it is counted.
        limit: largest count that a counted one may have, in elements.
        since_version: the device version that brought the field; records of older versions lack it,
            and loading them leaves the attribute as it is.
    """

    name: str
    field_type: FieldType
    length: int | None = None
    limit: int = COUNT_MAX
    since_version: int = 1

    def __post_init__(self) -> None:
        """Refuse declarations that make no sense; a mistake of the programmer, hence ValueError."""
        if self.length is not None and not (self._has_length() and 0 <= self.length <= COUNT_MAX):
            raise ValueError(f"field {self.name!r} of type {self.field_type.value} cannot have length {self.length}")
        if not 0 <= self.limit <= COUNT_MAX:
            raise ValueError(f"field {self.name!r}: limit {self.limit} is not a count of 32 bits")

    def _has_length(self) -> bool:
        return self.field_type is FieldType.BUFFER

    def encode(self, value: object) -> bytes:
        """The bytes of *value*.

        Raises:
            StateError: *value* is of another type, out of range or of another length.
        """
        if self.field_type is FieldType.BUFFER:
            if not isinstance(value, bytes | bytearray | memoryview):
                raise self._mismatch("bytes", value)
            content = bytes(value)
            return self._count(len(content)) + content
        if self.field_type is FieldType.BOOL:
            if not isinstance(value, bool | np.bool_):
                raise self._mismatch("a bool", value)
            return b"\1" if value else b"\0"
        size_bytes = _INTEGER_BYTES[self.field_type]
        try:
            return operator.index(cast(SupportsIndex, value)).to_bytes(size_bytes, "big")
        except (TypeError, OverflowError) as error:
            raise self._mismatch(f"an integer of {8 * size_bytes} bits", value) from error

    def decode(self, reader: StateReader) -> FieldValue:
        """The value at the cursor of *reader*.

        Raises:
            StateError: the bytes are too few, or are no such value.
        """
        if self.field_type is FieldType.BUFFER:
            return bytes(reader.take(self._read_count(reader), self._what()))
        value = reader.integer(_INTEGER_BYTES.get(self.field_type, 1), self._what())
        if self.field_type is not FieldType.BOOL:
            return value
        if value > 1:
            raise StateError(f"{reader.owner}: {self._what()}: expected 0 or 1, found {value}")
        return bool(value)

    def _what(self) -> str:
        return f"field {self.name!r} ({self.field_type.value})"

    def _mismatch(self, expected: str, value: object) -> StateError:
        found = f"{type(value).__name__} {value!r}"
        return StateError(f"{self._what()}: expected {expected}, found {found[:80]}")

    def _count(self, found: int) -> bytes:
        """What goes before *found* elements: nothing when the length is fixed."""
        if self.length is not None:
            if found != self.length:
                raise StateError(f"{self._what()}: expected {self.length} elements, found {found}")
            return b""
        if found > self.limit:
            raise StateError(f"{self._what()}: expected at most {self.limit} elements, found {found}")
        return found.to_bytes(_COUNT_BYTES, "big")

    def _read_count(self, reader: StateReader) -> int:
        if self.length is not None:
            return self.length
        count = reader.integer(_COUNT_BYTES, f"count of {self._what()}")
        if count > self.limit:
            raise StateError(f"{reader.owner}: {self._what()}: expected at most {self.limit} elements, found {count}")
        return count


@dataclass(frozen=True)
class MigrationStateArray(MigrationStateField):
    """An array of integers, ``field_type`` being that of one element: BYTE, U16, U32 or U64.

    ``length`` counts elements. Encodes one-dimensional numpy arrays and sequences of int; decodes to a
    numpy array of that width in the host's byte order, which owns its bytes and may be written.
    """

    def __post_init__(self) -> None:
        """Refuse declarations that make no sense; a mistake of the programmer, hence ValueError."""
        if self.field_type not in _INTEGER_BYTES:
            raise ValueError(f"array {self.name!r} of {self.field_type.value}: elements must be integers")
        super().__post_init__()

    def _has_length(self) -> bool:
        return True

    def _what(self) -> str:
        return f"array {self.name!r} ({self.field_type.value})"

    def encode(self, value: object) -> bytes:
        """The bytes of *value*.

        Raises:
            StateError: *value* is no array of such integers, or of another length.
        """
        array = self._as_array(value)
        return self._count(len(array)) + array.astype(f">u{_INTEGER_BYTES[self.field_type]}").tobytes()

    def _as_array(self, value: object) -> npt.NDArray[np.integer]:
        size_bytes = _INTEGER_BYTES[self.field_type]
        expected = f"a flat array of integers of {8 * size_bytes} bits"
        if not isinstance(value, np.ndarray | Sequence) or isinstance(value, str):
            raise self._mismatch(expected, value)
        try:
            # Named for sequences: numpy would guess a float for an empty one, and for large and small ints mixed.
            array = value if isinstance(value, np.ndarray) else np.array(list(map(operator.index, value)), np.uint64)
        except (TypeError, OverflowError) as error:
            raise self._mismatch(expected, value) from error
        if array.ndim != 1 or array.dtype.kind not in "ui":
            raise self._mismatch(expected, value)
        if len(array) and (int(array.min()) < 0 or int(array.max()) >= 1 << (8 * size_bytes)):
            raise self._mismatch(expected, value)
        return array

    def decode(self, reader: StateReader) -> FieldValue:
        """The array at the cursor of *reader*.

        Raises:
            StateError: the bytes are too few, or the count is over the limit.
        """
        size_bytes = _INTEGER_BYTES[self.field_type]
        content = reader.take(self._read_count(reader) * size_bytes, self._what())
        return np.frombuffer(content, dtype=f">u{size_bytes}").astype(f"u{size_bytes}")
