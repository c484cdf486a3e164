# SPDX-License-Identifier: Apache-2.0
"""The record of a hand-over: who owns the guest, as each host keeps it on disk. Pure: bytes and values, no I/O.

A file has two slots of one block each. A change is written to the slot that does not hold the newest record, so a write
that is cut short loses only itself. A slot, little-endian, padded with zeros::

    8 bytes   magic "PARMIGHO"
    u32       version of the layout
    u32       length of the payload
    u64       sequence number: the valid slot with the higher one counts
    u64       xxh3-64 of all of this but the checksum, and of the payload
    payload   HandOverRecord in msgpack
"""

from __future__ import annotations

import enum
import hashlib
import struct
from typing import Literal

import msgspec
import xxhash

from parmig.errors import RecordError

SLOT_BYTES = 4096
"""One block of the common file systems, so that a slot is written by one request to the disk."""

FILE_BYTES = 2 * SLOT_BYTES

VERSION = 1

_MAGIC = b"PARMIGHO"
_HEAD = struct.Struct("<8sIIQ")
_SUM = struct.Struct("<Q")
_HEAD_BYTES = _HEAD.size + _SUM.size
MAX_PAYLOAD_BYTES = SLOT_BYTES - _HEAD_BYTES

SESSION_BYTES = 16
NAME_CHARACTERS = 8
"""Of a session's name. It is also the name in the log, so both can be compared."""

Side = Literal["source", "destination"]


class RecordState(enum.Enum):
    """What a side has decided. Each side begins with OPEN.

    Source: OPEN, then HANDED_OVER before *hand over* is sent. After that only the destination's answer *refused*, or
    the proof that nothing was sent, leads to RETURNED; *taken* leads to COMPLETED.

    Destination: OPEN, then PREPARED before *loaded* is sent, then TAKEN before the guest is resumed, or REFUSED before
    the copy is discarded. Never both.
    """

    OPEN = "open"
    HANDED_OVER = "handed-over"
    RETURNED = "returned"
    COMPLETED = "completed"
    PREPARED = "prepared"
    TAKEN = "taken"
    REFUSED = "refused"


class Handle(msgspec.Struct, frozen=True):
    """A function that another process can call: ``module:function`` and its argument."""

    program: str
    setup: bytes


class HandOverRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One session, as one side has recorded it.

    Attributes:
        session: identifies it on both hosts: a digest of the session's token, which is a secret and is not kept.
        side: which side this host is.
        state: what this side has decided.
        settled: everything that follows from *state* is done: the guest runs, was discarded, or stays paused for good.
        kind: of the guest.
        guest: how its monitor is reached, for people; empty: it ended with the command.
        finder: finds the monitor again (``guests.guest_types.Whereabouts``); None: it ended with the command.
        rescue: (source) lets the guest run here again (``guests.guest_types.Rescue``).
        runs: whether the guest runs, or ran until its pause, and so shall run where it goes.
        here: (destination) where it listens for the source.
        peer: (source) where the destination listened.
        boot: id of the boot in which this was written: a monitor does not survive a reboot.
        process: number of the process that wrote it.
        created_ns, changed_ns: since the epoch.
        parmig: version that wrote it.
    """

    session: bytes
    side: Side
    state: RecordState
    settled: bool = False
    kind: str = ""
    guest: str = ""
    finder: Handle | None = None
    rescue: Handle | None = None
    runs: bool = True
    here: str = ""
    peer: str = ""
    boot: str = ""
    process: int = 0
    created_ns: int = 0
    changed_ns: int = 0
    parmig: str = ""

    @property
    def name(self) -> str:
        """Names the session to people."""
        return name_of_session(self.session)

    @property
    def owner(self) -> Literal["here", "there", "undecided"]:
        """Where the guest belongs, as far as this side knows."""
        match self.side, self.state:
            case "source", RecordState.OPEN | RecordState.RETURNED:
                return "here"
            case "source", RecordState.COMPLETED:
                return "there"
            case "destination", RecordState.TAKEN:
                return "here"
            case "destination", RecordState.OPEN | RecordState.REFUSED:
                return "there"
        return "undecided"


def name_of_session(session: bytes) -> str:
    """What people call the session with this id."""
    return session.hex()[:NAME_CHARACTERS]


def session_id(token: bytes) -> bytes:
    """What identifies a session with *token* in records. The token cannot be found from it."""
    return hashlib.blake2s(token, digest_size=SESSION_BYTES).digest()


def encode_slot(record: HandOverRecord, sequence: int) -> bytes:
    """The slot with *record*.

    Raises:
        RecordError: it does not fit.
    """
    payload = msgspec.msgpack.encode(record)
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise RecordError(
            f"the record of the hand-over has {len(payload)} bytes, expected at most {MAX_PAYLOAD_BYTES}; "
            "shorten the path of the monitor's socket"
        )
    head = _HEAD.pack(_MAGIC, VERSION, len(payload), sequence)
    return (head + _SUM.pack(_checksum(head, payload)) + payload).ljust(SLOT_BYTES, b"\0")


def _checksum(head: bytes, payload: bytes) -> int:
    return xxhash.xxh3_64_intdigest(head + payload)


def decode_slot(slot: bytes) -> tuple[int, HandOverRecord] | None:
    """Sequence number and record of *slot*; None: it is empty, or was not written to its end.

    Raises:
        RecordError: it is whole, but of a version that this parmig does not know.
    """
    if len(slot) < _HEAD_BYTES:
        return None
    magic, version, length, sequence = _HEAD.unpack_from(slot)
    (checksum,) = _SUM.unpack_from(slot, _HEAD.size)
    payload = bytes(slot[_HEAD_BYTES : _HEAD_BYTES + length])
    if magic != _MAGIC or len(payload) != length or checksum != _checksum(bytes(slot[: _HEAD.size]), payload):
        return None
    if version != VERSION:
        raise RecordError(
            f"the record has version {version}, this parmig knows {VERSION}; use the parmig that wrote it"
        )
    try:
        return sequence, _decoder.decode(payload)
    except msgspec.MsgspecError as error:
        raise RecordError(f"the record is not one of parmig's: {error}") from error


_decoder = msgspec.msgpack.Decoder(HandOverRecord)


def decode_file(data: bytes) -> tuple[int, int, HandOverRecord]:
    """The newest record in the file *data*: the number of its slot, its sequence number, and itself.

    Raises:
        RecordError: no slot is whole, or one is of an unknown version.
    """
    slots = [decode_slot(data[start : start + SLOT_BYTES]) for start in (0, SLOT_BYTES)]
    whole = [(*decoded, number) for number, decoded in enumerate(slots) if decoded is not None]
    if not whole:
        raise RecordError("the record is damaged: neither of its two slots is whole")
    sequence, record, number = max(whole, key=lambda entry: entry[0])
    return number, sequence, record
