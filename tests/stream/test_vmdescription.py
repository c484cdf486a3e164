# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from typing import Any

import pytest

from parmig.errors import StreamDataError, StreamError, StreamTooLongError
from parmig.stream import vmdescription
from parmig.stream.vmdescription import (
    MAX_DEPTH,
    MAX_VALUES,
    DeviceDescription,
    FieldDescription,
    StructDescription,
    VmDescription,
    build,
    decode,
    device_bytes,
    find,
    parse,
)
from tests.stream.streams import DEVICE, DEVICE_BYTES, DEVICE_VALUES


def device(*fields: dict[str, Any], **more: Any) -> DeviceDescription:
    """A device as QEMU's JSON describes it."""
    one = {"name": "dev", "instance_id": 0, "vmsd_name": "dev", "version": 1, "fields": fields, **more}
    return parse(json.dumps({"page_size": 4096, "devices": [one]}).encode()).devices[0]


def test_a_description_is_read_as_it_was_built_in_the_order_of_qemu() -> None:
    content = build(VmDescription(page_size=4096, devices=[DEVICE]))
    assert parse(content).devices == [DEVICE]
    found = json.loads(content)["devices"][0]
    assert list(found) == ["name", "instance_id", "vmsd_name", "version", "fields", "subsections"]
    assert list(found["fields"][3]) == ["name", "array_len", "type", "struct", "size"]


def test_a_device_has_a_length_and_values() -> None:
    assert device_bytes(DEVICE) == len(DEVICE_BYTES)
    assert decode(DEVICE, DEVICE_BYTES) == DEVICE_VALUES


@pytest.mark.parametrize(
    ("kind", "size", "content", "value"),
    [
        ("uint8", 1, b"\xff", 255),
        ("int8", 1, b"\xff", -1),
        ("uint16 equal", 2, b"\1\2", 0x0102),
        ("int32 le", 4, b"\xff\xff\xff\xfe", -2),
        ("int32 equal", 4, b"\0\0\0\2", 2),
        ("uint64", 8, b"\xff" * 8, (1 << 64) - 1),
        ("timer", 8, b"\xff" * 8, -1),
        ("bool", 1, b"\2", True),
        ("buffer", 3, b"abc", b"abc"),
        ("buffer", 0, b"", b""),
        ("unused_buffer", 2, b"ab", b"ab"),
        ("uint32", 3, b"abc", b"abc"),
        ("cpu model of tomorrow", 2, b"ab", b"ab"),
        ("nullptr", 1, b"0", None),
        ("capability", 4, b"\3cap", "cap"),
        ("capability", 4, b"\4cap", b"\4cap"),
        ("capability", 0, b"", b""),
    ],
)
def test_types_have_values(kind: str, size: int, content: bytes, value: object) -> None:
    assert decode(device({"name": "f", "type": kind, "size": size}), content) == {"f": value}


def test_arrays_have_three_forms() -> None:
    inner = {"vmsd_name": "s", "version": 1, "fields": [{"name": "v", "type": "uint8", "size": 1}]}
    one = device(
        {"name": "bytes", "array_len": 2, "type": "uint8", "size": 1},
        {"name": "words", "array_len": 2, "type": "uint16", "size": 2},
        {"name": "texts", "array_len": 2, "type": "buffer", "size": 2},
        {"name": "alike", "array_len": 2, "type": "struct", "struct": inner, "size": 1},
        {"name": "each", "index": 0, "type": "struct", "struct": inner, "size": 1},
        {"name": "each", "index": 1, "type": "struct", "struct": inner, "size": 1},
        {"name": "only", "index": 0, "type": "uint8", "size": 1},
    )
    assert decode(one, b"ab" + b"\0\1\0\2" + b"wxyz" + b"\1\2" + b"\3\4" + b"\5") == {
        "bytes": b"ab",
        "words": [1, 2],
        "texts": [b"wx", b"yz"],
        "alike": [{"v": 1}, {"v": 2}],
        "each": [{"v": 3}, {"v": 4}],
        "only": [5],
    }


