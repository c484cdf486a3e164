# SPDX-License-Identifier: Apache-2.0
"""Readers of what a peer sends, for ``tools/fuzz.py``: frames, first messages, control messages, batches of pages."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from ctypes import addressof, c_char
from functools import cache

from parmig.engine.agreement.agreement import agreed_codecs, agreed_version, check_accept, check_configure
from parmig.engine.messages import guardian_messages, peer_messages, worker_messages
from parmig.engine.messages.message import encode
from parmig.engine.messages.peer_messages import Accept, Configure, DataEndpoint
from parmig.errors import MemoryFullError, ProtocolError
from parmig.guests.guest_types import GuestInfo
from parmig.guests.trait import Trait
from parmig.ram import channel_messages as channel
from parmig.ram.blocks import PAGE_BYTES, BlockMemory, RamBlock, Segment
from parmig.ram.channel_opening import Caller, Opening, read_opening
from parmig.ram.codecs.codec import CodecSettings
from parmig.ram.codecs.registry import codec, names
from parmig.ram.packets import BatchHeader
from parmig.ram.reach.open_reach import open_reach
from parmig.ram.receive import MigrationRamReceive
from parmig.ram.shared import SharedArea
from parmig.transport.security.session_proof import CHALLENGE_BYTES
from parmig.transport.tcp_framing import GREETING, KEEP_ALIVE, Inbox
from parmig.transport.tcp_framing import encode as frame
from parmig.transport.transport import Incoming
from tests.engine.peer_examples import CONFIGURE, EXAMPLES
from tests.support import content as pages_of
from tests.support import index_of, runs_of
from tools.fuzzing import FindingError, Target

SECRET, CHALLENGE = bytes(range(32)), bytes(CHALLENGE_BYTES)
CALLERS = [Caller(SECRET[:16], 1, 3), Caller(SECRET, 1, 3, proves=True)]
INFO = GuestInfo("synthetic", "synthetic-1", "none")
TRAITS = {"devices": Trait(("a 'x'",), "remove it"), "disks": Trait((), "")}


# -- control ------------------------------------------------------------------------------------------


def control(content: bytes) -> None:
    """A control message, and the comparisons that follow from the first of either side."""
    message = peer_messages.decode_control(memoryview(content[1:]), first=bool(content[:1] == b"\1"))
    if isinstance(message, Configure):
        check_configure(message, INFO, CONFIGURE.blocks, TRAITS)
        agreed_codecs(message)
        agreed_version(message.capabilities)
    if isinstance(message, Accept):
        check_accept(message, CONFIGURE, INFO)
    for text in _texts(message):
        if any(ord(letter) < 32 for letter in text.replace("\n", "")):
            raise FindingError(f"text that is not fit to be shown: {text!r}")


def _texts(message: object) -> Iterator[str]:
    """What of *message* is shown to people."""
    if isinstance(message, peer_messages.Refuse):
        yield message.reason
    if isinstance(message, peer_messages.Failure):
        yield message.error.message


def _control_seeds() -> list[bytes]:
    accept = Accept("0", "synthetic", "synthetic-1", CONFIGURE.blocks, "none", bytes(16), DataEndpoint("", 1), ())
    return [b"\1" + peer_messages.encode_control(message) for message in (*EXAMPLES, accept)]


def pipes(content: bytes) -> None:
    """Messages between processes of one side."""
    decoders = (
        worker_messages.instruction_decoder,
        worker_messages.event_decoder,
        guardian_messages.guardian_decoder,
        guardian_messages.setup_decoder,
    )
    decoders[content[0] % 4 if content else 0].decode(content[1:])


# -- connections --------------------------------------------------------------------------------------


def framing(content: bytes) -> None:
    """Bytes of a connection, in pieces; no message may be larger than what is allowed."""
    inbox, step = Inbox(1024, 4096), content[0] + 1 if content else 1
    for at in range(1, len(content), step):
        inbox.feed(content[at : at + step])
        while (frames := inbox.take()) is not None:
            if not 1 <= len(frames) <= 8 or sum(map(len, frames)) > 4096:
                raise FindingError(f"frames of {[len(one) for one in frames]} bytes")


def opening(content: bytes) -> None:
    """The first message of a data channel. Only what proves the session may be taken."""
    for caller in CALLERS:
        opened = read_opening(Incoming([memoryview(content)]), caller, CHALLENGE)
        if opened is not None and content not in _openings():
            if caller.proves:
                raise FindingError("a first message that nobody made is taken")
            if SECRET[:16] not in content:
                raise FindingError("a first message without the token is taken")


@cache
def _openings() -> list[bytes]:
    kinds = ((channel.HELLO, 0), (channel.RESUME, 1), (channel.RESTART, 2))
    return [Opening(caller, kind, epoch, CHALLENGE).message for caller in CALLERS for kind, epoch in kinds]


def answers(content: bytes) -> None:
    """What the receiving end of a data channel sends back, and fences."""
    channel.decode_answer([memoryview(content)])
    channel.answer_fence(memoryview(content), 7)
    proving = Opening(CALLERS[1], channel.HELLO, 0, CHALLENGE)
    try:
        proving.decode_answer([memoryview(content)])
    except ProtocolError:
        return
    raise FindingError("an answer that proves nothing is taken")


# -- pages --------------------------------------------------------------------------------------------

BLOCK_PAGES, GUARD_PAGES = 64, 16
BATCH_BYTES = 32 * PAGE_BYTES
GUARD = b"\xa5" * (GUARD_PAGES * PAGE_BYTES)
_LENGTHS = struct.Struct(">HBI")


class Destination:
    """Two blocks, in a file and in private memory, with guards around them, and what places pages there."""

    def __init__(self) -> None:
        size = (BLOCK_PAGES + 2 * GUARD_PAGES) * PAGE_BYTES
        self._fd = os.memfd_create("fuzz")
        os.pwrite(self._fd, GUARD, 0)
        os.pwrite(self._fd, GUARD, size - len(GUARD))
        self._private = mmap.mmap(-1, size)
        self._private[: len(GUARD)] = self._private[-len(GUARD) :] = GUARD
        address = addressof(c_char.from_buffer(self._private)) + len(GUARD)
        blocks = [RamBlock(name, BLOCK_PAGES * PAGE_BYTES) for name in ("shared", "private")]
        segment = Segment(0, BLOCK_PAGES, address)
        self._reaches = [
            open_reach(BlockMemory(blocks[0], self._fd, len(GUARD))),
            open_reach(BlockMemory(blocks[1], pid=os.getpid(), segments=(segment,))),
        ]
        self._shared = SharedArea(-1, workers=1, blocks=blocks, regions=2)

    def close(self) -> None:
        """Give back what it holds."""
        for reach in self._reaches:
            reach.close()
        self._shared.close()
        os.close(self._fd)

    def begin(self) -> MigrationRamReceive:
        """What places batches, as in a worker that has just begun."""
        self._shared.note_placed(0, 0)
        return MigrationRamReceive(
            worker=0,
            blocks=self._reaches,
            codecs=[codec(name) for name in names()],
            shared=self._shared,
            batch_bytes=BATCH_BYTES,
        )

    def check(self) -> None:
        """Raise FindingError if anything but the blocks was written."""
        after = os.fstat(self._fd).st_size - len(GUARD)
        around = [os.pread(self._fd, len(GUARD), 0), os.pread(self._fd, len(GUARD), after)]
        around += [self._private[: len(GUARD)], self._private[-len(GUARD) :]]
        if any(guard != GUARD for guard in around):
            raise FindingError("bytes outside the agreed blocks were written")

    def place(self, messages: list[list[memoryview]]) -> None:
        """Take *messages* as a worker that has just begun."""
        receive = self.begin()
        try:
            for message in messages:
                receive.migrate_ram_receive(Incoming(message))
        finally:
            self.check()


@cache
def _destination() -> Destination:
    return Destination()


def close() -> None:
    """Give back the memory that batches are placed in."""
    _destination().close()
    _destination.cache_clear()


def batches(content: bytes) -> None:
    """Messages of a data channel, each with its frames; nothing outside the blocks may be written."""
    messages: list[list[memoryview]] = []
    rest = memoryview(content)
    while len(rest) >= _LENGTHS.size and len(messages) < 64:
        head, frames, payload = _LENGTHS.unpack_from(rest)
        rest = rest[_LENGTHS.size :]
        step = max(1, payload // max(frames & 7, 1))
        body = rest[head : head + min(payload, 1 << 20)]
        messages.append([rest[:head], *(body[at : at + step] for at in range(0, len(body), step))][:9])
        rest = rest[head + len(body) :]
    _destination().place(messages)


def _packed(message: list[bytes]) -> bytes:
    head, *payload = message
    return _LENGTHS.pack(len(head), len(payload), sum(map(len, payload))) + b"".join(message)


def _batch(sequence: int, block: int, data: set[int], zero: set[int], how: str = "none") -> list[bytes]:
    raw = pages_of(sequence, len(data))
    raw[:, 512:] = 7
    payload, number = raw.tobytes(), 0
    encoder = codec(how).encoder(CodecSettings()) if data else None
    if encoder is not None:
        encoded = encoder.encode(block, index_of(data), memoryview(raw.tobytes()))
        if encoded is not None:
            payload, number = bytes(encoded), codec(how).number
    header = BatchHeader(number, block, 1, sequence, len(data) * PAGE_BYTES, len(payload), runs_of(data), runs_of(zero))
    return [header.encode(), *([payload] if payload else [])]


def batch_messages(block: int, how: str) -> list[list[bytes]]:
    """Three batches for *block*, the second in the codec called *how*, and their fence."""
    few, many = {0, 1, 5, BLOCK_PAGES - 1}, set(range(10, 30))
    return [
        _batch(1, block, few, {7, 8, 9}),
        _batch(2, block, few, set(), how),
        _batch(3, block, many, few),
        [channel.fence(1, 3)],
    ]


def _batch_seeds() -> list[bytes]:
    return [b"".join(map(_packed, batch_messages(block, how))) for block in (0, 1) for how in names()]


TARGETS = {
    "control": Target(control, _control_seeds, (ProtocolError,)),
    "pipes": Target(
        pipes,
        lambda: [b"\0" + encode(worker_messages.CountDirty((1, 2, 3))), b"\1" + encode(worker_messages.Counted(7))],
        (ValueError, RecursionError),  # of msgspec; both ends are processes of parmig
    ),
    "framing": Target(
        framing, lambda: [b"\7" + GREETING + frame([b"abc", b"", bytes(900)]) + KEEP_ALIVE * 9 + frame([b"x"])]
    ),
    "opening": Target(opening, _openings, (ProtocolError,)),
    "answers": Target(answers, lambda: [channel.fence(1, 7)], (ProtocolError,)),
    "batches": Target(batches, _batch_seeds, (ProtocolError, MemoryFullError)),
}
