# SPDX-License-Identifier: Apache-2.0
"""Messages arrive as they were written, and nothing but ProtocolError comes of other bytes."""

from __future__ import annotations

import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parmig.engine import messages as m
from parmig.errors import GuestError, ParmigError, ProtocolError, by_name
from parmig.ram.blocks import GuestRange, RamBlock

BLOCK = RamBlock("pc.ram", 1 << 20, ranges=(GuestRange(0, 0, 1 << 20),))
CONFIGURE = m.Configure(
    parmig="0",
    kind="synthetic",
    machine="synthetic-1",
    blocks=(BLOCK,),
    allocated_bytes=4096,
    workers=2,
    transport="zmq",
    codec="none",
    batch_bytes=1 << 20,
    credit_bytes=6 << 20,
    region_pages=512,
    running=True,
    switchover_timeout_ns=30 * 10**9,
    verify=False,
    capabilities=("fence",),
)
EXAMPLES = [
    CONFIGURE,
    m.Accept(
        "0",
        "qemu",
        "pc-q35-9.2",
        (BLOCK,),
        "lz4",
        bytes(16),
        m.DataEndpoint("", 1),
        (m.DataEndpoint("::1", 2),),
        ("credit",),
    ),
    m.Refuse("no"),
    m.DigestRequest(),
    m.Digested("abc"),
    m.Release(7, "def"),
    m.Loaded(1, 2),
    m.HandOver(True),
    m.Resumed(3),
    m.Progressed("active", 2),
    m.Failure(m.describe_error(GuestError("gone"), "pausing")),
    m.Goodbye(),
]


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_a_message_arrives_as_it_was_written(message: m.ControlMessage) -> None:
    frame = memoryview(m.encode_control(message))
    assert m.decode_control(frame) == message
    assert m.peer_version(frame) == m.PROTOCOL_VERSION


def test_every_control_message_has_an_example() -> None:
    assert {type(message) for message in EXAMPLES} == set(m.ControlMessage.__args__)


@given(st.binary(max_size=100))
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError, match=f"{len(data)} bytes is not one of parmig's"):
        m.decode_control(memoryview(data))


@given(st.binary(max_size=60))
def test_garbage_after_the_preamble_is_refused(data: bytes) -> None:
    preamble = m.encode_control(m.Goodbye())[:12]
    with pytest.raises(ProtocolError, match="malformed control message"):
        m.decode_control(memoryview(preamble + data))


@given(st.sampled_from(EXAMPLES), st.data())
def test_an_altered_message_is_refused_or_a_message(message: m.ControlMessage, data: st.DataObject) -> None:
    frame = bytearray(m.encode_control(message))
    frame[data.draw(st.integers(0, len(frame) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        found = m.decode_control(memoryview(frame))
    except ProtocolError:
        return
    assert isinstance(found, m.ControlMessage)


@given(st.sampled_from(EXAMPLES), st.data())
def test_a_message_that_was_cut_is_refused(message: m.ControlMessage, data: st.DataObject) -> None:
    frame = m.encode_control(message)
    with pytest.raises(ProtocolError):
        m.decode_control(memoryview(frame[: data.draw(st.integers(0, len(frame) - 1))]))


@pytest.mark.parametrize("version", [0, 1, 3, 77])
def test_another_version_is_refused_with_both(version: int) -> None:
    frame = m.CONTROL_MAGIC + struct.pack(">I", version) + b"whatever it says"
    with pytest.raises(ProtocolError, match=rf"version {version}, this parmig version {m.PROTOCOL_VERSION}"):
        m.decode_control(memoryview(frame))


@pytest.mark.parametrize(
    "fields",
    [
        {"workers": 0},
        {"workers": 65},
        {"batch_bytes": 4095},
        {"batch_bytes": 5000},
        {"batch_bytes": 8 << 20},
        {"credit_bytes": 65 << 20},
        {"region_pages": 0},
        {"region_pages": 100},
        {"allocated_bytes": -1},
        {"running": "yes"},
        {"blocks": None},
    ],
    ids=str,
)
def test_a_wish_out_of_bounds_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ProtocolError, match="malformed"):
        m.decode_control(memoryview(m.encode_control(msgspec.structs.replace(CONFIGURE, **fields))))


def test_an_unknown_field_or_message_is_refused() -> None:
    preamble = m.encode_control(m.Goodbye())[:12]
    for body in ({"type": "Goodbye", "extra": 1}, {"type": "Surprise"}, {"type": "Stop"}, {}):
        with pytest.raises(ProtocolError):
            m.decode_control(memoryview(preamble + msgspec.msgpack.encode(body)))


def test_errors_travel_by_name() -> None:
    error = GuestError("it went away")
    error.phase = "pausing the guest"
    found = m.restore_error(m.describe_error(error), "worker 1: ")
    assert type(found) is GuestError
    assert (str(found), found.phase) == ("worker 1: it went away", "pausing the guest")
    foreign = m.restore_error(m.describe_error(ZeroDivisionError("by zero"), "setup"))
    assert type(foreign) is ParmigError
    assert (str(foreign), foreign.phase) == ("ZeroDivisionError: by zero", "setup")


@pytest.mark.parametrize("name", ["SystemExit", "annotations", "__name__", "by_name", ""])
def test_a_name_that_is_no_error_of_ours_is_the_root(name: str) -> None:
    assert by_name(name) is ParmigError
