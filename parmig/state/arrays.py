# SPDX-License-Identifier: Apache-2.0
"""Arrays of the field types: the proposal's ``MigrationStateArray``."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from parmig.errors import StateError
from parmig.state.cursor import StateReader, StateWriter
from parmig.state.fields import INTEGER_BYTES, ITEM_BYTES, FieldType, FieldValue, MigrationStateField
from parmig.state.state_field import COUNT_MAX
from parmig.stream.vmdescription import FieldDescription


@dataclass(frozen=True)
class MigrationStateArray(MigrationStateField):
    """An array; ``field_type`` is the type of an element.

    Encodes sequences and one-dimensional numpy arrays. Numbers and bools decode to a numpy array of that type in the
    host's byte order, which owns its bytes and may be written; buffers decode to a list of bytes.

    Attributes:
        length: exact number of elements; None: it is counted.
        limit: largest number of elements if they are counted.
        length_from: name of an integer field before it that holds the number of elements.
        element_length: exact length of each BUFFER in bytes; None: each is counted.
        as_list: decode numbers and bools to a list too.
    """

    element_length: int | None = field(default=None, kw_only=True)
    as_list: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        """Refuse declarations that make no sense; a mistake of the programmer, hence ValueError."""
        if self.element_length is not None:
            if self.field_type is not FieldType.BUFFER:
                raise ValueError(f"{self.what}: only buffers have an element_length")
            if not 1 <= self.element_length <= COUNT_MAX:
                raise ValueError(f"{self.what}: elements cannot have length {self.element_length}")
        super().__post_init__()

    @property
    def what(self) -> str:
        """Name and type, for messages."""
        return f"array {self.name!r} ({self.field_type.value})"

    @property
    def is_integer(self) -> bool:
        """False: an array is not one integer."""
        return False

    @property
    def _has_elements(self) -> bool:
        return True

    def encode(
        self, value: object, siblings: Mapping[str, object], writer: StateWriter, version: int
    ) -> list[FieldDescription]:
        """See :meth:`parmig.state.state_field.StateField.encode`."""
        if not isinstance(value, np.ndarray | Sequence) or isinstance(value, str):
            raise self._mismatch("an array", value)
        if self.field_type is FieldType.BUFFER:
            return self._encode_buffers(value, siblings, writer)
        array = self._bools_of(value) if self.field_type is FieldType.BOOL else self._integers_of(value)
        described = self._put_count(len(array), siblings, writer)
        size_bytes = ITEM_BYTES[self.field_type]
        writer.put(array.astype(f">u{size_bytes}").tobytes())
        # An array of no elements is not described: readers that unfold arrays, as QEMU's does, take it for one element.
        return [*described, self._described(size_bytes, len(array))] if len(array) else described

    def decode(self, reader: StateReader, siblings: Mapping[str, Any], version: int) -> FieldValue:
        """See :meth:`parmig.state.state_field.StateField.decode`."""
        count = self._get_count(reader, siblings)
        if self.field_type is FieldType.BUFFER:
            reader.add_objects(count)
            element = self._element()
            return [reader.take(element._get_count(reader, {}), element.what) for _ in range(count)]
        size_bytes = ITEM_BYTES[self.field_type]
        array = np.frombuffer(reader.take(count * size_bytes, self.what), dtype=f">u{size_bytes}")
        is_bool = self.field_type is FieldType.BOOL
        if is_bool and (array > 1).any():
            raise StateError(f"{self.what} has {array.max()}, expected 0 or 1")
        array = array.astype(np.bool_ if is_bool else f"u{size_bytes}")
        return array.tolist() if self.as_list else array

    def _bools_of(self, value: npt.NDArray[Any] | Sequence[Any]) -> npt.NDArray[Any]:
        array = value
        if not isinstance(value, np.ndarray) and all(isinstance(item, bool | np.bool_) for item in value):
            array = np.array(value, np.bool_)
        if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype != np.bool_:
            raise self._mismatch("a flat array of bools", value)
        return array

    def _integers_of(self, value: npt.NDArray[Any] | Sequence[Any]) -> npt.NDArray[Any]:
        size_bytes = INTEGER_BYTES[self.field_type]
        expected = f"a flat array of integers of {8 * size_bytes} bits"
        try:
            # A sequence gets its type here: numpy would guess float if it is empty, or mixes large and small integers.
            array = value if isinstance(value, np.ndarray) else np.array(list(map(operator.index, value)), np.uint64)
        except (TypeError, OverflowError) as error:
            raise self._mismatch(expected, value) from error
        if array.ndim != 1 or array.dtype.kind not in "ui":
            raise self._mismatch(expected, value)
        if len(array) and (int(array.min()) < 0 or int(array.max()) >= 1 << (8 * size_bytes)):
            raise self._mismatch(expected, value)
        return array

    def _encode_buffers(
        self, value: npt.NDArray[Any] | Sequence[Any], siblings: Mapping[str, object], writer: StateWriter
    ) -> list[FieldDescription]:
        described = self._put_count(len(value), siblings, writer)
        writer.add_objects(len(value))
        element = self._element()
        for index, item in enumerate(value):
            for description in element.encode(item, {}, writer, 1):
                description.index = index
                if description.type != "buffer":
                    description.name = f"{self.name}.length"  # ``.count`` is the array's
                described.append(description)
        return described

    def _element(self) -> MigrationStateField:
        return MigrationStateField(self.name, FieldType.BUFFER, self.element_length)
