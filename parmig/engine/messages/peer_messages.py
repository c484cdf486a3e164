# SPDX-License-Identifier: Apache-2.0
"""The messages between sender and receiver over the control channel.

The first message is preceded by a fixed header, so that any two versions can at least refuse each other by name.
"""

from __future__ import annotations

import struct
from typing import Annotated

import msgspec
from msgspec import Meta

from parmig.config import MAX_WORKERS
from parmig.engine.matching.in_place import MAX_FILES, OfferedFile
from parmig.engine.matching.traits import MAX_TRAITS, MAX_VALUES
from parmig.engine.messages.digest_messages import Digest, Digested, DigestRequest, Digests, DigestsRequest
from parmig.engine.messages.handover_messages import AskForGuest, GuestAnswer, Refused
from parmig.engine.messages.message import Message, encode
from parmig.engine.reporting.error_reports import MAX_NAME, peer_text
from parmig.engine.reporting.mismatch import Mismatch
from parmig.engine.reporting.report import ErrorReport
from parmig.errors import ProtocolError
from parmig.linux.networks import MAX_ADDRESSES, DeviceAddress
from parmig.ram.blocks import BlockMemory, RamBlock
from parmig.status import MigrationStatus

PROTOCOL_VERSION = 3
"""Raised with every change of a message or batch format, except a change that depends on a feature which
both sides name. Such features came with version 3, whose sources begin with the version before their own."""

VERSIONS = range(PROTOCOL_VERSION - 1, PROTOCOL_VERSION + 1)
"""The versions that are spoken here: this one and the one before it.

A source begins with the older one, which every peer that it can speak to understands, and names the newer one among
its capabilities. The destination answers in the newest version that both sides speak, and both go on with that."""

CONTROL_MAGIC = b"PARMIG\r\n"
_PREAMBLE = struct.Struct(">8sI")

MAX_CONTROL_BYTES = 1 << 20
MAX_CONFIGURE_BYTES = 256 << 10
"""The limit of the first message, which anybody may send."""
MAX_STATE_CHUNK_BYTES = 1 << 20
MAX_MISMATCHES = 256
"""That one answer lists."""

_Count = Annotated[int, Meta(ge=0)]
_Name = Annotated[str, Meta(max_length=MAX_NAME)]
_Names = Annotated[tuple[_Name, ...], Meta(max_length=64)]
_Blocks = Annotated[tuple[RamBlock, ...], Meta(max_length=1024)]
_Status = Annotated[str, Meta(pattern=rf"\A({'|'.join(status.value for status in MigrationStatus)})\Z")]


_Traits = Annotated[dict[_Name, Annotated[tuple[_Name, ...], Meta(max_length=MAX_VALUES)]], Meta(max_length=MAX_TRAITS)]


class Configure(Message, frozen=True, omit_defaults=True):
    """Source: who I am, what the guest is, what I would like. Nothing was touched yet.

    A field that was added later has a default and is left out where it has that. An older destination refuses the
    others as unknown; the source then asks it again without them (introduction.py).

    Attributes:
        allocated_bytes: storage of the guest's memory files, so that the destination can check its space.
        region_pages: size of a region; both sides cut alike.
        credit_bytes: how much a channel may have unacknowledged.
        running: whether the guest runs now; HandOver says what it did at its pause.
        switchover_timeout_ns: what the source allows from its pause to hand-over, and the same again after it.
        traits: what the guest depends on, by name, for the destination to compare.
        check: only compare, and answer with Checked instead of Accept.
        files: memory files whose descriptors came with this message (on a Unix socket).
    """

    parmig: _Name
    kind: _Name
    machine: _Name
    blocks: _Blocks
    allocated_bytes: _Count
    workers: Annotated[int, Meta(ge=1, le=MAX_WORKERS)]
    transport: _Name
    codec: _Name
    batch_bytes: Annotated[int, Meta(ge=4096, le=4 << 20, multiple_of=4096)]
    credit_bytes: Annotated[int, Meta(ge=4096, le=64 << 20)]
    region_pages: Annotated[int, Meta(ge=64, multiple_of=64)]
    running: bool
    verify: bool
    switchover_timeout_ns: Annotated[int, Meta(ge=1)]
    capabilities: _Names = ()
    traits: _Traits = {}
    check: bool = False
    files: Annotated[tuple[OfferedFile, ...], Meta(max_length=MAX_FILES)] = ()


