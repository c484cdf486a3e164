# SPDX-License-Identifier: Apache-2.0
"""What is said between the processes of a migration: msgpack of tagged, typed structures.

Three conversations: sender and receiver over the control channel, coordinator and send workers,
coordinator and receive workers (both over a pipe on one host). Decoding checks every type; nothing
is ever unpickled. The first control message is preceded by a fixed header, so that any two versions
can at least refuse each other by name.
"""

from __future__ import annotations

import struct
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from parmig.config import MAX_WORKERS
from parmig.engine.report import ErrorReport
from parmig.errors import ParmigError, ProtocolError, by_name
from parmig.ram.blocks import RamBlock
from parmig.ram.dirty_log import DirtyLog
from parmig.ram.shared import WorkerCounters
from parmig.status import MigrationStatus

PROTOCOL_VERSION = 3
"""Raised with every change of any message or batch format, unless a feature that both sides name decides on it.
Version 3 knows such features, and sources that begin with the version before theirs."""

VERSIONS = range(PROTOCOL_VERSION - 1, PROTOCOL_VERSION + 1)
"""What is spoken here: this version, and the one before it. A source begins with the older one, which every peer that
can be spoken to understands, and names the newer one among its capabilities; the destination answers in the newest
version that both have, and that is spoken from then on."""

CONTROL_MAGIC = b"PARMIG\r\n"
_PREAMBLE = struct.Struct(">8sI")

MAX_CONTROL_BYTES = 1 << 20
MAX_CONFIGURE_BYTES = 256 << 10
"""Of the first message, which anybody may send."""
MAX_STATE_CHUNK_BYTES = 1 << 20

MAX_NAME = 255
MAX_TEXT = 4000

_Count = Annotated[int, Meta(ge=0)]
_Name = Annotated[str, Meta(max_length=MAX_NAME)]
_Names = Annotated[tuple[_Name, ...], Meta(max_length=64)]
_Blocks = Annotated[tuple[RamBlock, ...], Meta(max_length=1024)]
_Digest = Annotated[str, Meta(pattern=r"\A[0-9a-f]{1,64}\Z")]
_Status = Annotated[str, Meta(pattern=rf"\A({'|'.join(status.value for status in MigrationStatus)})\Z")]


