# SPDX-License-Identifier: Apache-2.0
"""The sending end alone, with a clock and a peer by hand: every byte, every border, every wait."""

from __future__ import annotations

import os
import struct
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import pytest

from parmig.errors import LimitExceededError, ProtocolError
from parmig.ram import channel_messages as messages
from parmig.ram import flow, in_flight
from parmig.ram.channel_opening import Caller, read_opening
from parmig.ram.credit import credit_bytes
from parmig.ram.flow import SendChannel
from parmig.transport.transport import Buffer, Incoming
from parmig.units import NS_PER_MS, NS_PER_S
from tests.support import FakeTransport

SESSION = b"0123456789abcdef"
MS = NS_PER_MS


class Peer(FakeTransport):
    """Keeps what is written, and has answers ready."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[tuple[bytes, bool]] = []
        self.answers: deque[Sequence[bytes]] = deque()

    def write(self, frames: Sequence[Buffer], *, kept: bool = False) -> None:
        self.sent.append((b"".join(frames), kept))

    def receive(self, timeout_ms: int = 0) -> Incoming | None:
        return Incoming([memoryview(frame) for frame in self.answers.popleft()]) if self.answers else None


class Clock:
    """In place of the module ``time`` and of the poller: waiting is what makes time pass."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.polls: list[int | None] = []
        self.sleeps: list[float] = []

    def monotonic_ns(self) -> int:
        return self.now_ns

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now_ns += round(seconds * NS_PER_S)

    def poll(self, timeout_ms: int | None = None) -> None:
        self.polls.append(timeout_ms)
        self.now_ns += (5 if timeout_ms is None else timeout_ms) * MS


