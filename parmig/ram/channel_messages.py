# SPDX-License-Identifier: Apache-2.0
"""The messages of a data channel: batches, acknowledgements, credit, fences, and taking up after a loss.

They travel between one send worker and its receive worker, over any transport. All integers are big-endian::

    kind 1 HELLO    source -> destination   see ``ram.channel_opening``
    kind 2 WELCOME  destination -> source   u8 kind, 3 x 0, u32 credit_bytes
    kind 3 BATCH    source -> destination   see ``ram.packets``; sequence counts from 1, no gaps
    kind 4 ACK      destination -> source   u8 kind, 7 x 0, u64 sequence: all up to it is placed
    kind 5 FENCE    source -> destination   u8 kind, 3 x 0, u32 round, u64 sequence of the last batch
    kind 6 FENCED   destination -> source   the same fields back: all of it is placed
    kind 7 RESUME   source -> destination   as HELLO: the first message of a later connection
    kind 8 RESUMED  destination -> source   u8 kind, 3 x 0, u32 epoch, u64 sequence: all up to it is placed
    kind 9 RESTART  source -> destination   as RESUME: another send worker takes the place of one that died

A channel outlives its connections. The first one begins with HELLO and has epoch 0. Each further one begins with RESUME
and a higher epoch. The destination answers what it has placed, the source sends the rest again, and so each batch is
placed once and in its order. RESTART begins the channel anew: it is answered by WELCOME, and batches count from 1.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from parmig.errors import ProtocolError

HELLO, WELCOME, ACK, FENCE, FENCED, RESUME, RESUMED, RESTART = 1, 2, 4, 5, 6, 7, 8, 9

EPOCHS = 1 << 16
"""How many epochs one send worker may use. The one that replaces it begins above them."""

_WELCOME = struct.Struct(">B3xI")
_ACK = struct.Struct(">B7xQ")
_FENCE = _RESUMED = struct.Struct(">B3xIQ")


# -- from the source ----------------------------------------------------------------------------


def fence(round_: int, sequence: int) -> bytes:
    """The fence of a round whose last batch is *sequence*."""
    return _FENCE.pack(FENCE, round_, sequence)


# -- from the destination -----------------------------------------------------------------------


def welcome(credit_bytes: int) -> bytes:
    """The answer to a hello."""
    return _WELCOME.pack(WELCOME, credit_bytes)


def resumed(epoch: int, placed_sequence: int) -> bytes:
    """The answer to the resume of *epoch*: all batches up to *placed_sequence* are placed."""
    return _RESUMED.pack(RESUMED, epoch, placed_sequence)


def ack(sequence: int) -> bytes:
    """The acknowledgement of all batches up to *sequence*."""
    return _ACK.pack(ACK, sequence)


def answer_fence(frame: memoryview, placed_sequence: int) -> bytes:
    """The answer to the fence in *frame*.

    Raises:
        ProtocolError: malformed, or it names a batch that was not placed.
    """
    if len(frame) != _FENCE.size:
        raise ProtocolError(f"a fence has {len(frame)} bytes, expected {_FENCE.size}")
    _, round_, sequence = _FENCE.unpack(frame)
    if sequence != placed_sequence:
        raise ProtocolError(f"the fence of round {round_} names batch {sequence}, expected {placed_sequence}")
    return _FENCE.pack(FENCED, round_, sequence)


class Answer(NamedTuple):
    """A message of the destination. ``value`` is the credit of a WELCOME, the round of a FENCED, the epoch of a
    RESUMED; the fields that its kind does not have are 0.
    """

    kind: int
    value: int = 0
    sequence: int = 0


def decode_answer(message: list[memoryview]) -> Answer | None:
    """What the destination says in *message*; None: it is no answer."""
    frame = message[0]
    kind, size = (frame[0], len(frame)) if len(frame) else (0, 0)
    if len(message) != 1:
        return None
    if kind == ACK and size == _ACK.size:
        return Answer(ACK, sequence=_ACK.unpack(frame)[1])
    if kind in (FENCED, RESUMED) and size == _FENCE.size:
        return Answer(*_FENCE.unpack(frame))
    if kind == WELCOME and size == _WELCOME.size:
        return Answer(*_WELCOME.unpack(frame))
    return None


def describe(message: list[memoryview]) -> str:
    """The shape of *message*, for an error."""
    frame = message[0]
    return f"kind {frame[0] if len(frame) else 0}, {len(message)} frames, {len(frame)} bytes"
