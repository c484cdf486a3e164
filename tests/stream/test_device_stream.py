# SPDX-License-Identifier: Apache-2.0
"""Streams that are made from saved devices."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parmig.errors import (
    StreamDataError,
    StreamError,
    StreamFooterError,
    StreamMagicError,
    StreamSectionError,
    StreamTruncatedError,
    StreamVersionError,
)
from parmig.stream import device_stream
from parmig.stream.configuration import Configuration
from parmig.stream.device_stream import compose, find_devices, opening, remainder
from parmig.stream.sections import SectionHead
from parmig.stream.vmdescription import find, parse
from tests.stream.streams import read_whole, reading, saved_devices
from tools.make_golden import GOLDEN

MACHINE = "pc-i440fx-7.2"

names = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=40)
bodies = st.one_of(st.binary(max_size=60), st.binary(max_size=4).map(lambda piece: b"~\0\0\0\1" + piece))
"""Some hold the footer of section 1."""


def fake_device(number: int) -> bytes:
    """The footer of a section, and a head that could follow it."""
    return struct.pack(">BI", 0x7E, number) + b"\4" + struct.pack(">IB", 77, 3) + b"cpu" + bytes(8)


def test_a_stream_that_nobody_else_reads_has_an_empty_description() -> None:
    saved = saved_devices(("timer", b"abc"), ("cpu", b"x"))
    stream = opening(MACHINE) + remainder(saved, describe=False)
    where = find(stream)
    assert where is not None
    assert parse(stream[where]).devices == []
    described = compose(saved, MACHINE)
    assert stream[: len(opening(MACHINE)) + len(saved) - 8] == described[: len(opening(MACHINE)) + len(saved) - 8]


@given(st.lists(st.tuples(names, bodies), min_size=1, max_size=12, unique_by=lambda device: device[0]))
def test_a_stream_has_the_devices_that_were_saved(devices: list[tuple[str, bytes]]) -> None:
    saved = saved_devices(*devices)
    stream = compose(saved, MACHINE)
    where = find(stream)
    assert where is not None
    description = parse(stream[where])
    assert [(one.name, one.instance_id, one.version) for one in description.devices] == [
        (name, 3, 1) for name, _ in devices
    ]
    configuration, *items, last = read_whole(reading(stream), description)
    assert (configuration, last) == (Configuration(MACHINE), description)
    assert [item.idstr for item in items if isinstance(item, SectionHead)] == [name for name, _ in devices]
    assert [item for item in items if isinstance(item, dict)] == [{"state": body} for _, body in devices]
    assert saved[8:] in stream


def test_the_places_of_devices_are_found() -> None:
    saved = saved_devices(("timer", b"abc"), ("cpu", b""))
    first, second = find_devices(saved)
    assert (first.idstr, first.section_id, first.instance_id, first.version_id) == ("timer", 0, 3, 1)
    assert saved[first.body.start : first.body.stop] == b"abc"
    assert (second.idstr, len(second.body)) == ("cpu", 0)


def test_the_golden_file_is_read() -> None:
    golden = (GOLDEN / "devices.stream").read_bytes()
    where = find(golden)
    assert where is not None
    assert [(one.name, one.instance_id) for one in parse(golden[where]).devices] == [("clock", 5), ("clock", 6)]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda saved: b"", StreamTruncatedError),
        (lambda saved: saved[:8], StreamTruncatedError),
        (lambda saved: saved[:-1], StreamTruncatedError),
        (lambda saved: b"QEMU" + saved[4:], StreamMagicError),
        (lambda saved: saved[:7] + b"\2" + saved[8:], StreamVersionError),
        (lambda saved: saved[:8] + b"\0", StreamDataError),
        (lambda saved: saved[:8] + b"\1" + saved[9:], StreamDataError),
        (lambda saved: saved[:13] + b"\0" + saved[14:], StreamDataError),
        (lambda saved: saved.replace(b"timer", b"tim\xe9r"), StreamDataError),
    ],
)
def test_what_is_not_saved_devices_is_an_error(change: object, error: type[StreamError]) -> None:
    with pytest.raises(error):
        compose(change(saved_devices(("timer", b"abc"), ("cpu", b""))), MACHINE)  # type: ignore[operator]


def test_a_machine_type_that_cannot_be_written_is_an_error() -> None:
    with pytest.raises(StreamDataError, match="machine in ASCII"):
        compose(saved_devices(("timer", b"")), "m\xe4chine")


def test_a_guest_that_imitates_a_device_is_moved_without_a_description() -> None:
    saved = saved_devices(("timer", b"abc" + fake_device(0) + b"def"), ("cpu", b""))
    with pytest.raises(StreamFooterError, match="'cpu' has no end"):
        find_devices(saved)
    stream = compose(saved, MACHINE)
    assert stream.endswith(saved[8:])
    assert find(stream) is None


def test_too_many_devices_are_not_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_stream, "MAX_SECTIONS", 2)
    saved = saved_devices(*[("timer", b"")] * 3)
    with pytest.raises(StreamSectionError, match="more than 2 devices"):
        find_devices(saved)
    assert find(compose(saved, MACHINE)) is None


def test_a_number_that_was_used_begins_no_device() -> None:
    saved = saved_devices(("timer", fake_device(0).replace(struct.pack(">I", 77), bytes(4)) + b"x"), ("cpu", b"y"))
    assert [one.idstr for one in find_devices(saved)] == ["timer", "cpu"]
