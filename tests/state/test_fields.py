# SPDX-License-Identifier: Apache-2.0
"""Fields become the bytes that the format says, and nothing but documented errors come out of bad ones."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parmig.errors import StateError, StreamError
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
from parmig.state.cursor import StateReader, StateWriter
from parmig.state.state_field import COUNT_MAX, LoadPlan
from parmig.stream.data_file import MigrationDataFile
from parmig.transport.memory import MemoryStream

BITS = {FIELD_TYPE_BYTE: 8, FIELD_TYPE_U16: 16, FIELD_TYPE_U32: 32, FIELD_TYPE_U64: 64}
INTEGER_TYPES = list(BITS)


def encode(field: MigrationStateField, value: object) -> bytes:
    writer = StateWriter()
    field.encode(value, {}, writer, 1)
    return writer.content()


def decode(field: MigrationStateField, data: bytes) -> Any:
    source = MigrationDataFile(MemoryStream(data), "test")
    value = field.decode(StateReader(source, "test"), {}, 1)
    if not source.at_end():
        raise StateError("bytes follow")
    return value


BOOLS = MigrationStateArray("x", FIELD_TYPE_BOOL)
BUFFERS = MigrationStateArray("x", FIELD_TYPE_BUFFER)
PAIRS = MigrationStateArray("x", FIELD_TYPE_BUFFER, element_length=2)


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
        (BOOLS, [True, False], b"\0\0\0\2\1\0"),
        (BOOLS, np.array([False, True]), b"\0\0\0\2\0\1"),
        (BOOLS, [], b"\0\0\0\0"),
        (BUFFERS, [b"a", b""], b"\0\0\0\2\0\0\0\1a\0\0\0\0"),
        (PAIRS, (b"ab", bytearray(b"cd")), b"\0\0\0\2abcd"),
        (MigrationStateArray("x", FIELD_TYPE_BUFFER, length=2, element_length=1), [b"a", b"b"], b"ab"),
    ],
)
def test_a_field_is_written_big_endian(field: MigrationStateField, value: object, expected: bytes) -> None:
    assert encode(field, value) == expected


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        (MigrationStateField("x", FIELD_TYPE_BYTE), 256, "is int 256, expected an integer of 8 bits"),
        (MigrationStateField("x", FIELD_TYPE_U64), -1, "is int -1, expected an integer of 64 bits"),
        (MigrationStateField("x", FIELD_TYPE_U32), 1.0, "is float 1.0, expected an integer of 32 bits"),
        (MigrationStateField("x", FIELD_TYPE_U32), None, "is NoneType None, expected an integer of 32 bits"),
        (MigrationStateField("x", FIELD_TYPE_BOOL), 1, "is int 1, expected a bool"),
        (MigrationStateField("x", FIELD_TYPE_BUFFER), "abc", "is str 'abc', expected bytes"),
        (MigrationStateField("x", FIELD_TYPE_BUFFER, length=2), b"abc", "has 3 elements, expected 2"),
        (MigrationStateField("x", FIELD_TYPE_BUFFER, limit=2), b"abc", "has 3 elements, expected at most 2"),
        (MigrationStateField("x", FIELD_TYPE_BUFFER, limit=0), b"a", "has 1 elements, expected at most 0"),
        (
            MigrationStateArray("x", FIELD_TYPE_BYTE),
            [256],
            "is list [256], expected a flat array of integers of 8 bits",
        ),
        (MigrationStateArray("x", FIELD_TYPE_U32), [-1], "is list [-1], expected a flat array of integers of 32 bits"),
        (
            MigrationStateArray("x", FIELD_TYPE_U32),
            [1.5],
            "is list [1.5], expected a flat array of integers of 32 bits",
        ),
        (
            MigrationStateArray("x", FIELD_TYPE_U32),
            [2**64],
            f"is list [{2**64}], expected a flat array of integers of 32 bits",
        ),
        (
            MigrationStateArray("x", FIELD_TYPE_U32),
            [2**32],
            f"is list [{2**32}], expected a flat array of integers of 32 bits",
        ),
        (
            MigrationStateArray("x", FIELD_TYPE_U32),
            np.array([-1]),
            "is ndarray array([-1]), expected a flat array of integers of 32 bits",
        ),
        (MigrationStateArray("x", FIELD_TYPE_U32), 7, "is int 7, expected an array"),
        (MigrationStateArray("x", FIELD_TYPE_U32), "12", "is str '12', expected an array"),
        (MigrationStateArray("x", FIELD_TYPE_U32), np.zeros((2, 2), dtype=np.uint32), "a flat array of integers of 32"),
        (
            MigrationStateArray("x", FIELD_TYPE_U32),
            np.zeros(2),
            "is ndarray array([0., 0.]), expected a flat array of integers of 32 bits",
        ),
        (MigrationStateArray("x", FIELD_TYPE_U32, length=1), [1, 2], "has 2 elements, expected 1"),
        (MigrationStateArray("x", FIELD_TYPE_U32, limit=1), [1, 2], "has 2 elements, expected at most 1"),
        (BOOLS, [1, 0], "is list [1, 0], expected a flat array of bools"),
        (BOOLS, np.zeros(2, dtype=np.uint8), "is ndarray array([0, 0], dtype=uint8), expected a flat array of bools"),
        (BOOLS, np.zeros((1, 1), dtype=np.bool_), "is ndarray array([[False]]), expected a flat array of bools"),
        (BOOLS, True, "is bool True, expected an array"),
        (BUFFERS, ["a"], "is str 'a', expected bytes"),
        (BUFFERS, b"abc", "is int 97, expected bytes"),
        (PAIRS, [b"abc"], "has 3 elements, expected 2"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_by_name(field: MigrationStateField, value: object, words: str) -> None:
    named = rf"^(field|array) 'x' \({field.field_type.value}\) (is|has) (.|\n)*expected "
    with pytest.raises(StateError, match=named) as caught:
        encode(field, value)
    assert words in str(caught.value)


def test_a_value_is_shown_only_as_far_as_it_fits_a_line() -> None:
    with pytest.raises(StateError) as caught:
        encode(MigrationStateField("x", FIELD_TYPE_BUFFER), "a" * 100)
    assert str(caught.value).endswith(f" is str '{'a' * 75}, expected bytes")


@pytest.mark.parametrize(
    ("field", "data", "words"),
    [
        (MigrationStateField("x", FIELD_TYPE_U32), b"\0\0\0", "field 'x' (u32) needs 4 bytes"),
        (MigrationStateField("x", FIELD_TYPE_BOOL), b"\2", "field 'x' (bool) is 2, expected 0 or 1"),
        (MigrationStateField("x", FIELD_TYPE_BUFFER), b"\0\0\0", "count of field 'x' (buffer) needs 4 bytes"),
        (MigrationStateField("x", FIELD_TYPE_BUFFER), b"\0\0\0\4abc", ": field 'x' (buffer) needs 4 bytes"),
        (MigrationStateField("x", FIELD_TYPE_BUFFER), b"\xff\xff\xff\xff", "'x' (buffer) needs 4294967295 bytes"),
        (MigrationStateField("x", FIELD_TYPE_BUFFER, limit=2), b"\0\0\0\3abc", "has 3 elements, expected at most 2"),
        (MigrationStateField("x", FIELD_TYPE_BUFFER, length=4), b"abc", "field 'x' (buffer) needs 4 bytes"),
        (MigrationStateArray("x", FIELD_TYPE_U64), b"\xff\xff\xff\xff" + b"\0" * 64, "'x' (u64) needs 34359738360"),
        (MigrationStateArray("x", FIELD_TYPE_U16, length=2), b"\0\0\0", "array 'x' (u16) needs 4 bytes"),
        (MigrationStateArray("x", FIELD_TYPE_U16, limit=1), b"\0\0\0\2\0\0\0\0", "has 2 elements, expected at most 1"),
        (MigrationStateField("x", FIELD_TYPE_BYTE), b"ab", "bytes follow"),
        (BOOLS, b"\0\0\0\2\1\2", "array 'x' (bool) has 2, expected 0 or 1"),
        (BOOLS, b"\0\0\0\2\3\1", "array 'x' (bool) has 3, expected 0 or 1"),
        (BUFFERS, b"\xff\xff\xff\xff\0\0\0\0", "more than 65536 structs and buffers"),
        (BUFFERS, b"\0\0\0\1\xff\xff\xff\xff", ": field 'x' (buffer) needs 4294967295 bytes"),
        (PAIRS, b"\0\0\0\2abc", ": field 'x' (buffer) needs 2 bytes"),
    ],
)
def test_bytes_that_are_no_such_value_are_refused(field: MigrationStateField, data: bytes, words: str) -> None:
    with pytest.raises((StateError, StreamError)) as caught:
        decode(field, data)
    assert words in str(caught.value)


def test_the_largest_lengths_can_be_declared() -> None:
    for make in (
        lambda: MigrationStateField("x", FIELD_TYPE_BUFFER, length=COUNT_MAX),
        lambda: MigrationStateField("x", FIELD_TYPE_BUFFER, limit=0),
        lambda: MigrationStateArray("x", FIELD_TYPE_BUFFER, element_length=COUNT_MAX),
        lambda: MigrationStateArray("x", FIELD_TYPE_BUFFER, element_length=1),
        lambda: MigrationStateField("x", FIELD_TYPE_U32, since_version=2, until_version=2),
        lambda: MigrationStateField("x", FIELD_TYPE_U32, since_version=COUNT_MAX),
    ):
        make()
    for make in (
        lambda: MigrationStateField("x", FIELD_TYPE_BUFFER, length=COUNT_MAX + 1),
        lambda: MigrationStateField("x", FIELD_TYPE_BUFFER, limit=COUNT_MAX + 1),
        lambda: MigrationStateArray("x", FIELD_TYPE_BUFFER, element_length=COUNT_MAX + 1),
        lambda: MigrationStateField("x", FIELD_TYPE_U32, since_version=COUNT_MAX + 1),
    ):
        with pytest.raises(ValueError, match=str(COUNT_MAX + 1)):
            make()


def test_the_elements_of_an_array_are_described_one_by_one() -> None:
    described = BUFFERS.encode([b"abc", b""], {}, StateWriter(), 1)
    assert [(one.name, one.type, one.size, one.index, one.array_len) for one in described] == [
        ("x.count", "uint32", 4, None, None),
        ("x.length", "uint32", 4, 0, None),
        ("x", "buffer", 3, 0, None),
        ("x.length", "uint32", 4, 1, None),
        ("x", "buffer", 0, 1, None),
    ]
    described = MigrationStateArray("x", FIELD_TYPE_U16).encode([1, 2, 3], {}, StateWriter(), 1)
    assert [(one.name, one.type, one.size, one.index, one.array_len) for one in described] == [
        ("x.count", "uint32", 4, None, None),
        ("x", "uint16", 2, None, 3),
    ]


def test_an_array_without_elements_is_described_by_its_count_alone() -> None:
    described = MigrationStateArray("x", FIELD_TYPE_U16).encode([], {}, StateWriter(), 1)
    assert [one.name for one in described] == ["x.count"]


@pytest.mark.parametrize(("kind", "value"), [(FIELD_TYPE_U16, [1, 2]), (FIELD_TYPE_BOOL, [True, False])])
def test_the_length_of_an_array_can_be_in_another_field(kind: FieldType, value: list[int]) -> None:
    writer = StateWriter()
    described = MigrationStateArray("x", kind, length_from="n").encode(value, {"n": 2}, writer, 1)
    assert [one.name for one in described] == ["x"]
    assert writer.size_bytes == 2 * described[0].size
    with pytest.raises(StateError, match=r"has 2 elements, expected 3 \(as field 'n' says\)"):
        MigrationStateArray("x", kind, length_from="n").encode(value, {"n": 3}, StateWriter(), 1)


def test_a_default_is_given_as_a_copy_to_each_object() -> None:
    field = MigrationStateArray("x", FIELD_TYPE_BUFFER, default=[bytearray(b"a")])
    plan = LoadPlan()
    field.plan_default(None, plan)
    ((_, name, given_),) = plan.assignments
    assert (name, given_) == ("x", field.default)
    assert given_ is not field.default
    assert given_[0] is not field.default[0]  # type: ignore[index]


@pytest.mark.parametrize("field", [MigrationStateField("x", FIELD_TYPE_BUFFER), BOOLS, BUFFERS])
def test_a_count_alone_allocates_nothing(field: MigrationStateField) -> None:
    tracemalloc.start()
    with pytest.raises((StateError, StreamError)):
        decode(field, b"\xff\xff\xff\xff")
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most_bytes < 1 << 20


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: MigrationStateField("x", FIELD_TYPE_U32, length=4), "cannot have a length"),
        (lambda: MigrationStateField("x", FIELD_TYPE_U32, length_from="y"), "cannot have a length"),
        (lambda: MigrationStateField("x", FIELD_TYPE_U32, limit=4), "cannot have a limit"),
        (lambda: MigrationStateField("x", FIELD_TYPE_BUFFER, length=-1), "cannot have length -1"),
        (lambda: MigrationStateField("x", FIELD_TYPE_BUFFER, length=0), "cannot have length 0"),
        (lambda: MigrationStateField("x", FIELD_TYPE_BUFFER, length=4, length_from="y"), "leave one out"),
        (lambda: MigrationStateField("x", FIELD_TYPE_BUFFER, limit=-1), "expected a count"),
        (lambda: MigrationStateField("x", FIELD_TYPE_U32, since_version=0), "in no version: since 0"),
        (lambda: MigrationStateField("x", FIELD_TYPE_U32, since_version=3, until_version=2), "in no version: since 3"),
        (lambda: MigrationStateField("x", FIELD_TYPE_BYTE, default=256), "default of .*expected an integer of 8 bits"),
        (lambda: MigrationStateField("x", FIELD_TYPE_BUFFER, length=2, default=b"a"), "default of .*expected 2"),
        (lambda: MigrationStateArray("x", FIELD_TYPE_U16, default=[-1]), "default of"),
        (lambda: MigrationStateArray("x", FIELD_TYPE_U16, element_length=2), "only buffers"),
        (lambda: MigrationStateArray("x", FIELD_TYPE_BUFFER, element_length=0), "cannot have length 0"),
        (lambda: MigrationStateField("x y", FIELD_TYPE_U32), "expected the name of an attribute"),
        (lambda: MigrationStateField("", FIELD_TYPE_U32), "expected the name of an attribute"),
    ],
)
def test_a_declaration_without_sense_is_a_programming_error(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


@given(st.data(), st.sampled_from(INTEGER_TYPES), st.booleans(), st.booleans())
def test_arrays_arrive_as_they_were(data: st.DataObject, kind: FieldType, fixed: bool, as_list: bool) -> None:
    values = data.draw(st.lists(st.integers(0, 2 ** BITS[kind] - 1), min_size=fixed, max_size=20))
    field = MigrationStateArray("x", kind, length=len(values) if fixed else None, as_list=as_list)
    found = decode(field, encode(field, values))
    if as_list:
        assert found == values
        return
    assert found.tolist() == values
    assert found.dtype == np.dtype(f"u{BITS[kind] // 8}")
    assert found.dtype.isnative
    assert found.flags.writeable


@given(st.data(), st.sampled_from(INTEGER_TYPES))
def test_integers_arrive_as_they_were(data: st.DataObject, kind: FieldType) -> None:
    value = data.draw(st.integers(0, 2 ** BITS[kind] - 1))
    field = MigrationStateField("x", kind)
    assert decode(field, encode(field, value)) == value


@given(st.binary(min_size=1, max_size=100), st.booleans())
def test_buffers_arrive_as_they_were(value: bytes, fixed: bool) -> None:
    field = MigrationStateField("x", FIELD_TYPE_BUFFER, length=len(value) if fixed else None)
    assert decode(field, encode(field, value)) == value


@given(st.lists(st.binary(max_size=9), max_size=9))
def test_arrays_of_buffers_arrive_as_they_were(value: list[bytes]) -> None:
    assert decode(BUFFERS, encode(BUFFERS, value)) == value


@given(st.lists(st.booleans(), max_size=9))
def test_arrays_of_bools_arrive_as_they_were(value: list[bool]) -> None:
    found = decode(BOOLS, encode(BOOLS, value))
    assert found.tolist() == value
    assert found.dtype == np.bool_


@given(
    st.binary(max_size=40),
    st.sampled_from([*INTEGER_TYPES, FIELD_TYPE_BOOL, FIELD_TYPE_BUFFER]),
    st.none() | st.integers(1, 10),
)
def test_any_bytes_decode_to_what_encodes_to_them_or_are_refused(
    data: bytes, kind: FieldType, length: int | None
) -> None:
    field = MigrationStateArray("x", kind, length=length)
    try:
        value = decode(field, data)
    except (StateError, StreamError):
        return
    assert encode(field, value) == data
