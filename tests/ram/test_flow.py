# SPDX-License-Identifier: Apache-2.0
"""The sending end of a data channel, over real sockets, against receiving ends that do right and wrong."""

from __future__ import annotations

import os
import random
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest

from parmig.errors import LimitExceededError, ProtocolError
from parmig.ram import channel_messages as messages
from parmig.ram import flow, in_flight
from parmig.ram.bits import NO_RUNS, Index
from parmig.ram.blocks import PAGE_BYTES, Pages
from parmig.ram.channel_opening import Caller, read_opening
from parmig.ram.codecs.batch_encoder import open_encoder
from parmig.ram.codecs.codec import CodecSettings
from parmig.ram.credit import credit_bytes
from parmig.ram.flow import SendChannel
from parmig.ram.outlets.channel import ChannelOutlet
from parmig.ram.regions import cut
from parmig.transport.transport import Buffer, Endpoint, Incoming, parse_uri
from parmig.transport.zeromq import ZmqTransport
from parmig.transport.zeromq_socket import HIGH_WATER_MESSAGES
from parmig.units import MIB, NS_PER_MS, NS_PER_S
from tests.support import FakeTransport, mapped, shared_area

SESSION = b"0123456789abcdef"
BATCH_BYTES = 65536
CREDIT_BYTES = flow.MIN_CREDIT_BYTES

Answer = Callable[[bytes, int], list[bytes]]
"""What a receiving end says to the first frame of a message, the size of which is given too."""


class InterruptedForTestError(Exception):
    pass


