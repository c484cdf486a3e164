# SPDX-License-Identifier: Apache-2.0
"""Messages arrive as they were written, and nothing but ProtocolError comes of other bytes."""

from __future__ import annotations

import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parmig.engine.messages import peer_messages as m
from parmig.engine.messages.digest_messages import Digested
from parmig.engine.messages.handover_messages import Refused
from parmig.engine.reporting import error_reports
from parmig.engine.reporting.mismatch import Mismatch
from parmig.engine.reporting.report import ErrorReport
from parmig.errors import GuestError, ParmigError, ProtocolError, by_name
from parmig.ram.blocks import RamBlock
from tests.engine.peer_examples import BLOCK, CONFIGURE, EXAMPLES


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


@pytest.mark.parametrize("version", [0, 1, 4, 77])
def test_another_version_is_refused_with_both(version: int) -> None:
    frame = m.CONTROL_MAGIC + struct.pack(">I", version) + b"whatever it says"
    with pytest.raises(ProtocolError, match=rf"version {version}, this parmig versions 2 and 3"):
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
        {"blocks": (RamBlock("x" * 256, 4096),)},
        {"blocks": (BLOCK,) * 1025},
        {"kind": "x" * 256},
        {"capabilities": ("x",) * 65},
        {"switchover_timeout_ns": 0},
        {"traits": {f"t{number}": () for number in range(9)}},
        {"traits": {"t": ("x",) * 1025}},
        {"traits": {"t": ("x" * 256,)}},
        {"traits": {"t" * 256: ()}},
        {"traits": {"t": (1,)}},
        {"check": "yes"},
    ],
    ids=lambda fields: str(fields)[:40],
)
def test_a_wish_out_of_bounds_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ProtocolError, match="malformed"):
        m.decode_control(memoryview(m.encode_control(msgspec.structs.replace(CONFIGURE, **fields))))


ACCEPT = EXAMPLES[1]


@pytest.mark.parametrize(
    ("port", "host"),
    [
        (-1, ""),
        (65536, ""),
        (1 << 63, ""),
        (1, "x" * 256),
        (1, "a\u2028b"),
        (1, "a b"),
        (1, "a\n"),
        (1, "\x1b[2J"),
        (1, "a;tcp://b"),
    ],
)
def test_an_endpoint_that_nobody_can_have_is_refused(port: int, host: str) -> None:
    for field, value in (("state", m.DataEndpoint(host, port)), ("data", (m.DataEndpoint(host, port),))):
        accept = msgspec.structs.replace(ACCEPT, **{field: value})
        with pytest.raises(ProtocolError, match="malformed"):
            m.decode_control(memoryview(m.encode_control(accept)))


@pytest.mark.parametrize(
    "message",
    [m.Progressed("active\x1b[2J", 1), m.Progressed("asleep", 1), m.Progressed("active\n", 1), Digested("no")],
)
def test_words_that_are_not_known_are_refused(message: m.ControlMessage) -> None:
    with pytest.raises(ProtocolError, match="malformed"):
        m.decode_control(memoryview(m.encode_control(message)))


@pytest.mark.parametrize("deep", [b"\x91" * 200_000, b"\x81\xa1a" * 200_000, b"\x81\xa4type" * 100_000])
def test_a_message_nested_deeply_is_refused(deep: bytes) -> None:
    preamble = m.encode_control(m.Goodbye())[:12]
    for body in (deep, b"\x83\xa4type\xa6Refuse\xa6reason" + deep, b"\x82\xa4type\xa6Accept\xa6blocks" + deep):
        with pytest.raises(ProtocolError, match="malformed"):
            m.decode_control(memoryview(preamble + body))


@given(st.text(max_size=50), st.integers(0, 60))
def test_text_from_the_peer_can_be_shown(text: str, limit: int) -> None:
    shown = error_reports.peer_text(text, limit)
    assert shown.isprintable()
    assert len(shown) <= limit + 40
    if text.isprintable() and len(text) <= limit:
        assert shown == text


EVIL = "\x1b]0;owned\x07\r\nparmig: completed\u2028\u202e" + "x" * 5000


@pytest.mark.parametrize(
    "message",
    [
        m.Refuse(EVIL),
        m.Failure(ErrorReport(type=EVIL, message=EVIL, phase=EVIL)),
        Refused(ErrorReport(type=EVIL, message=EVIL, phase=EVIL)),
    ],
    ids=["refuse", "failure", "refused"],
)
def test_text_is_cleaned_where_it_comes_in(message: m.ControlMessage) -> None:
    found = m.decode_control(memoryview(m.encode_control(message)))
    texts = (
        [found.reason] if isinstance(found, m.Refuse) else [found.error.type, found.error.message, found.error.phase]
    )  # type: ignore[union-attr]
    for text in texts:
        assert text is not None
        assert text.isprintable()
        assert len(text) < 4100
        assert "completed" in text


def test_what_is_wrong_with_a_message_is_told_without_its_own_words() -> None:
    preamble = m.encode_control(m.Goodbye())[:12]
    with pytest.raises(ProtocolError, match="malformed") as caught:
        m.decode_control(memoryview(preamble + msgspec.msgpack.encode({"type": EVIL})))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


def test_an_unknown_field_or_message_is_refused() -> None:
    preamble = m.encode_control(m.Goodbye())[:12]
    for body in ({"type": "Goodbye", "extra": 1}, {"type": "Surprise"}, {"type": "Stop"}, {}):
        with pytest.raises(ProtocolError):
            m.decode_control(memoryview(preamble + msgspec.msgpack.encode(body)))


def test_errors_travel_by_name() -> None:
    error = GuestError("it went away")
    error.phase = "pausing the guest"
    found = error_reports.restore_error(error_reports.describe_error(error), "worker 1: ")
    assert type(found) is GuestError
    assert (str(found), found.phase) == ("worker 1: it went away", "pausing the guest")
    foreign = error_reports.restore_error(error_reports.describe_error(ZeroDivisionError("by zero"), "setup"))
    assert type(foreign) is ParmigError
    assert (str(foreign), foreign.phase) == ("ZeroDivisionError: by zero", "setup")


@pytest.mark.parametrize("name", ["SystemExit", "annotations", "__name__", "by_name", ""])
def test_a_name_that_is_no_error_of_ours_is_the_root(name: str) -> None:
    assert by_name(name) is ParmigError


def test_traits_and_mismatches_of_the_peer_can_be_shown() -> None:
    bad = "\x1b[2Jx\n"
    wish = m.decode_control(memoryview(m.encode_control(msgspec.structs.replace(CONFIGURE, traits={bad: (bad,)}))))
    answer = m.decode_control(memoryview(m.encode_control(m.Checked((Mismatch(bad, bad, bad, bad),)))))
    assert isinstance(wish, m.Configure)
    assert isinstance(answer, m.Checked)
    for text in (*wish.traits, *wish.traits.popitem()[1], *msgspec.structs.astuple(answer.mismatches[0])):
        assert text.isprintable()


def test_a_wish_without_news_has_no_field_that_an_older_peer_does_not_know() -> None:
    plain = msgspec.structs.replace(CONFIGURE, traits={}, check=False)
    fields = msgspec.msgpack.decode(m.encode_control(plain)[12:])
    assert not {"traits", "check"} & set(fields)
