# SPDX-License-Identifier: Apache-2.0
"""Machine code, written byte by byte, with labels: a small replacement for an assembler."""

from __future__ import annotations

import struct

_NEAR = {"E8", "E9"}
"""Opcodes of jumps with a displacement of 32 bits (call, jmp). All others have 8."""


class Code:
    """A piece of 32-bit code for the address *origin*."""

    def __init__(self, origin: int) -> None:
        self.labels: dict[str, int] = {}
        self._origin = origin
        self._bytes = bytearray()
        self._jumps: list[tuple[int, int, str]] = []

    def __call__(self, opcode: str, *operands: int) -> None:
        """Append *opcode*, bytes in hexadecimal, and *operands* of 32 bits."""
        self._bytes += bytes.fromhex(opcode)
        for operand in operands:
            self._bytes += struct.pack("<I", operand)

    def label(self, name: str) -> None:
        """Name the address of the next byte."""
        self.labels[name] = self._origin + len(self._bytes)

    def jump(self, opcode: str, label: str) -> None:
        """Append the jump or call *opcode* to *label*, which may be defined later."""
        self._bytes += bytes.fromhex(opcode)
        size_bytes = 4 if opcode in _NEAR else 1
        self._jumps.append((len(self._bytes), size_bytes, label))
        self._bytes += bytes(size_bytes)

    def text(self, text: str) -> None:
        """Append *text* as it is."""
        self._bytes += text.encode("ascii")

    def assembled(self) -> bytes:
        """The code, with its jumps resolved.

        Raises:
            OverflowError: a short jump is too far.
            KeyError: a label is missing.
        """
        for at, size_bytes, label in self._jumps:
            distance = self.labels[label] - (self._origin + at + size_bytes)
            self._bytes[at : at + size_bytes] = distance.to_bytes(size_bytes, "little", signed=True)
        return bytes(self._bytes)