class Receiver(threading.Thread):
    """A receiving end in a thread; answers by *answer* until told to stop."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self._transport = ZmqTransport("receiver", max_message_bytes=1 << 20)
        self.endpoint: Endpoint = self._transport.bind(parse_uri("zmq+tcp://127.0.0.1:0"))
        self._answer = answer
        self._stopped = False
        self.error: BaseException | None = None

    def run(self) -> None:
        accepted = False
        try:
            while not self._stopped:
                message = self._transport.read(10)
                if message is None:
                    continue
                if not accepted:
                    self._transport.accept()
                    accepted = True
                for one in self._answer(bytes(message[0]), sum(map(len, message))):
                    self._transport.write([one])
        except BaseException as error:
            self.error = error

    def stop(self) -> None:
        self._stopped = True
        self.join()
        self._transport.shutdown()


@contextmanager
def channel_to(answer: Answer, *, interrupt: Callable[[], None] = lambda: None, fd: int = -1) -> Iterator[SendChannel]:
    own = os.eventfd(0) if fd < 0 else fd
    receiver = Receiver(answer)
    receiver.start()
    transport = ZmqTransport("sender", max_message_bytes=1 << 16)
    try:
        transport.connect(receiver.endpoint, timeout_ns=10 * NS_PER_S)
        yield SendChannel(
            transport,
            "send worker 3",
            batch_bytes=BATCH_BYTES,
            credit_bytes=credit_bytes(BATCH_BYTES),
            interrupt_fd=own,
            interrupt=interrupt,
        )
    finally:
        receiver.stop()
        transport.shutdown()
        if fd < 0:
            os.close(own)
    assert receiver.error is None or isinstance(receiver.error, ProtocolError), receiver.error


def open_(channel: SendChannel) -> SendChannel:
    channel.open(Caller(SESSION, 3, 7), limit_ns=10 * NS_PER_S)
    return channel


def batch(channel: SendChannel, size: int = 1000) -> None:
    """Any bytes do: this receiving end does not look into batches."""
    channel.send_batch([b"\3" + bytes(size - 1)], size, None)


class Well:
    """A receiving end that does right, some batches late."""

    def __init__(self, seed: int = 0, most_late: int = 0) -> None:
        self._random = random.Random(seed)
        self._most_late = most_late
        self.hellos: list[bytes] = []
        self.sequence = self.acked = 0
        self.unacked: list[int] = []
        self.most_unacked_bytes = 0

    def __call__(self, frame: bytes, size: int) -> list[bytes]:
        if frame[0] == messages.HELLO:
            self.hellos.append(frame)
            return [messages.welcome(CREDIT_BYTES)]
        if frame[0] == messages.FENCE:
            self.unacked.clear()
            return [messages.answer_fence(memoryview(frame), self.sequence)]
        self.sequence += 1
        self.unacked.append(size)
        self.most_unacked_bytes = max(self.most_unacked_bytes, sum(self.unacked))
        if len(self.unacked) <= self._random.randint(0, self._most_late):
            return []
        self.unacked.clear()
        return [messages.ack(self.sequence)]


def test_the_hello_is_the_one_that_was_agreed() -> None:
    well = Well()
    with channel_to(well) as channel:
        open_(channel)
    (hello,) = well.hellos
    agreed = Caller(SESSION, 3, 7)
    assert read_opening(Incoming([memoryview(hello)]), agreed, b"") == (messages.HELLO, 0, None, b"", b"")
    for other in (Caller(SESSION[::-1], 3, 7), Caller(SESSION, 4, 7), Caller(SESSION, 3, 8)):
        assert read_opening(Incoming([memoryview(hello)]), other, b"") is None
    for stranger in (
        [memoryview(b"")],
        [memoryview(hello[:-1])],
        [memoryview(hello), memoryview(b"")],
        [memoryview(b"\2" + hello[1:])],
    ):
        assert read_opening(Incoming(stranger), agreed, b"") is None


@pytest.mark.parametrize("seed", range(5))
def test_the_credit_is_never_exceeded(seed: int) -> None:
    well = Well(seed, most_late=3)
    sizes = random.Random(seed)
    with channel_to(well) as channel:
        open_(channel)
        for round_ in (1, 2):
            for _ in range(100):
                batch(channel, sizes.randint(16, 1000))
            channel.fence(round_)
        assert well.sequence == 200
        assert channel.next_sequence() == 201
    assert 1000 < well.most_unacked_bytes <= CREDIT_BYTES


def test_a_batch_beyond_the_credit_goes_out_alone() -> None:
    well = Well()
    with channel_to(well) as channel:
        open_(channel)
        for _ in range(3):
            batch(channel, 3 * CREDIT_BYTES)
        channel.fence(1)
    assert well.sequence == 3
    assert well.most_unacked_bytes == 3 * CREDIT_BYTES


def test_without_acknowledgements_only_the_credit_goes_out_and_an_interruption_ends_the_wait() -> None:
    seen: list[int] = []
    fd = os.eventfd(0, os.EFD_NONBLOCK)

    def silent(frame: bytes, size: int) -> list[bytes]:
        if frame[0] == messages.HELLO:
            return [messages.welcome(CREDIT_BYTES)]
        seen.append(size)
        if len(seen) == 4:
            os.eventfd_write(fd, 1)
        return []

    def interrupt() -> None:
        try:
            os.eventfd_read(fd)
        except BlockingIOError:
            return
        raise InterruptedForTestError

    with channel_to(silent, interrupt=interrupt, fd=fd) as channel:
        open_(channel)
        with pytest.raises(InterruptedForTestError):  # noqa: PT012  the last of them
            for _ in range(5):
                batch(channel)
        assert channel.next_sequence() == 5
    assert seen == [1000] * 4
    os.close(fd)


def test_a_fence_with_nothing_sent_since_the_last_asks_nobody() -> None:
    fences = []

    def count(frame: bytes, size: int) -> list[bytes]:
        if frame[0] == messages.FENCE:
            fences.append(frame)
        return well(frame, size)

    well = Well()
    with channel_to(count) as channel:
        open_(channel)
        channel.fence(1)
        batch(channel)
        channel.fence(2)
        channel.fence(3)
    assert len(fences) == 1


def test_buffers_come_back_by_their_acknowledgement() -> None:
    with channel_to(Well()) as channel:
        open_(channel)
        seen = set()
        for _ in range(3 * flow.BUFFERS):
            buffer = channel.take_buffer()
            assert buffer.shape == (16, 4096)
            seen.add(buffer.ctypes.data)
            channel.send_batch([b"\3" + bytes(99)], 100, buffer)
        channel.fence(1)
        assert len(seen) <= flow.BUFFERS
        # All of them are back: as many can be taken without waiting.
        assert len({channel.take_buffer().ctypes.data for _ in range(flow.BUFFERS)}) == flow.BUFFERS


def instead(kind: int, reply: Callable[[int], bytes]) -> Answer:
    """A receiving end that answers messages of *kind* by *reply* of the number of batches."""
    well = Well()

    def answer(frame: bytes, size: int) -> list[bytes]:
        right = well(frame, size)
        return [reply(well.sequence)] if frame[0] == kind else right

    return answer


BAD_ANSWERS = [
    pytest.param(
        messages.FENCE,
        lambda n: struct.pack(">B3xIQ", messages.FENCED, 1, n + 1),
        "names batch 2, expected 1",
        id="fence of more",
    ),
    pytest.param(
        messages.FENCE,
        lambda n: struct.pack(">B3xIQ", messages.FENCED, 1, n - 1),
        "names batch 0, expected 1",
        id="fence of less",
    ),
    pytest.param(
        messages.FENCE,
        lambda n: struct.pack(">B3xIQ", messages.FENCED, 2, n),
        "fence of round 2 was answered, expected round 1",
        id="fence of another round",
    ),
    pytest.param(3, lambda n: messages.ack(n + 1), "batch 2 was acknowledged, expected", id="acknowledged too much"),
    pytest.param(3, lambda n: messages.ack(n)[:-1], "kind 4", id="cut"),
    pytest.param(3, lambda n: b"", "kind 0", id="empty"),
    pytest.param(3, lambda n: b"\x63" * 16, "kind 99", id="unknown kind"),
    pytest.param(3, lambda n: messages.welcome(1), "kind 2", id="second welcome"),
]


@pytest.mark.parametrize(("kind", "reply", "words"), BAD_ANSWERS)
def test_a_wrong_answer_is_refused(
    monkeypatch: pytest.MonkeyPatch, kind: int, reply: Callable[[int], bytes], words: str
) -> None:
    monkeypatch.setattr(flow, "STALL_LIMIT_NS", 2 * NS_PER_S)
    with channel_to(instead(kind, reply)) as channel:
        open_(channel)
        batch(channel)
        with pytest.raises(ProtocolError, match=f"send worker 3: .*{words}"):
            channel.fence(1)


@pytest.mark.parametrize("credit", [0, 1, flow.MIN_CREDIT_BYTES - 1, credit_bytes(BATCH_BYTES) + 1, (1 << 32) - 1])
def test_a_credit_that_was_not_agreed_is_refused(credit: int) -> None:
    with (
        channel_to(lambda frame, size: [messages.welcome(credit)]) as channel,
        pytest.raises(ProtocolError, match=f"credit of {credit} bytes, expected at most"),
    ):
        open_(channel)


@pytest.mark.parametrize("credit", [flow.MIN_CREDIT_BYTES, credit_bytes(BATCH_BYTES)])
def test_a_credit_that_was_agreed_is_taken(credit: int) -> None:
    with channel_to(lambda frame, size: [messages.welcome(credit)]) as channel:
        open_(channel)


def test_batches_in_flight_are_few_however_small_they_are() -> None:
    """As many as the high-water mark holds and more were within the credit: zero pages, and lz4 at 255 to 1."""
    well = Well(most_late=1 << 20)
    most = 0

    def late(frame: bytes, size: int) -> list[bytes]:
        nonlocal most
        if frame[0] == messages.HELLO:
            return well(frame, size)
        answers = [messages.ack(well.sequence)] if len(well.unacked) >= flow.MAX_UNACKED else []
        if answers:
            well.unacked.clear()
        answers += well(frame, size)
        most = max(most, len(well.unacked))
        return answers

    with channel_to(late) as channel:
        open_(channel)
        for _ in range(flow.MAX_UNACKED):
            batch(channel, 16)
        assert len(channel._unacked) == flow.MAX_UNACKED
        assert not channel._has_credit(16)
    assert flow.MAX_UNACKED < HIGH_WATER_MESSAGES


class Recorder(FakeTransport):
    """A transport whose peer acknowledges everything before it can have it."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[list[memoryview]] = []
        self.answers: list[bytes] = []

    def write(self, frames: Sequence[Buffer], *, kept: bool = False) -> None:
        self.sent.append([memoryview(frame) for frame in frames])
        self.answers.append(
            messages.welcome(credit_bytes(MIB)) if len(self.sent) == 1 else messages.ack(len(self.sent) - 1)
        )

    def read(self, timeout_ms: int = 0) -> list[memoryview] | None:
        return [memoryview(self.answers.pop(0))] if self.answers else None