class Sender:
    """A channel with its peer and its clock; *meanwhile* is called in each wait, and before each batch."""

    def __init__(self, fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.peer, self.clock = Peer(), Clock()
        self.meanwhile: Callable[[], None] = lambda: None
        self.channel = SendChannel(
            self.peer,
            "sender",
            batch_bytes=8192,
            credit_bytes=credit_bytes(8192),
            interrupt_fd=fd,
            interrupt=lambda: self.meanwhile(),
        )
        monkeypatch.setattr(flow, "time", self.clock)
        monkeypatch.setattr(self.channel, "_poller", self.clock)

    def open(self, granted_bytes: int = 4096) -> SendChannel:
        self.peer.answers.append([messages.welcome(granted_bytes)])
        self.channel.open(Caller(SESSION, 3, 7), limit_ns=NS_PER_S)
        return self.channel

    def batch(self, size_bytes: int = 1000) -> None:
        self.channel.send_batch([b"\3", bytes(size_bytes - 1)], size_bytes, None)

    def answers(self, *messages: bytes) -> None:
        self.peer.answers.extend([message] for message in messages)


@pytest.fixture
def sender(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sender]:
    fd = os.eventfd(0)
    yield Sender(fd, monkeypatch)
    os.close(fd)


def fence(round_: int, sequence: int) -> bytes:
    return struct.pack(">B3xIQ", 5, round_, sequence)


def fenced(round_: int, sequence: int) -> bytes:
    return struct.pack(">B3xIQ", 6, round_, sequence)


def test_the_messages_have_the_bytes_of_the_table() -> None:
    assert messages.welcome(4096) == b"\2\0\0\0\0\0\x10\0"
    assert messages.ack(258) == b"\4" + bytes(13) + b"\1\2"
    assert messages.answer_fence(memoryview(fence(9, 3)), 3) == b"\6\0\0\0\0\0\0\x09" + bytes(7) + b"\3"
    assert credit_bytes(65536) == 6 * (65536 + 16384)
    with pytest.raises(ProtocolError, match=r"^the fence of round 9 names batch 3, expected 2$"):
        messages.answer_fence(memoryview(fence(9, 3)), 2)
    with pytest.raises(ProtocolError, match=r"^a fence has 15 bytes, expected 16$"):
        messages.answer_fence(memoryview(fence(9, 3))[:-1], 3)


def test_what_goes_out_and_how(sender: Sender) -> None:
    channel = sender.open()
    assert channel.next_sequence() == 1
    sender.batch(100)
    assert channel.next_sequence() == 2
    sender.answers(fenced(5, 1))
    channel.fence(5)
    channel.fence(6)  # nothing was sent since: nobody is asked
    assert sender.peer.sent == [
        (struct.pack(">BxHI16s", 1, 3, 7, SESSION), False),
        (b"\3" + bytes(99), True),
        (fence(5, 1), False),
    ]
    assert (channel.waiting_ns, sender.clock.polls) == (0, [])
    sender.batch(100)
    sender.answers(fenced(6, 2))
    channel.fence(6)
    assert sender.peer.sent[-1] == (fence(6, 2), False)


def test_a_new_channel_has_waited_for_nothing_and_sends_nothing(sender: Sender) -> None:
    assert (sender.channel.waiting_ns, sender.channel.next_sequence()) == (0, 1)
    sender.channel.fence(1)
    assert sender.peer.sent == []


def test_the_credit_is_used_up_to_its_last_byte(sender: Sender) -> None:
    channel = sender.open(4096)
    sender.batch(1000)
    sender.batch(3096)
    assert sender.clock.polls == []
    assert not channel._has_credit(1)
    sender.answers(messages.ack(1))
    channel._drain()
    assert channel._has_credit(1000)
    assert not channel._has_credit(1001)


def test_a_batch_waits_until_enough_is_acknowledged(sender: Sender) -> None:
    sender.open(4096)
    sender.batch(2000)
    sender.batch(2000)
    waits = []

    def meanwhile() -> None:
        waits.append(len(sender.peer.sent))
        if len(waits) > 1:  # the first is before the batch
            sender.answers(messages.ack(len(waits) - 1))

    sender.meanwhile = meanwhile
    sender.batch(4000)
    assert waits == [3, 3, 3]
    assert len(sender.peer.sent) == 4
    assert sender.clock.polls == [200, 200]
    assert sender.channel.waiting_ns == 400 * MS


def test_a_batch_beyond_the_credit_waits_for_all_before_it_only(sender: Sender) -> None:
    sender.open(4096)
    sender.batch(9000)
    assert sender.clock.polls == []
    sender.answers(messages.ack(1))
    sender.batch(9000)
    assert sender.clock.polls == []


def test_no_more_than_so_many_batches_are_under_way(sender: Sender) -> None:
    channel = sender.open(4096)
    for _ in range(flow.MAX_UNACKED - 1):
        sender.batch(2)
    assert channel._has_credit(2)
    sender.batch(2)
    assert not channel._has_credit(2)


def test_an_interruption_comes_before_the_batch(sender: Sender) -> None:
    channel = sender.open()

    def interrupt() -> None:
        raise InterruptedError

    sender.meanwhile = interrupt
    with pytest.raises(InterruptedError):
        sender.batch()
    assert (channel.next_sequence(), len(sender.peer.sent)) == (1, 1)


def test_a_buffer_comes_back_with_its_own_batch(sender: Sender) -> None:
    channel = sender.open(credit_bytes(8192))
    buffers = [channel.take_buffer() for _ in range(flow.BUFFERS)]
    assert {(buffer.shape, buffer.dtype.name) for buffer in buffers} == {((2, 4096), "uint8")}
    assert len({buffer.ctypes.data for buffer in buffers}) == flow.BUFFERS
    channel.send_batch([b"\3", b"x"], 2, None)
    for buffer in buffers[:3]:
        channel.send_batch([b"\3", b"x"], 2, buffer)
        assert any(kept is buffer for kept in in_flight.buffers)
    sender.answers(messages.ack(3))
    assert channel.take_buffer() is buffers[1]
    assert channel.take_buffer() is buffers[0]
    assert sender.clock.polls == [], "an acknowledgement that is there already is waited for"
    sender.meanwhile = lambda: sender.answers(messages.ack(4))
    assert channel.take_buffer() is buffers[2]
    assert sender.clock.polls == [200]


def test_what_is_not_acknowledged_is_held(sender: Sender) -> None:
    channel = sender.open()
    frames = [b"\3", bytes(99)]
    channel.send_batch(frames, 100, None)
    (unacked,) = in_flight.batches[-1]
    assert (unacked.sequence, unacked.wire_bytes, unacked.buffer) == (1, 100, None)
    assert unacked.frames is frames


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ([messages.ack(3)], "batch 3 was acknowledged, expected at most 2"),
        ([messages.ack(1)[:-1]], "unexpected message of kind 4, 1 frames, 15 bytes"),
        ([messages.ack(1), b""], "unexpected message of kind 4, 2 frames, 16 bytes"),
        ([fenced(9, 2)], "the fence of round 9 was answered, expected round 1"),
        ([fenced(1, 1)], "the fence of round 1 names batch 1, expected 2"),
        ([fenced(1, 3)], "the fence of round 1 names batch 3, expected 2"),
        ([fenced(1, 2) + b"x"], "unexpected message of kind 6, 1 frames, 17 bytes"),
        ([fenced(1, 2), b"x"], "unexpected message of kind 6, 2 frames, 16 bytes"),
        ([messages.welcome(4096)], "unexpected message of kind 2, 1 frames, 8 bytes"),
        ([fence(1, 2)], "unexpected message of kind 5, 1 frames, 16 bytes"),
        ([b""], "unexpected message of kind 0, 1 frames, 0 bytes"),
        ([b"\x63"], "unexpected message of kind 99, 1 frames, 1 bytes"),
    ],
)
def test_a_wrong_answer_is_refused_in_words(sender: Sender, answer: list[bytes], words: str) -> None:
    channel = sender.open()
    sender.batch()
    sender.batch()
    sender.peer.answers.append(answer)
    with pytest.raises(ProtocolError) as caught:
        channel.fence(1)
    assert str(caught.value) == f"sender: {words}"