def test_arrays_with_pointers_to_nothing() -> None:
    inner = {"vmsd_name": "s", "version": 1, "fields": [{"name": "v", "type": "uint8", "size": 1}]}
    older = [  # QEMU 7.2: a struct that describes nothing
        {"name": "p", "index": 0, "type": "struct", "struct": {}, "size": 1},
        {"name": "p", "index": 1, "type": "struct", "struct": inner, "size": 1},
    ]
    newer = [  # QEMU 10.0: segments of one kind
        {"name": "p", "type": "nullptr", "size": 1},
        {"name": "p", "type": "struct", "struct": inner, "size": 1},
    ]
    for fields in (older, newer):
        assert decode(device(*fields), b"0\7") == {"p": [None, {"v": 7}]}


def test_structs_may_have_their_fields_in_their_own_place() -> None:
    for kind in ("tmp", "vstruct"):
        field = {
            "name": "f",
            "type": kind,
            "vmsd_name": "x",
            "version": 1,
            "fields": [{"name": "v", "type": "uint8", "size": 1}],
            "size": 1,
        }
        assert decode(device(field), b"\7") == {"f": {"v": 7}}
    queue = {**field, "type": "qtailq", "size": 3}  # describes one element of a list of unknown length
    assert decode(device(queue), b"abc") == {"f": b"abc"}


def test_a_device_of_the_old_style_is_one_buffer() -> None:
    one = {"name": "old", "instance_id": 0, "size": 3, "fields": [{"name": "data", "size": 3, "type": "buffer"}]}
    found = parse(json.dumps({"page_size": 4096, "devices": [one]}).encode()).devices[0]
    assert (device_bytes(found), decode(found, b"abc")) == (3, {"data": b"abc"})


U8 = FieldDescription(name="v", type="uint8", size=1)
SUB = StructDescription(vmsd_name="dev/s", version=1, fields=[U8])


@pytest.mark.parametrize(
    ("one", "content", "words"),
    [
        (
            device({"name": "f", "type": "uint32", "size": 4}),
            b"abc",
            "uint32 'f' has 4 bytes, expected at most the 3 that are left",
        ),
        (device({"name": "f", "type": "uint8", "size": 1}), b"ab", "1 bytes follow the last field"),
        (DeviceDescription(name="dev", instance_id=0, fields=[], subsections=[SUB]), b"\5\5dev/t\0\0\0\1x", "dev/t"),
        (DeviceDescription(name="dev", instance_id=0, fields=[], subsections=[SUB]), b"\5\5dev/s\0\0\0\2x", "dev/s"),
        (DeviceDescription(name="dev", instance_id=0, fields=[], subsections=[SUB]), b"", "head of subsection"),
        (
            device(
                {
                    "name": "f",
                    "type": "struct",
                    "size": 2,
                    "struct": {"fields": [{"name": "v", "type": "x", "size": 1}]},
                }
            ),
            b"ab",
            "struct 'f' has 1 bytes, expected 2 as described",
        ),
    ],
)
def test_bytes_that_are_not_as_described_are_told(one: DeviceDescription, content: bytes, words: str) -> None:
    with pytest.raises(StreamDataError, match=words) as caught:
        decode(one, content)
    assert "dev/0" in str(caught.value)


