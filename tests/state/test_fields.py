# SPDX-License-Identifier: Apache-2.0
"""Fields become the bytes that the format says, and nothing but StateError comes out of bad ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parmig.errors import StateError
from parmig.state import (
    FIELD_TYPE_BOOL,
    FIELD_TYPE_BUFFER,
    FIELD_TYPE_BYTE,
    FIELD_TYPE_U16,
    FIELD_TYPE_U32,
    FIELD_TYPE_U64,
    FieldType,
    MigrationStateArray,
    MigrationStateField,
)
from parmig.state.fields import StateReader

BITS = {FIELD_TYPE_BYTE: 8, FIELD_TYPE_U16: 16, FIELD_TYPE_U32: 32, FIELD_TYPE_U64: 64}
INTEGER_TYPES = list(BITS)


def decode(field: MigrationStateField, data: bytes) -> Any:
    reader = StateReader(data, "test")
    value = field.decode(reader)
    reader.finish()
    return value


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        (MigrationStateField("x", FIELD_TYPE_BYTE), 0xAB, b"\xab"),
        (MigrationStateField("x", FIELD_TYPE_BOOL), True, b"\x01"),
        (MigrationStateField("x", FIELD_TYPE_U16), 0x1234, b"\x12\x34"),
        (MigrationStateField("x", FIELD_TYPE_U32), 1, b"\0\0\0\1"),
        (MigrationStateField("x", FIELD_TYPE_U64), np.uint64(1), b"\0" * 7 + b"\1"),
        (MigrationStateField("x", FIELD_TYPE_BUFFER), b"abc", b"\0\0\0\3abc"),
        (MigrationStateField("x", FIELD_TYPE_BUFFER, length=3), bytearray(b"abc"), b"abc"),
        (MigrationStateArray("x", FIELD_TYPE_U16), [1, 2], b"\0\0\0\2\0\1\0\2"),
        (MigrationStateArray("x", FIELD_TYPE_U16, length=2), np.array([1, 2], dtype=np.int64), b"\0\1\0\2"),
        (MigrationStateArray("x", FIELD_TYPE_U64), [], b"\0\0\0\0"),
        (MigrationStateArray("x", FIELD_TYPE_U64, length=2), [0, 2**64 - 1], b"\0" * 8 + b"\xff" * 8),
    ],
)
def test_a_field_is_written_big_endian(field: MigrationStateField, value: object, expected: bytes) -> None:
    assert field.encode(value) == expected


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (MigrationStateField("x", FIELD_TYPE_BYTE), 256),
        (MigrationStateField("x", FIELD_TYPE_U64), -1),
        (MigrationStateField("x", FIELD_TYPE_U32), 1.0),
        (MigrationStateField("x", FIELD_TYPE_U32), None),
        (MigrationStateField("x", FIELD_TYPE_BOOL), 1),
        (MigrationStateField("x", FIELD_TYPE_BUFFER), "abc"),
        (MigrationStateField("x", FIELD_TYPE_BUFFER, length=2), b"abc"),
        (MigrationStateField("x", FIELD_TYPE_BUFFER, limit=2), b"abc"),
        (MigrationStateArray("x", FIELD_TYPE_BYTE), [256]),
        (MigrationStateArray("x", FIELD_TYPE_U32), [-1]),
        (MigrationStateArray("x", FIELD_TYPE_U32), [1.5]),
        (MigrationStateArray("x", FIELD_TYPE_U32), [2**64]),
        (MigrationStateArray("x", FIELD_TYPE_U32), 7),
        (MigrationStateArray("x", FIELD_TYPE_U32), "12"),
        (MigrationStateArray("x", FIELD_TYPE_U32), np.zeros((2, 2), dtype=np.uint32)),
        (MigrationStateArray("x", FIELD_TYPE_U32), np.zeros(2)),
        (MigrationStateArray("x", FIELD_TYPE_U32, length=1), [1, 2]),
        (MigrationStateArray("x", FIELD_TYPE_U32, limit=1), [1, 2]),
    ],
)
def test_a_value_that_does_not_fit_is_refused_by_name(field: MigrationStateField, value: object) -> None:
    with pytest.raises(StateError, match=r"'x' .*expected .* found"):
        field.encode(value)


@pytest.mark.parametrize(
    ("field", "data"),
    [
        (MigrationStateField("x", FIELD_TYPE_U32), b"\0\0\0"),
        (MigrationStateField("x", FIELD_TYPE_BOOL), b"\2"),
        (MigrationStateField("x", FIELD_TYPE_BUFFER), b"\0\0\0\4abc"),
        (MigrationStateField("x", FIELD_TYPE_BUFFER), b"\xff\xff\xff\xff"),
        (MigrationStateField("x", FIELD_TYPE_BUFFER, limit=2), b"\0\0\0\3abc"),
        (MigrationStateField("x", FIELD_TYPE_BUFFER, length=4), b"abc"),
        (MigrationStateArray("x", FIELD_TYPE_U64), b"\xff\xff\xff\xff" + b"\0" * 64),
        (MigrationStateArray("x", FIELD_TYPE_U16, length=2), b"\0\0\0"),
        (MigrationStateArray("x", FIELD_TYPE_U16, limit=1), b"\0\0\0\2\0\0\0\0"),
        (MigrationStateField("x", FIELD_TYPE_BYTE), b"ab"),
    ],
)
def test_bytes_that_are_no_such_value_are_refused(field: MigrationStateField, data: bytes) -> None:
    with pytest.raises(StateError):
        decode(field, data)


@pytest.mark.parametrize(
    "make",
    [
        lambda: MigrationStateField("x", FIELD_TYPE_U32, length=4),
        lambda: MigrationStateField("x", FIELD_TYPE_BUFFER, length=-1),
        lambda: MigrationStateField("x", FIELD_TYPE_BUFFER, limit=-1),
        lambda: MigrationStateArray("x", FIELD_TYPE_BOOL),
        lambda: MigrationStateArray("x", FIELD_TYPE_BUFFER),
    ],
)
def test_a_declaration_without_sense_is_a_programming_error(make: Any) -> None:
    with pytest.raises(ValueError, match="'x'"):
        make()


@given(st.data(), st.sampled_from(INTEGER_TYPES), st.booleans())
def test_arrays_arrive_as_they_were(data: st.DataObject, kind: FieldType, fixed: bool) -> None:
    values = data.draw(st.lists(st.integers(0, 2 ** BITS[kind] - 1), max_size=20))
    field = MigrationStateArray("x", kind, length=len(values) if fixed else None)
    found = decode(field, field.encode(values))
    assert found.tolist() == values
    assert found.dtype == np.dtype(f"u{BITS[kind] // 8}")
    assert found.dtype.isnative
    assert found.flags.writeable


@given(st.data(), st.sampled_from(INTEGER_TYPES))
def test_integers_arrive_as_they_were(data: st.DataObject, kind: FieldType) -> None:
    value = data.draw(st.integers(0, 2 ** BITS[kind] - 1))
    field = MigrationStateField("x", kind)
    assert decode(field, field.encode(value)) == value


@given(st.binary(max_size=100), st.booleans())
def test_buffers_arrive_as_they_were(value: bytes, fixed: bool) -> None:
    field = MigrationStateField("x", FIELD_TYPE_BUFFER, length=len(value) if fixed else None)
    assert decode(field, field.encode(value)) == value


@given(st.binary(max_size=40), st.sampled_from(INTEGER_TYPES), st.none() | st.integers(0, 10))
def test_any_bytes_decode_to_what_encodes_to_them_or_are_refused(
    data: bytes, kind: FieldType, length: int | None
) -> None:
    field = MigrationStateArray("x", kind, length=length)
    try:
        value = decode(field, data)
    except StateError:
        return
    assert field.encode(value) == data
