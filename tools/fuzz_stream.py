# SPDX-License-Identifier: Apache-2.0
"""Readers of streams, for ``tools/fuzz.py``."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from parmig.errors import StreamError
from parmig.stream import MigrationDataFile, xbzrle
from parmig.stream import vmdescription as vmd
from parmig.stream.configuration import Configuration
from parmig.stream.device_stream import compose
from parmig.stream.ram_blocks import read_setup, write_block_list
from parmig.stream.ram_encode import encode_page_words, encode_zero_words
from parmig.stream.ram_words import EncodedPage, RamWordReader
from parmig.stream.sections import SectionReader
from tests.stream.streams import (
    BLOCKS,
    DEVICE,
    DEVICE_BYTES,
    each_page,
    put,
    read_whole,
    reading,
    saved_devices,
    whole_stream,
)
from tools.fuzzing import FindingError, Target

DESCRIPTION = vmd.VmDescription(page_size=4096, devices=[DEVICE])


def pieces(content: bytes) -> MigrationDataFile:
    """All of *content* but its first byte, which sets the length of the pieces that it arrives in."""
    step = (content[0] if content else 0) * 16 + 1
    return reading(content[1:], *range(step, min(len(content), 64 * step), step))


def sections(content: bytes) -> None:
    """Header, configuration, sections, a device, RAM, description."""
    read_whole(pieces(content), DESCRIPTION)


def devices(content: bytes) -> None:
    """Saved devices are made into a stream that is read."""
    stream = compose(content, "pc")
    sections = SectionReader(reading(stream))
    sections.read_header()
    if sections.next() != Configuration("pc"):
        raise FindingError("the stream does not begin with its configuration")
    where = vmd.find(stream)
    if where is not None:
        vmd.parse(stream[where])


def ram(content: bytes) -> None:
    """The list of blocks, with each combination of capabilities, and words; encoded pages are decoded."""
    how = content[0] if content else 0
    data = pieces(content)
    words = RamWordReader(data, read_setup(data, ignore_shared=bool(how & 1), mapped_ram=bool(how & 2)))
    while not data.at_end():
        for run in words.read_section():
            if isinstance(run, EncodedPage):
                run.decode(bytes(4096))
            for _ in each_page(run):
                pass


def data_file(content: bytes) -> None:
    """Getting, looking and skipping by a program in the input, compared with slices of it."""
    program, rest = content[1:33], content[33:]
    data, at = pieces(content[:1] + rest), 0
    for step in program:
        count = step >> 3
        got: object
        expected: object
        match step & 7:
            case 0:
                got, expected, moved = data.get_byte(), int.from_bytes(rest[at : at + 1], "big"), 1
            case 1:
                got, expected, moved = data.get_be16(), int.from_bytes(rest[at : at + 2], "big"), 2
            case 2:
                got, expected, moved = data.get_be64(), int.from_bytes(rest[at : at + 8], "big"), 8
            case 3:
                got, expected, moved = data.get_buffer(count), rest[at : at + count], count
            case 4:
                got, expected, moved = bytes(data.peek_view(count, count)), rest[at : at + count], 0
            case 5:
                data.skip(count)
                got, expected, moved = data.position_bytes, at + count, count
            case 6:
                got, expected, moved = data.peek_byte(count), rest[at + count], 0
            case _:
                got, expected, moved = data.at_end(), at == len(rest), 0
        at += moved
        if got != expected or data.position_bytes != at:
            raise FindingError(f"step {step:#x}: {got!r} at {data.position_bytes}, expected {expected!r} at {at}")


def vmdescription(content: bytes) -> None:
    """Two bytes of length, that many bytes of a device, then JSON; every device in the JSON must decode the bytes."""
    size = int.from_bytes(content[:2], "big")
    body, tail = content[2 : 2 + size], content[2 + size :]
    where = vmd.find(tail)
    description = vmd.parse(tail[where] if where else tail)
    vmd.parse(vmd.build(description))
    for device in description.devices[:8]:
        vmd.device_bytes(device)
        vmd.decode(device, body)


def xbzrle_pages(content: bytes) -> None:
    """Differences and compressed pages."""
    old = bytes(range(256)) * 16
    decode = xbzrle.inflate if content[:1] == b"z" else lambda payload: xbzrle.decode(payload, old)
    page = decode(content[1:])
    if len(page) != 4096:
        raise FindingError(f"a page of {len(page)} bytes")
    again = xbzrle.encode(old, page)
    if again is not None and xbzrle.decode(again, old) != page:
        raise FindingError("the page is not encoded as it is decoded")


def seeds(target: str) -> list[bytes]:
    """Valid inputs."""
    stream = whole_stream()
    json = vmd.build(DESCRIPTION)
    blocks = [replace(block, gpa=0) for block in BLOCKS]
    words = put(lambda data: write_block_list(data, blocks)) + encode_zero_words("mem0", np.arange(8, 20))
    words += bytes(encode_page_words(bytearray(8300), "mem0", np.arange(2), np.ones((2, 4096), np.uint8)))
    words += (3 << 12 | 0x60).to_bytes(8, "big") + b"\1\0\3\0\1x"
    packed = zlib.compress(bytes(4096))
    words += (4 << 12 | 0x120).to_bytes(8, "big") + len(packed).to_bytes(4, "big") + packed
    by_target = {
        "sections": [b"\xff" + stream, b"\3" + stream],
        "devices": [saved_devices(("clock", DEVICE_BYTES), ("cpu", b"~\0\0\0\1\4" * 9))],
        "ram": [bytes((how,)) + words + (0x10).to_bytes(8, "big") for how in (1, 0xFD)],
        "data_file": [bytes(range(33)) + bytes(range(200)), b"\2" + bytes(range(0, 256, 8)) * 5],
        "vmdescription": [
            len(DEVICE_BYTES).to_bytes(2, "big") + DEVICE_BYTES + json,
            b"\0\0" + vmd.build(vmd.VmDescription(page_size=4096, devices=[])),
        ],
        "xbzrle": [b"x" + (xbzrle.encode(bytes(4096), b"\1" * 100 + bytes(3996)) or b""), b"z" + packed],
    }
    return by_target[target]


def _target(name: str, run: Callable[[bytes], None]) -> Target:
    return Target(run, lambda: seeds(name), (StreamError,))


TARGETS = {
    "sections": _target("sections", sections),
    "devices": _target("devices", devices),
    "ram": _target("ram", ram),
    "data_file": _target("data_file", data_file),
    "vmdescription": _target("vmdescription", vmdescription),
    "xbzrle": _target("xbzrle", xbzrle_pages),
}