class _Message(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Root of all messages: tagged with the class name."""


# -- sender and receiver: the control channel ---------------------------------------------------


class Configure(_Message, frozen=True):
    """Source: who I am, what the guest is, what I would like. Nothing was touched yet.

    Attributes:
        allocated_bytes: of the guest's memory files, so that the destination can check its space.
        region_pages: size of a region; both sides cut alike.
        credit_bytes: what a channel may have unacknowledged.
        running: whether the guest runs now; HandOver says what it did at its pause.
        switchover_timeout_ns: what the source allows from its pause to hand-over, and the same again after it.
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


class DataEndpoint(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where a receive worker listens; an empty host means the host of the control channel.

    Attributes:
        scheme: of the transport there; empty, as before the feature ``endpoint-schemes``: the agreed transport's.
    """

    host: Annotated[str, Meta(pattern=r"\A[0-9A-Za-z_.:%\[\]-]{0,255}\Z")]
    port: Annotated[int, Meta(ge=0, le=65535)]
    scheme: Annotated[str, Meta(pattern=r"\A[0-9a-z+.-]{0,32}\Z")] = ""


class Accept(_Message, frozen=True):
    """Destination: the same about me, and where my workers listen; the source checks it too."""

    parmig: _Name
    kind: _Name
    machine: _Name
    blocks: _Blocks
    codec: _Name
    session: Annotated[bytes, Meta(min_length=16, max_length=16)]
    state: DataEndpoint
    data: Annotated[tuple[DataEndpoint, ...], Meta(max_length=MAX_WORKERS)]
    capabilities: _Names = ()


class Refuse(_Message, frozen=True):
    """Destination: this cannot work; *reason* names what does not match."""

    reason: str


class Digested(_Message, frozen=True):
    """Destination: the digest of all RAM, as asked."""

    digest: _Digest


class DigestRequest(_Message, frozen=True):
    """Source: all of RAM has arrived and both guests are paused; tell me its digest."""


class Release(_Message, frozen=True):
    """Source: RAM is complete; load the device state, *size_bytes* long with this xxh3-128 digest."""

    size_bytes: _Count
    digest: _Digest


class Loaded(_Message, frozen=True):
    """Destination: the state is loaded, the guest is paused and able to run. Times are durations."""

    received_ns: _Count
    load_ns: _Count


class HandOver(_Message, frozen=True):
    """Source: the guest is yours. From here on the source never resumes by itself.

    Attributes:
        run: whether it ran when it was paused, and so shall run now.
    """

    run: bool


class Resumed(_Message, frozen=True):
    """Destination: the guest runs here (or stays paused, as it was).

    Attributes:
        resume_ns: from hand-over until it ran.
        since_ns: how long it had run when this was sent; the source takes that off its own clock's time.
    """

    resume_ns: _Count
    since_ns: _Count = 0


class Progressed(_Message, frozen=True):
    """Source: where we are, said every few seconds: for the destination's display, and as a sign of life."""

    status: _Status
    round: _Count


class Failure(_Message, frozen=True):
    """Either: I failed and will not go on."""

    error: ErrorReport


class Goodbye(_Message, frozen=True):
    """Source: completed, nothing more will come."""


ControlMessage = (
    Configure
    | Accept
    | Refuse
    | DigestRequest
    | Digested
    | Release
    | Loaded
    | HandOver
    | Resumed
    | Progressed
    | Failure
    | Goodbye
)

# -- coordinator and workers --------------------------------------------------------------------


class MemorySetup(_Message, frozen=True):
    """What every worker is told of the guest's memory, once; the descriptors come beside it.

    Attributes:
        workers: how many there are on this side.
        file_offsets_bytes: where each block begins in its memory file.
    """

    worker: int
    workers: int
    blocks: tuple[RamBlock, ...]
    file_offsets_bytes: tuple[int, ...]
    region_pages: int


class SendSetup(MemorySetup, frozen=True):
    """To a send worker, once: everything it needs besides descriptors.

    Attributes:
        protocol: the agreed version.
    """

    uri: str
    local: str
    session: bytes
    protocol: int
    codec: str
    batch_bytes: int
    connect_timeout_ns: int


class ReceiveSetup(MemorySetup, frozen=True):
    """To a receive worker, once.

    Attributes:
        protocol: the agreed version.
    """

    uri: str
    session: bytes
    protocol: int
    codec: str
    batch_bytes: int
    credit_bytes: int


class StartTracking(_Message, frozen=True):
    """Coordinator: this is the dirty log. With *has_fd* its descriptor follows on the pipe."""

    log: DirtyLog
    has_fd: bool


class SendRegions(_Message, frozen=True):
    """Coordinator: scan these regions and send what is dirty.

    Attributes:
        first_pass: these regions were never sent.
        holes: look for pages that were given back, too; needless once the paused guest was looked through.
        scanned: send what ScanRegions found in them; else scan them now.
    """

    round: int
    regions: tuple[int, ...]
    first_pass: bool
    holes: bool = True
    scanned: bool = False


class ScanRegions(_Message, frozen=True):
    """Coordinator: scan and re-arm these regions, and keep what was found for SendRegions, which may go to others."""

    regions: tuple[int, ...]


class Fence(_Message, frozen=True):
    """Coordinator: no more regions in this round; answer when all of it is placed."""

    round: int


class CountDirty(_Message, frozen=True):
    """Coordinator: how many pages are dirty in these regions now?"""

    regions: tuple[int, ...]


class DigestRegions(_Message, frozen=True):
    """Coordinator: the digests of these regions."""

    regions: tuple[int, ...]


class PlaceRegions(_Message, frozen=True):
    """Coordinator: make these regions of memory what the snapshot has, page by page from their places."""

    regions: tuple[int, ...]


class PlaceStream(_Message, frozen=True):
    """Coordinator: read all pages of the sequential snapshot and place them; only follow it with *check_only*."""

    check_only: bool


class Stop(_Message, frozen=True):
    """Coordinator: end now."""


Instruction = (
    StartTracking | ScanRegions | SendRegions | Fence | CountDirty | DigestRegions | PlaceRegions | PlaceStream | Stop
)


# -- coordinator and guardian: see workers.guardian -----------------------------------------------


class Guard(_Message, frozen=True):
    """Coordinator: if I end without another word, call *program* (``module:function``) with *setup*."""

    program: str
    setup: bytes


class Disarm(_Message, frozen=True):
    """Coordinator: the guest is handed over, or goes on; do nothing any more."""


class TakeOver(_Message, frozen=True):
    """Coordinator: I live, but cannot set the guest right: begin."""


class Armed(_Message, frozen=True):
    """Guardian: I am here, out of reach of what may end the coordinator.

    Attributes:
        pid: of the guardian.
        log: file that it writes what it does to; empty: it could not make one.
    """

    pid: int
    log: str


# -- workers ------------------------------------------------------------------------------------


class WorkerReady(_Message, frozen=True):
    """Worker: connected (send) or listening at *port* (receive)."""

    port: int = 0


class WorkerConnected(_Message, frozen=True):
    """Receive worker: its send worker said hello."""


class RegionsScanned(_Message, frozen=True):
    """Send worker: the answer to ScanRegions."""


class RegionsDone(_Message, frozen=True):
    """Send worker: one SendRegions is done, apart from what waits for a batch to fill."""


class Fenced(_Message, frozen=True):
    """Send worker: everything of this round has been placed by the destination."""

    round: int
    counters: WorkerCounters


class Counted(_Message, frozen=True):
    """Send worker: the answer to CountDirty."""

    pages: int


class RegionDigests(_Message, frozen=True):
    """Worker: the answer to DigestRegions, digest by region number."""

    digests: dict[int, int]


class Placed(_Message, frozen=True):
    """Worker: the answer to PlaceRegions and PlaceStream; pages of the latter end at byte *end_bytes*."""

    counters: WorkerCounters
    end_bytes: int = 0


class WorkerFailed(_Message, frozen=True):
    """Worker: I failed and end."""

    error: ErrorReport


WorkerEvent = (
    WorkerReady
    | WorkerConnected
    | RegionsScanned
    | RegionsDone
    | Fenced
    | Counted
    | RegionDigests
    | Placed
    | WorkerFailed
)

T = TypeVar("T")

encode = msgspec.msgpack.Encoder().encode
_control_decoder = msgspec.msgpack.Decoder(ControlMessage)
instruction_decoder = msgspec.msgpack.Decoder(Instruction)
guardian_decoder = msgspec.msgpack.Decoder(Guard | Disarm | TakeOver)
armed_decoder = msgspec.msgpack.Decoder(Armed)
event_decoder = msgspec.msgpack.Decoder(WorkerEvent)


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
    """What to say of a peer that speaks *version*, which is not spoken here."""
    return (
        f"the peer speaks protocol version {version}, this parmig versions {VERSIONS[0]} and {VERSIONS[-1]}; "
        "install the same parmig on both hosts"
    )


def decode_control(frame: memoryview, *, first: bool = False) -> ControlMessage:
    """The control message in *frame*.

    Args:
        first: it is the first one of a source, which may speak newer versions than that of the message.

    Raises:
        ProtocolError: not one, or of another protocol version.
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
        ProtocolError: a name that is too long.
    """
    match message:
        case Configure() | Accept():
            if any(len(block.name) > MAX_NAME for block in message.blocks):
                raise ProtocolError(f"malformed control message: a RAM block's name of over {MAX_NAME} characters")
        case Refuse(reason=reason):
            return Refuse(peer_text(reason))
        case Failure(error=error):
            phase = None if error.phase is None else peer_text(error.phase, MAX_NAME)
            return Failure(
                ErrorReport(type=peer_text(error.type, MAX_NAME), message=peer_text(error.message), phase=phase)
            )
    return message


def peer_text(text: str, limit: int = MAX_TEXT) -> str:
    """Text from the peer as it may reach a terminal or a log: one line, without control characters, not too long."""
    shown = "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text[:limit])
    return shown if len(text) <= limit else f"{shown} [and {len(text) - limit} characters more]"


def describe_error(error: BaseException, phase: str | None = None) -> ErrorReport:
    """*error* as it travels and is reported."""
    known = isinstance(error, ParmigError)
    message = str(error) if known else f"{type(error).__name__}: {error}"
    return ErrorReport(
        type=type(error).__name__ if known else "ParmigError",
        message=message,
        phase=getattr(error, "phase", None) or phase,
    )


def restore_error(report: ErrorReport, prefix: str = "") -> ParmigError:
    """The error that *report* describes, as the class it names."""
    error = by_name(report.type)(prefix + report.message)
    error.phase = report.phase
    return error
