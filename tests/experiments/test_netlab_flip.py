# SPDX-License-Identifier: Apache-2.0
"""A byte that is changed in flight: the frame stays one that the kernel takes."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from parmig.experiments.netlab_flip import Flipper, find_payload


def checksum(frame: bytes) -> int:
    """Of all of TCP and its pseudo header; 0 where it is right."""
    tcp = frame[34:]
    data = frame[26:34] + struct.pack("!HH", 6, len(tcp)) + tcp + b"\0" * (len(tcp) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def frame_with(payload: bytes, port: int = 4600) -> bytes:
    ethernet = bytes(12) + b"\x08\x00"
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 40 + len(payload), 1, 0, 64, 6, 0, b"\x0a\x63\0\1", b"\x0a\x63\0\2")
    tcp = struct.pack("!HHIIBBHHH", 40000, port, 1, 2, 5 << 4, 0x18, 500, 0, 0)
    frame = ethernet + ip + tcp + payload
    return frame[:50] + struct.pack("!H", checksum(frame)) + frame[52:]


@given(st.binary(min_size=1, max_size=40), st.floats(0, 1, exclude_max=True))
def test_one_byte_of_the_payload_differs_and_the_checksum_is_right(payload: bytes, draw: float) -> None:
    frame = frame_with(payload)
    assert checksum(frame) == 0
    flipper = Flipper()
    flipper.ask(4600, draw)
    changed, port = flipper.pass_on(frame)
    assert port == 4600
    assert checksum(changed) == 0
    differing = [at for at in range(len(frame)) if frame[at] != changed[at]]
    assert len([at for at in differing if at >= 54]) == 1
    assert all(at in (50, 51) for at in differing if at < 54)
    assert flipper.pass_on(frame) == (frame, 0), "once"


def test_other_ports_and_frames_without_payload_pass_unchanged() -> None:
    flipper = Flipper()
    flipper.ask(4601, 0.5)
    for frame in (frame_with(b"x"), frame_with(b"", 4601), b"short", bytes(80)):
        assert flipper.pass_on(frame) == (frame, 0)
    assert find_payload(frame_with(b"")) is None