@pytest.mark.parametrize("codec_name", ["none", "lz4"])
def test_pages_lie_in_memory_that_lasts_whatever_the_peer_acknowledges(codec_name: str) -> None:
    """ZeroMQ may still read them: memory of the guest, or buffers that are never freed."""
    pages = 2 * MIB // PAGE_BYTES
    fd = os.eventfd(0)
    recorder = Recorder()
    with mapped(pages) as mappings, shared_area(mappings, cut([mappings[0].block], 512)) as shared:
        mappings[0].pages[:] = np.arange(pages, dtype=np.uint64).astype(np.uint8)[:, None]
        channel = SendChannel(
            recorder, "sender", batch_bytes=MIB, credit_bytes=credit_bytes(MIB), interrupt_fd=fd, interrupt=lambda: None
        )
        channel.open(Caller(SESSION, 0, 7), limit_ns=NS_PER_S)
        encoder = open_encoder(codec_name, [codec_name], CodecSettings(), shared.codec_counters(0))
        outlet = ChannelOutlet(channel, encoder, mappings, NullTracker(), shared)
        scattered = np.arange(0, pages, 2)
        for index in (np.arange(200), scattered[:200], scattered[200:], np.arange(256, 400)) * 5:
            outlet.emit(0, 1, index, NO_RUNS)
        channel._drain()  # the last acknowledgements: what was not acknowledged is held anyhow
        lasting = (mappings[0].pages, *in_flight.buffers)
        bounds = [(array.ctypes.data, array.ctypes.data + array.nbytes) for array in lasting]
        seen = 0
        for frames in recorder.sent[1:]:
            for frame in frames[1:]:
                at = np.frombuffer(frame, dtype=np.uint8).ctypes.data
                assert any(first <= at and at + len(frame) <= end for first, end in bounds)
                seen += 1
            del frames[1:]
        assert seen == 20
        del lasting, frame, frames
        recorder.sent.clear()
    os.close(fd)