class DataEndpoint(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where a receive worker listens; an empty host means the host of the control channel.

    Attributes:
        scheme: of the transport there. Empty where the feature ``endpoint-schemes`` was not agreed on.
    """

    host: Annotated[str, Meta(pattern=r"\A[0-9A-Za-z_.:%\[\]-]{0,255}\Z")]
    port: Annotated[int, Meta(ge=0, le=65535)]
    scheme: Annotated[str, Meta(pattern=r"\A[0-9a-z+.-]{0,32}\Z")] = ""


class Accept(Message, frozen=True, omit_defaults=True):
    """Destination: the same about me, and where my workers listen; the source checks it too.

    Attributes:
        in_place: numbers of the blocks that stay in place, as the source numbers them.
        targets: what holds the other blocks here, if the source may write there; see ``direct``.
        addresses: where each worker listens, at its port. None where the feature ``paths`` was not agreed on.
    """

    parmig: _Name
    kind: _Name
    machine: _Name
    blocks: _Blocks
    codec: _Name
    session: Annotated[bytes, Meta(min_length=16, max_length=16)]
    state: DataEndpoint
    data: Annotated[tuple[DataEndpoint, ...], Meta(max_length=MAX_WORKERS)]
    capabilities: _Names = ()
    in_place: Annotated[tuple[_Count, ...], Meta(max_length=MAX_FILES)] = ()
    targets: Annotated[tuple[BlockMemory, ...], Meta(max_length=1024)] = ()
    addresses: Annotated[tuple[DeviceAddress, ...], Meta(max_length=MAX_ADDRESSES)] = ()


class Refuse(Message, frozen=True):
    """Destination: this cannot work; *reason* names what does not match."""

    reason: str


class Checked(Message, frozen=True):
    """Destination: all that does not match; nothing was touched, and I wait on."""

    mismatches: Annotated[tuple[Mismatch, ...], Meta(max_length=MAX_MISMATCHES)]


class Release(Message, frozen=True):
    """Source: RAM is complete; load the device state, *size_bytes* long with this xxh3-128 digest."""

    size_bytes: _Count
    digest: Digest


class Loaded(Message, frozen=True):
    """Destination: the state is loaded, the guest is paused and able to run. Times are durations."""

    received_ns: _Count
    load_ns: _Count


class HandOver(Message, frozen=True):
    """Source: the guest is yours. From here on the source never resumes by itself.

    Attributes:
        run: whether it ran when it was paused, and so shall run now.
    """

    run: bool


class Resumed(Message, frozen=True):
    """Destination: the guest runs here (or stays paused, as it was).

    Attributes:
        resume_ns: from hand-over until it ran.
        since_ns: how long it had run when this was sent. The source subtracts it from the time on its own clock.
    """

    resume_ns: _Count
    since_ns: _Count = 0


class Progressed(Message, frozen=True):
    """Source: how far I am. Sent every few seconds, for the destination's display and as a sign of life."""

    status: _Status
    round: _Count


class Failure(Message, frozen=True):
    """Either: I failed and will not go on."""

    error: ErrorReport


class Goodbye(Message, frozen=True, omit_defaults=True):
    """Source: completed, nothing more will come.

    Attributes:
        digest: of its memory, if it was compared after the hand-over. Only a destination that was asked gets it.
    """

    digest: Digest | None = None


ControlMessage = (
    Configure
    | Accept
    | Refuse
    | Checked
    | DigestRequest
    | Digested
    | DigestsRequest
    | Digests
    | Release
    | Loaded
    | HandOver
    | Resumed
    | Refused
    | AskForGuest
    | GuestAnswer
    | Progressed
    | Failure
    | Goodbye
)

_control_decoder = msgspec.msgpack.Decoder(ControlMessage)


def encode_control(message: ControlMessage, version: int = PROTOCOL_VERSION) -> bytes:
    """One control message with its preamble."""
    return _PREAMBLE.pack(CONTROL_MAGIC, version) + encode(message)


def peer_version(frame: memoryview) -> int | None:
    """The protocol version of the control message in *frame*, or None when it is no such message."""
    if len(frame) < _PREAMBLE.size:
        return None
    magic, version = _PREAMBLE.unpack_from(frame)
    return int(version) if magic == CONTROL_MAGIC else None


def other_version(version: int) -> str:
    """The reason to refuse a peer that speaks *version*, which is not spoken here."""
    return (
        f"the peer speaks protocol version {version}, this parmig versions {VERSIONS[0]} and {VERSIONS[-1]}; "
        "install the same parmig on both hosts"
    )


def decode_control(frame: memoryview, *, first: bool = False) -> ControlMessage:
    """The control message in *frame*.

    Args:
        first: it is the first message of a source, which may also speak a newer version than that of the message.

    Raises:
        ProtocolError: *frame* is no control message, or one of another protocol version.
    """
    version = peer_version(frame)
    if version is None:
        raise ProtocolError(f"a message of {len(frame)} bytes is not one of parmig's")
    if version not in VERSIONS and not (first and version == VERSIONS[0] - 1):
        raise ProtocolError(other_version(version))
    try:
        return _checked(_control_decoder.decode(frame[_PREAMBLE.size :]))
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:  # text that is not UTF-8 is the latter
        raise ProtocolError(f"malformed control message: {peer_text(str(error), MAX_NAME)}") from error
    except RecursionError:
        raise ProtocolError("malformed control message: nested too deeply") from None


def _checked(message: ControlMessage) -> ControlMessage:
    """*message* with all its text fit to be shown.

    Raises:
        ProtocolError: a name is too long.
    """
    match message:
        case Checked(mismatches=mismatches):
            return Checked(
                tuple(Mismatch(*map(peer_text, msgspec.structs.astuple(mismatch))) for mismatch in mismatches)
            )
        case Configure() | Accept():
            if any(len(block.name) > MAX_NAME for block in message.blocks):
                raise ProtocolError(f"malformed control message: a RAM block's name has over {MAX_NAME} characters")
            if isinstance(message, Configure) and message.traits:
                return msgspec.structs.replace(message, traits=_shown_traits(message.traits))
        case Refuse(reason=reason):
            return Refuse(peer_text(reason))
        case Failure(error=error):
            return Failure(_shown_error(error))
        case Refused(error=error):
            return Refused(_shown_error(error))
    return message


def _shown_error(error: ErrorReport) -> ErrorReport:
    phase = None if error.phase is None else peer_text(error.phase, MAX_NAME)
    return ErrorReport(type=peer_text(error.type, MAX_NAME), message=peer_text(error.message), phase=phase)


def _shown_traits(traits: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    return {peer_text(key): tuple(map(peer_text, values)) for key, values in traits.items()}