@pytest.mark.parametrize(
    "field",
    [
        {"name": "f", "array_len": 1 << 40, "type": "buffer", "size": 0},
        {"name": "f", "array_len": 1 << 40, "type": "struct", "size": 0, "struct": {"fields": []}},
        {"name": "f", "array_len": MAX_VALUES + 1, "type": "uint16", "size": 0},
    ],
)
def test_a_description_cannot_make_more_of_a_device_than_it_has(field: dict[str, Any]) -> None:
    if "struct" in field:
        field["struct"] = {"fields": [{"name": "v", "type": "buffer", "size": 0}]}
    with pytest.raises(StreamTooLongError, match=f"more than {MAX_VALUES} values"):
        decode(device(field), b"")


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", StreamDataError),
        (b"tea", StreamDataError),
        (b"[]", StreamDataError),
        (b'{"page_size": 4096}', StreamDataError),
        (b'{"page_size": 65536, "devices": []}', StreamDataError),
        (b'{"page_size": 4096, "devices": [{"name": "x"}]}', StreamDataError),
        (b'{"page_size": 4096, "devices": [{"name": "\xff", "instance_id": 0, "fields": []}]}', StreamDataError),
        (b'{"page_size": 4096, "devices": [], "x": ' + b"[" * 5000 + b"]" * 5000 + b"}", StreamDataError),
        (b'{"page_size": 4096, "devices": [' + b"{" * 66_000, StreamTooLongError),
        (b'{"page_size": 4096, "devices": []' + b" " * (4 << 20) + b"}", StreamTooLongError),
    ],
)
def test_what_is_no_description_is_refused(content: bytes, kind: type[StreamError]) -> None:
    with pytest.raises(kind):
        parse(content)


def test_a_version_is_a_version() -> None:
    for version in (-1, 1 << 32):
        with pytest.raises(StreamDataError):
            device(subsections=[{"vmsd_name": "dev/s", "version": version, "fields": []}])


@pytest.mark.parametrize("size", [-1, (1 << 40) + 1, 1.5, "1"])
def test_a_size_is_a_size(size: object) -> None:
    with pytest.raises(StreamDataError):
        device({"name": "f", "type": "buffer", "size": size})


@pytest.mark.parametrize(("depth", "refused"), [(MAX_DEPTH - 1, False), (MAX_DEPTH, True), (500, True), (20_000, True)])
def test_structs_are_not_too_deep(depth: int, refused: bool) -> None:
    opening, closing = b'{"name":"f","type":"struct","size":1,"struct":{"fields":[', b"]}}"
    leaf = b'{"name":"v","type":"uint8","size":1}'
    fields = opening * depth + leaf + closing * depth
    content = b'{"page_size":4096,"devices":[{"name":"dev","instance_id":0,"fields":[' + fields + b"]}]}"
    if refused:
        with pytest.raises(StreamError):
            parse(content)
    else:
        assert device_bytes(parse(content).devices[0]) == 1


def stream_end(json_bytes: bytes) -> bytes:
    return b"\0\0\0~\0\0\0\1\0\x06" + len(json_bytes).to_bytes(4, "big") + json_bytes


@pytest.mark.parametrize("length", [2, 0x7B, 0x100, 0x17B, 0x7B00, 0x10000, 0x1007B, 0x107B01])
@pytest.mark.parametrize("after", [b"", b"parmig trailer without the mark"])
def test_a_description_is_found_from_the_end(length: int, after: bytes) -> None:
    content = b"{" + b" " * (length - 2) + b"}"
    tail = stream_end(content)
    where = find(tail + after)
    assert where is not None
    assert tail[where] == content


@pytest.mark.parametrize(
    "tail", [b"", b"\0", b"\0\x06\0\0\0\0", stream_end(b"{}")[:-1], b"\0\x05\0\0\0\2{}", bytes(99)]
)
def test_where_there_is_none_none_is_found(tail: bytes) -> None:
    assert find(tail) is None


def test_no_brace_stands_in_the_length_of_what_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = len(build(VmDescription(page_size=4096, devices=[])))
    lengths = set()
    for more in range(0x17B - empty - 60, 0x17B - empty):
        one = DeviceDescription(name="x" * more, instance_id=0, fields=[])
        content = build(VmDescription(page_size=4096, devices=[one]))
        lengths.add(len(content))
        assert b"{" not in len(content).to_bytes(4, "big")
        assert parse(content).devices == [one]
    assert vmdescription.MAX_OBJECTS > 2
    assert 0x17C in lengths
