# SPDX-License-Identifier: Apache-2.0
"""What is written to a stream is read from it, whatever it is and however it arrives."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from parmig.stream import MigrationDataFile
from parmig.stream.configuration import Configuration, read_configuration, write_configuration
from parmig.stream.mapped_ram import MappedRamHeader, bitmap_bytes, layout
from parmig.stream.ram_blocks import BlockEntry, read_setup, write_block_list
from parmig.stream.ram_encode import encode_page_words, encode_zero_words, page_words_bytes
from parmig.stream.ram_words import RamWordReader
from parmig.stream.vmdescription import (
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
from parmig.stream.xbzrle import decode as decode_xbzrle
from parmig.stream.xbzrle import encode as encode_xbzrle
from tests.stream.streams import each_page, put, reading
from tests.support import content

names = st.text(max_size=80).filter(lambda text: len(text.encode()) <= 255)
cuts = st.lists(st.integers(0, 20_000), max_size=8)
value = st.one_of(
    st.tuples(st.just("byte"), st.integers(0, 255)),
    st.tuples(st.just("be16"), st.integers(0, (1 << 16) - 1)),
    st.tuples(st.just("be32"), st.integers(0, (1 << 32) - 1)),
    st.tuples(st.just("be64"), st.integers(0, (1 << 64) - 1)),
    st.tuples(
        st.just("buffer"),
        st.builds(lambda size, byte: bytes((byte,)) * size, st.integers(0, 9000), st.integers(0, 255)),
    ),
    st.tuples(st.just("counted_string"), names),
)


@given(st.lists(value, max_size=80), cuts)
def test_values(values: list[tuple[str, Any]], places: list[int]) -> None:
    def write(data: MigrationDataFile) -> None:
        for kind, one in values:
            getattr(data, f"put_{kind}")(one)

    stream = put(write)
    data = reading(stream, *places)
    for kind, one in values:
        assert (data.get_buffer(len(one)) if kind == "buffer" else getattr(data, f"get_{kind}")()) == one
    assert data.position_bytes == len(stream)
    assert data.at_end()


machines = st.text(st.characters(max_codepoint=127), max_size=255)
configurations = st.builds(
    Configuration,
    machines,
    st.lists(names, max_size=10).map(tuple),
    st.none() | st.binary(min_size=16, max_size=16),
    st.none() | st.just(12),
)


@given(configurations, cuts)
def test_configurations(configuration: Configuration, places: list[int]) -> None:
    stream = put(lambda data: write_configuration(data, configuration))
    assert read_configuration(reading(stream[1:], *places)) == configuration


blocks = st.dictionaries(names.filter(bool), st.integers(1, 1 << 40), max_size=8).map(
    lambda drawn: [BlockEntry(name, pages * 4096) for name, pages in drawn.items()]
)


@given(blocks, st.booleans(), cuts)
def test_lists_of_blocks(entries: list[BlockEntry], shared: bool, places: list[int]) -> None:
    written = [BlockEntry(one.name, one.size_bytes, 7 if shared else None) for one in entries]
    stream = put(lambda data: write_block_list(data, written))
    assert read_setup(reading(stream, *places), ignore_shared=shared) == written


@given(st.integers(0, 1 << 50), st.integers(0, 1 << 50))
def test_layouts(at: int, size: int) -> None:
    header = layout(at, size)
    assert header.bitmap_offset_bytes == at + 28
    assert header.pages_offset_bytes % (1 << 20) == 0
    assert 0 <= header.pages_offset_bytes - (header.bitmap_offset_bytes + bitmap_bytes(size)) < 1 << 20
    assert 8 * bitmap_bytes(size) * 4096 >= size
    assert MappedRamHeader.decode(header.encode()) == header


run = st.tuples(st.booleans(), st.sampled_from(["mem0", "rom"]), st.lists(st.integers(0, 99), min_size=1, max_size=12))
RANDOM = content(1, 100)


@given(st.lists(st.lists(run, max_size=8), min_size=1, max_size=3), cuts)
def test_pages(sections: list[list[tuple[bool, str, list[int]]]], places: list[int]) -> None:
    stream, expected = b"", []
    for section in sections:
        for is_data, block, pages in section:
            index = np.array(pages, dtype=np.int64)
            if is_data:
                out = bytearray(page_words_bytes(block, len(pages)))
                stream += encode_page_words(out, block, index, RANDOM[index])
            else:
                stream += encode_zero_words(block, index)
            expected += [(block, page, RANDOM[page].tobytes() if is_data else None) for page in pages]
        stream += (0x10).to_bytes(8, "big")
    data = reading(stream, *places)
    words = RamWordReader(data, [BlockEntry("mem0", 100 * 4096), BlockEntry("rom", 100 * 4096)])
    assert [page for _ in sections for one in words.read_section() for page in each_page(one)] == expected
    assert data.at_end()


@given(st.lists(st.tuples(st.integers(0, 4095), st.binary(min_size=1, max_size=300)), max_size=20))
def test_differences_of_pages(changes: list[tuple[int, bytes]]) -> None:
    old = RANDOM[0].tobytes()
    new = bytearray(old)
    for at, change in changes:
        new[at : at + len(change)] = change[: 4096 - at]
    payload = encode_xbzrle(old, new)
    if payload is not None:
        assert len(payload) < 4096
        assert decode_xbzrle(payload, old) == new


@st.composite
def described(draw: st.DrawFn, depth: int = 3) -> tuple[list[FieldDescription], bytes, dict[str, Any]]:
    """Fields, the bytes that they describe, and their values."""
    fields, stream, values = [], b"", {}
    for name in draw(st.lists(names, max_size=4, unique=True)):
        count = draw(st.none() | st.integers(0, 3))
        kind = draw(
            st.sampled_from(["uint8", "uint16", "int32", "uint64", "bool", "buffer", *["struct"] * (depth > 0)])
        )
        if kind == "struct":
            inner, inner_bytes, inner_values = draw(described(depth - 1))
            if not inner:
                continue
            struct = StructDescription(vmsd_name="s", version=1, fields=inner)
            fields.append(FieldDescription(name=name, array_len=count, type=kind, struct=struct, size=len(inner_bytes)))
            stream += inner_bytes * (1 if count is None else count)
            values[name] = inner_values if count is None else [inner_values] * count
            continue
        size = {"uint8": 1, "uint16": 2, "int32": 4, "uint64": 8, "bool": 1}.get(kind) or draw(st.integers(1, 9))
        content = draw(st.binary(min_size=size, max_size=size))
        fields.append(FieldDescription(name=name, array_len=count, type=kind, size=size))
        stream += content * (1 if count is None else count)
        one: Any = content
        if "int" in kind:
            one = int.from_bytes(content, "big", signed=kind[0] == "i")
        elif kind == "bool":
            one = content != b"\0"
        values[name] = one if count is None else content * count if kind == "uint8" else [one] * count
    return fields, stream, values


@given(described(), described(), st.binary(max_size=20).filter(lambda text: b"\0" not in text))
def test_descriptions(
    own: tuple[list[FieldDescription], bytes, dict[str, Any]],
    more: tuple[list[FieldDescription], bytes, dict[str, Any]],
    after: bytes,
) -> None:
    subsection = StructDescription(vmsd_name="dev/more", version=2, fields=more[0])
    device = DeviceDescription(name="dev", instance_id=1, version=1, fields=own[0], subsections=[subsection])
    json = build(VmDescription(page_size=4096, devices=[device]))
    tail = b"\0\x06" + len(json).to_bytes(4, "big") + json + after.replace(b"{", b"")
    where = find(tail)
    assert where is not None
    found = parse(tail[where]).devices[0]
    assert found == device
    stream = own[1] + b"\5\x08dev/more\0\0\0\2" + more[1]
    assert device_bytes(found) == len(stream)
    expected: dict[str, Any] = {**own[2], "dev/more": more[2]}
    assert decode(found, stream) == expected
