# SPDX-License-Identifier: Apache-2.0
"""Flips a byte in the payload of a TCP connection that passes by, so that the other end takes it for what was sent.

The checksum is mended, as by a switch that damages a frame in its memory and then counts anew. It does no I/O.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

_ETHERNET_BYTES = 14
_IPV4, _TCP = 0x0800, 6
_CHECKSUM_AT = 16  # in the header of TCP


@dataclass(frozen=True)
class Payload:
    """Where a frame has the payload of TCP.

    Attributes:
        tcp: offset of the header of TCP.
        start: offset of the payload.
        end: offset of its end.
        ports: of both ends.
    """

    tcp: int
    start: int
    end: int
    ports: tuple[int, int]


def find_payload(frame: bytes) -> Payload | None:
    """The payload of TCP over IPv4 in an Ethernet *frame*; None: there is none."""
    if len(frame) < _ETHERNET_BYTES + 40 or struct.unpack_from("!H", frame, 12)[0] != _IPV4:
        return None
    first, total, protocol = struct.unpack_from("!BxH5xB", frame, _ETHERNET_BYTES)
    tcp = _ETHERNET_BYTES + (first & 0xF) * 4
    if protocol != _TCP or len(frame) < tcp + 20:
        return None
    source, target, words = struct.unpack_from("!HH8xB", frame, tcp)
    start, end = tcp + (words >> 4) * 4, _ETHERNET_BYTES + total
    return Payload(tcp, start, end, (source, target)) if start < end <= len(frame) else None


def flip(frame: bytes, payload: Payload, draw: float) -> bytes:
    """A copy of *frame* with one byte of *payload* changed, and the checksum of TCP as if it had been sent so.

    Args:
        draw: a number below 1 that chooses the byte and the change.
    """
    place = payload.start + int(draw * (payload.end - payload.start))
    change = 1 << int(draw * 8191) % 8
    changed = bytearray(frame)
    changed[place] ^= change
    even = payload.tcp + (place - payload.tcp) // 2 * 2
    before = int.from_bytes((frame + b"\0")[even : even + 2], "big")
    after = int.from_bytes((bytes(changed) + b"\0")[even : even + 2], "big")
    (checksum,) = struct.unpack_from("!H", frame, payload.tcp + _CHECKSUM_AT)
    total = (~checksum & 0xFFFF) + (~before & 0xFFFF) + after  # RFC 1624
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    struct.pack_into("!H", changed, payload.tcp + _CHECKSUM_AT, ~total & 0xFFFF)
    return bytes(changed)


class Flipper:
    """Changes one byte of the next payload of each port that is asked for."""

    def __init__(self) -> None:
        self._wishes: dict[int, float] = {}

    def ask(self, port: int, draw: float) -> None:
        """Change a byte of what is sent next from or to *port*."""
        self._wishes[port] = draw

    def pass_on(self, frame: bytes) -> tuple[bytes, int]:
        """The frame to send on in place of *frame*, and the port whose byte was changed; 0: none."""
        if not self._wishes or (payload := find_payload(frame)) is None:
            return frame, 0
        for port in payload.ports:
            if port in self._wishes:
                return flip(frame, payload, self._wishes.pop(port)), port
        return frame, 0