def test_a_fence_that_nobody_asked_for_is_refused(sender: Sender) -> None:
    channel = sender.open()
    sender.answers(fenced(0, 0))
    with pytest.raises(ProtocolError, match="fence of round 0 was answered, expected round -1"):
        channel._drain()


@pytest.mark.parametrize(
    "answer",
    [
        [messages.welcome(4096), b""],
        [messages.welcome(4096)[:-1]],
        [messages.welcome(4096) + b"x"],
    ],
)
def test_a_welcome_of_another_shape_is_refused(sender: Sender, answer: list[bytes]) -> None:
    sender.peer.answers.append(answer)
    with pytest.raises(ProtocolError, match="unexpected message of kind 2"):
        sender.channel.open(Caller(SESSION, 3, 7), limit_ns=NS_PER_S)


def test_a_credit_is_within_what_was_agreed(sender: Sender) -> None:
    most = credit_bytes(8192)
    for granted_bytes in (4095, most + 1):
        with pytest.raises(ProtocolError) as caught:
            sender.open(granted_bytes)
        assert str(caught.value) == (
            f"sender: the welcome has a credit of {granted_bytes} bytes, expected at most {most}"
        )
    assert sender.open(most)._credit_bytes == most


def test_the_connection_and_the_interruption_are_watched_for_what_comes_in() -> None:
    fds = os.eventfd(0), os.eventfd(0)
    peer = Peer()
    peer.pollables = lambda: [fds[0]]  # type: ignore[method-assign]
    channel = SendChannel(
        peer, "sender", batch_bytes=8192, credit_bytes=credit_bytes(8192), interrupt_fd=fds[1], interrupt=lambda: None
    )
    assert channel._poller.poll(0) == set()
    for fd in fds:
        os.eventfd_write(fd, 1)
    assert channel._poller.poll(0) == set(fds)
    for fd in fds:
        os.eventfd_read(fd)
    peer.ready = lambda: True  # type: ignore[method-assign]
    assert channel._poller.poll() == {fds[0]}
    for fd in fds:
        os.close(fd)


# -- waiting ------------------------------------------------------------------------------------


def test_the_welcome_has_its_own_limit(sender: Sender) -> None:
    with pytest.raises(LimitExceededError) as caught:
        sender.channel.open(Caller(SESSION, 3, 7), limit_ns=450 * MS)
    assert str(caught.value) == (
        "sender: the wait for the welcome of the receive worker took too long, at batch 0 of 0; "
        "check whether the destination hangs"
    )
    assert sender.clock.polls == [200, 200, 50]
    assert sender.channel.waiting_ns == 450 * MS


def test_the_last_of_a_wait_is_in_whole_milliseconds(sender: Sender) -> None:
    with pytest.raises(LimitExceededError):
        sender.channel.open(Caller(SESSION, 3, 7), limit_ns=201_500_000)
    assert sender.clock.polls == [200, 1, 1]


