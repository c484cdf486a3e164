# SPDX-License-Identifier: Apache-2.0
"""Frames that are sent from where they lie, and nobody holds but the caller."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pytest

from parmig.errors import PeerLostError
from parmig.ram import channel_messages as messages
from parmig.transport import zeromq_frames
from parmig.transport.transport import parse_uri
from parmig.transport.zeromq import ZmqTransport
from parmig.units import MIB, NS_PER_S
from tests.support import PATIENCE_S, next_message, wait_until

LOOPBACK = parse_uri("zmq+tcp://127.0.0.1:0")


@pytest.fixture
def pair() -> Iterator[tuple[ZmqTransport, ZmqTransport]]:
    """A listening and a connected channel."""
    with ExitStack() as stack:
        ends = [ZmqTransport(name, max_message_bytes=4 * MIB) for name in ("here", "there")]
        for end in ends:
            stack.callback(end.shutdown)
        ends[1].connect(ends[0].bind(LOOPBACK), timeout_ns=10 * NS_PER_S)
        ends[1].write([b"hello"])
        assert next_message(ends[0]) == [b"hello"]
        ends[0].accept()
        yield ends[0], ends[1]


@pytest.mark.parametrize("without", [False, True], ids=["libzmq", "pyzmq"])
def test_kept_frames_arrive_like_others(
    pair: tuple[ZmqTransport, ZmqTransport], monkeypatch: pytest.MonkeyPatch, without: bool
) -> None:
    """Also where pyzmq does not show libzmq's functions."""
    if without:
        monkeypatch.setattr(zeromq_frames, "FUNCTIONS", None)
    memory = np.random.default_rng(2).integers(0, 256, 6 * MIB, dtype=np.uint8)
    frames = [b"header", memory[:MIB].data, bytes(memory[: 2 * MIB]), b"", memory[2 * MIB :].data]
    for sender, receiver in (pair, pair[::-1]):
        sender.write(frames, kept=True)
        assert next_message(receiver) == [bytes(frame) for frame in frames]


def test_no_thread_waits_for_them(pair: tuple[ZmqTransport, ZmqTransport]) -> None:
    before = set(threading.enumerate())
    pair[1].write([b"header", bytes(MIB)], kept=True)
    next_message(pair[0])
    assert set(threading.enumerate()) <= before


def test_to_a_peer_that_is_gone_they_are_refused(pair: tuple[ZmqTransport, ZmqTransport]) -> None:
    memory = bytes(MIB)
    pair[0].shutdown()

    def refused() -> bool:
        try:
            pair[1].write([b"header", memory], kept=True)
        except PeerLostError:
            return True
        return False

    wait_until(refused, "the loss of the peer")


SENDER = """
import gc, mmap, os, sys
from parmig.ram.channel_opening import Caller
from parmig.ram.credit import credit_bytes
from parmig.ram.flow import SendChannel
from parmig.transport.transport import parse_uri
from parmig.transport.zeromq import ZmqTransport
size = int(sys.argv[2])
fd = os.memfd_create("guest")
os.ftruncate(fd, size)
memory = mmap.mmap(fd, size)
memory[-4:] = b"last"
transport = ZmqTransport("sender", max_message_bytes=1 << 16)
transport.connect(parse_uri(sys.argv[1]), timeout_ns=10**10)
sizes = dict(batch_bytes=size, credit_bytes=credit_bytes(size))
channel = SendChannel(transport, "sender", **sizes, interrupt_fd=os.eventfd(0), interrupt=lambda: None)
channel.open(Caller(bytes(16), 0, 1), limit_ns=10**10)
channel.send_batch([b"head", memoryview(memory)], size, None)
del channel, memory
gc.collect()
sys.stdin.read()
os._exit(0)
"""


def test_memory_outlives_a_channel_that_ends_while_it_is_read() -> None:
    """Else libzmq, still sending, meets unmapped memory and ends the process."""
    size = 256 * MIB  # takes libzmq far longer than the sender needs to drop it
    with ExitStack() as stack:
        receiver = ZmqTransport("receiver", max_message_bytes=size)
        stack.callback(receiver.shutdown)
        command = [sys.executable, "-c", SENDER, str(receiver.bind(LOOPBACK)), str(size)]
        sender = stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE))
        stack.callback(sender.kill)
        next_message(receiver)
        receiver.accept()
        receiver.write([messages.welcome(size + MIB)])
        assert next_message(receiver)[1][-4:] == b"last"
        sender.communicate(timeout=PATIENCE_S)
        assert sender.returncode == 0