class NullTracker:
    """A tracker for what is only sent."""

    needs_copy = False

    def sent(self, block: int, index: Index, copies: Pages | None) -> None:
        """Not noted."""


def test_a_peer_without_a_welcome_is_given_up_by_name() -> None:
    with (
        channel_to(lambda frame, size: []) as channel,
        pytest.raises(LimitExceededError, match=r"send worker 3.*welcome"),
    ):
        channel.open(Caller(SESSION, 3, 7), limit_ns=50 * NS_PER_MS)


@pytest.mark.parametrize("wait", ["fence", "credit", "buffer"])
def test_a_peer_that_falls_silent_is_given_up_by_name(wait: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow, "STALL_LIMIT_NS", 50 * NS_PER_MS)
    with channel_to(
        lambda frame, size: [messages.welcome(CREDIT_BYTES)] if frame[0] == messages.HELLO else []
    ) as channel:
        open_(channel)
        with pytest.raises(LimitExceededError, match=rf"send worker 3.*{wait}.*destination hangs"):  # noqa: PT012  whichever waits
            for _ in range(2 * flow.CREDIT_BATCHES):
                buffer = channel.take_buffer() if wait == "buffer" else None
                channel.send_batch([b"\3" + bytes(99)], 100 if wait != "credit" else 3000, buffer)
            channel.fence(1)


@pytest.mark.parametrize("size", [0, 1, 15, 17])
def test_a_fence_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(ProtocolError, match=f"has {size} bytes, expected"):
        messages.answer_fence(memoryview(bytes(size)), 0)