def test_a_welcome_may_come_late(sender: Sender) -> None:
    def meanwhile() -> None:
        if sender.clock.now_ns >= 400 * MS:
            sender.answers(messages.welcome(4096))
            sender.meanwhile = lambda: None

    sender.meanwhile = meanwhile
    sender.channel.open(Caller(SESSION, 3, 7), limit_ns=NS_PER_S)
    assert sender.clock.polls == [200, 200]


def test_the_limit_begins_again_with_each_acknowledgement(sender: Sender) -> None:
    channel = sender.open()
    for _ in range(3):
        sender.batch()
    acks = {20_000: 1, 40_000: 2}

    def meanwhile() -> None:
        sequence = acks.pop(sender.clock.now_ns // MS, 0)
        if sequence:
            sender.answers(messages.ack(sequence))

    sender.meanwhile = meanwhile
    with pytest.raises(LimitExceededError) as caught:
        channel.fence(4)
    assert acks == {}
    assert sender.clock.now_ns == 70 * NS_PER_S
    assert str(caught.value) == (
        "sender: the wait for the fence of round 4 took too long, at batch 3 of 3; check whether the destination hangs"
    )


def test_the_first_fence_is_waited_for_and_names_the_oldest_batch_without_acknowledgement(sender: Sender) -> None:
    channel = sender.open()
    for _ in range(3):
        sender.batch()
    with pytest.raises(LimitExceededError, match=r"the wait for the fence of round 1 took too long, at batch 1 of 3; "):
        channel.fence(1)


@pytest.mark.parametrize(("wait", "words"), [("credit", "credit"), ("buffer", "a free batch buffer")])
def test_each_wait_has_its_words(sender: Sender, wait: str, words: str) -> None:
    channel = sender.open()
    for _ in range(flow.BUFFERS):
        channel.take_buffer()
    sender.batch(3000)
    with pytest.raises(LimitExceededError, match=f"^sender: the wait for {words} took too long, at batch 1 of 1; "):
        sender.batch(3000) if wait == "credit" else channel.take_buffer()
    assert sender.clock.now_ns == flow.STALL_LIMIT_NS


def test_sleeping_is_exact_below_a_millisecond_and_minds_the_channel(sender: Sender) -> None:
    channel = sender.open()
    sender.batch()
    sender.answers(messages.ack(1))
    calls = []
    sender.meanwhile = lambda: calls.append(sender.clock.now_ns)
    channel.sleep_until(2_500_000)
    assert (sender.clock.polls, sender.clock.sleeps, sender.clock.now_ns) == ([2], [0.0005], 2_500_000)
    assert channel.waiting_ns == 2_500_000
    assert calls == [2 * MS, 2_500_000]
    assert not channel._unacked
    channel.sleep_until(2_500_000)
    channel.sleep_until(3_500_000)
    assert sender.clock.polls == [2, 1]
    channel.sleep_until(1)
    assert len(calls) == 3
    channel.sleep_until(3_500_001)
    assert sender.clock.sleeps == [0.0005, 1e-9]


def test_idle_waits_without_limit_once_all_is_acknowledged(sender: Sender) -> None:
    channel = sender.open()
    sender.batch()
    sender.answers(messages.ack(1))
    channel.idle()
    channel.idle()
    assert sender.clock.polls == [200, None]
    assert channel.waiting_ns == 205 * MS
    assert not channel._unacked


def test_a_hello_is_that_of_this_worker_in_one_frame() -> None:
    hello = struct.pack(">BxHI16s", 1, 3, 7, SESSION)

    def check(*frames: bytes) -> bool:
        message = Incoming([memoryview(frame) for frame in frames])
        return read_opening(message, Caller(SESSION, 3, 7), b"") is not None

    assert check(hello)
    for other in ((b"",), (hello, b""), (hello + b"x",), (b"\2" + hello[1:],), (hello[:-1] + b"x",)):
        assert not check(*other)


@pytest.mark.parametrize("free_at", ["return", "ack"])
def test_a_buffer_comes_back_when_the_transport_says(sender: Sender, free_at: Literal["return", "ack"]) -> None:
    channel = sender.open(16384)
    sender.peer.frames_free_at = free_at
    buffer = channel.take_buffer()
    channel.send_batch([b"\3", memoryview(buffer).cast("B")], 8193, buffer)
    assert [one is buffer for one in channel._buffers] == ([True] if free_at == "return" else [])
    assert len(channel._unacked) == 1
    sender.answers(messages.ack(1))
    channel._drain()
    assert [one is buffer for one in channel._buffers] == [True]
