# SPDX-License-Identifier: Apache-2.0
"""Worker processes are started, told of, and ended, whatever becomes of them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest

from parmig.config import WORKER_PROGRAMS
from parmig.engine.messages.peer_messages import PROTOCOL_VERSION
from parmig.engine.messages.worker_messages import (
    CountDirty,
    DigestRegions,
    RegionDigests,
    SendRegions,
    WorkerConnected,
    WorkerFailed,
    WorkerReady,
)
from parmig.engine.pool import PIPE_LIMIT_S, PoolEvent, WorkerPool
from parmig.engine.worker_setups import ReceiveSetup, SendSetup
from parmig.errors import LimitExceededError
from parmig.processes import KILLED_LIMIT_S, end_process
from parmig.ram.blocks import PAGE_BYTES, BlockMemory, RamBlock
from parmig.ram.channel_opening import Caller
from parmig.ram.codecs.codec import CodecSettings
from parmig.ram.credit import credit_bytes
from parmig.ram.flow import SendChannel
from parmig.ram.reach.mapped import BlockMapping
from parmig.ram.region_digest import RegionDigester
from parmig.ram.regions import Region
from parmig.transport.dial import Route
from parmig.transport.polling import Poller
from parmig.transport.registry import open_transport
from parmig.transport.transport import Endpoint
from parmig.units import MIB, NS_PER_S
from tests.support import PATIENCE_NS, PATIENCE_S, content, mapped, shared_area, wait_until

SEND, RECEIVE = WORKER_PROGRAMS
PAGES = 512
REGIONS = [Region(0, first, 64) for first in range(0, PAGES, 64)]


def receive_setup(mapping: BlockMapping, **fields: object) -> ReceiveSetup:
    values = {
        "worker": 0,
        "workers": 1,
        "blocks": (mapping.block,),
        "memory": (BlockMemory(mapping.block, 0),),
        "uri": "zmq+tcp://127.0.0.1:0",
        "session": bytes(16),
        "protocol": PROTOCOL_VERSION,
        "codecs": ("none",),
        "batch_bytes": MIB,
        "credit_bytes": 6 * MIB,
        "region_pages": 64,
    }
    return ReceiveSetup(**{**values, **fields})  # type: ignore[arg-type]


def send_setup(mapping: BlockMapping, uri: str) -> SendSetup:
    return SendSetup(
        worker=0,
        workers=1,
        blocks=(mapping.block,),
        memory=(BlockMemory(mapping.block, 0),),
        routes=(Route(uri),),
        session=bytes(16),
        protocol=PROTOCOL_VERSION,
        compress="none",
        codecs=("none",),
        codec_settings=CodecSettings(),
        batch_bytes=MIB,
        credit_bytes=6 * MIB,
        region_pages=64,
        connect_timeout_ns=NS_PER_S // 10,
    )


def said_by(pool: WorkerPool, count: int = 1) -> list[PoolEvent]:
    """The next *count* events, waiting as the engine does: on what the pool says to poll."""
    found: list[PoolEvent] = []

    def read() -> bool:
        poller = Poller()
        for fd in pool.pollables():
            poller.watch(fd)
        poller.poll(100)
        found.extend(pool.read())
        return len(found) >= count

    wait_until(read, f"{count} events of workers")
    return found


def test_a_worker_starts_answers_and_ends() -> None:
    with mapped(PAGES) as (memory,), shared_area([memory], REGIONS) as shared:
        memory.pages[70] = content(1)[0]
        with WorkerPool(RECEIVE, "receive worker") as pool:
            assert pool.start(receive_setup(memory), [shared.fd, memory.fd]) == 0
            (ready,) = said_by(pool)
            assert ready.worker == 0
            assert isinstance(ready.event, WorkerReady)
            assert ready.event.port
            pool.instruct(0, DigestRegions((0, 1)))
            (answer,) = said_by(pool)
            wanted = {number: RegionDigester().digest(memory, Region(0, 64 * number, 64)) for number in (0, 1)}
            assert answer == PoolEvent(0, RegionDigests(wanted))
            assert len(pool) == 1
            (pid,) = pool.pids()
        assert not psutil.pid_exists(pid)
        assert len(pool) == 0


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"codecs": ("none", "rar")}, "unknown compression 'rar'"),
        ({"uri": "pigeon://coop:1"}, "unknown transport 'pigeon'"),
        ({"uri": "nonsense"}, "'nonsense' is not an address"),
        ({"uri": "zmq+tcp://192.0.2.77:0"}, r"cannot listen on .*192\.0\.2\.77"),
        ({"memory": (BlockMemory(RamBlock("ram0", 2 * PAGES * PAGE_BYTES), 0),)}, "memory file of block 'ram0' has"),
        ({"worker": "first"}, "Expected `int`, got `str`"),
    ],
)
def test_a_worker_with_a_bad_setup_fails_in_words(fields: dict[str, object], words: str) -> None:
    with (
        mapped(PAGES) as (memory,),
        shared_area([memory], REGIONS) as shared,
        WorkerPool(RECEIVE, "receive worker") as pool,
    ):
        pool.start(receive_setup(memory, **fields), [shared.fd, memory.fd])
        (said,) = [
            one for one in said_by(pool, 2 if "codecs" in fields else 1) if not isinstance(one.event, WorkerReady)
        ]
        assert isinstance(said.event, WorkerFailed)
        assert re.match(f"receive worker 0: .*{words}", said.event.error.message)
        assert pool.pollables() == []  # nothing more is expected of it


@contextmanager
def data_channel(port: int, scheme: str = "zmq+tcp", batch_bytes: int = MIB) -> Iterator[SendChannel]:
    """The sending end of a receive worker's channel, let in by the session's token, without its hello."""
    transport = open_transport(Endpoint(scheme, "127.0.0.1", port), "data", max_message_bytes=MIB, token=bytes(16))
    fd = os.eventfd(0)
    try:
        transport.connect(Endpoint(scheme, "127.0.0.1", port), timeout_ns=PATIENCE_NS)
        yield SendChannel(
            transport,
            "data",
            batch_bytes=batch_bytes,
            credit_bytes=credit_bytes(batch_bytes),
            interrupt_fd=fd,
            interrupt=lambda: None,
        )
    finally:
        transport.shutdown()
        os.close(fd)


@pytest.mark.parametrize("wrong", [{"worker": 1}, {"protocol": PROTOCOL_VERSION + 1}, {"session": bytes(15) + b"x"}])
def test_a_receive_worker_takes_no_hello_but_the_one_that_was_agreed(wrong: dict[str, Any]) -> None:
    agreed = Caller(bytes(16), 0, PROTOCOL_VERSION)
    with (
        mapped(PAGES) as (memory,),
        shared_area([memory], REGIONS) as shared,
        WorkerPool(RECEIVE, "receive worker") as pool,
    ):
        pool.start(receive_setup(memory), [shared.fd, memory.fd])
        (ready,) = said_by(pool)
        assert isinstance(ready.event, WorkerReady)
        with data_channel(ready.event.port) as other, data_channel(ready.event.port) as right:
            with pytest.raises(LimitExceededError, match="welcome"):
                other.open(agreed._replace(**wrong), limit_ns=NS_PER_S // 4)
            assert pool.read() == []
            right.open(agreed, limit_ns=PATIENCE_NS)
            assert said_by(pool) == [PoolEvent(0, WorkerConnected())]


def test_a_send_worker_that_reaches_nobody_says_where() -> None:
    with mapped(PAGES) as (memory,), shared_area([memory], REGIONS) as shared, WorkerPool(SEND, "send worker") as pool:
        pool.start(send_setup(memory, "zmq+tcp://127.0.0.1:1"), [shared.fd, memory.fd])
        (said,) = said_by(pool)
        assert isinstance(said.event, WorkerFailed)
        assert said.event.error.type == "PeerUnreachableError"
        assert "zmq+tcp://127.0.0.1:1" in said.event.error.message


def test_an_instruction_that_is_not_for_it_ends_a_worker_in_words() -> None:
    with (
        mapped(PAGES) as (memory,),
        shared_area([memory], REGIONS) as shared,
        WorkerPool(RECEIVE, "receive worker") as pool,
    ):
        pool.start(receive_setup(memory), [shared.fd, memory.fd])
        said_by(pool)
        pool.instruct(0, SendRegions(1, (0,), True))
        (said,) = said_by(pool)
        assert isinstance(said.event, WorkerFailed)
        assert said.event.error.type == "ProtocolError"
        assert "receive worker cannot SendRegions" in said.event.error.message


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_a_killed_worker_is_told_of_by_its_signal_while_the_others_go_on(number: signal.Signals) -> None:
    with (
        mapped(PAGES) as (memory,),
        shared_area([memory], REGIONS, workers=2) as shared,
        WorkerPool(RECEIVE, "receive worker") as pool,
    ):
        for worker in (0, 1):
            pool.start(receive_setup(memory, worker=worker, workers=2), [shared.fd, memory.fd])
        said_by(pool, 2)
        os.kill(pool.pids()[1], number)
        (said,) = said_by(pool)
        assert said.worker == 1
        assert isinstance(said.event, WorkerFailed)
        assert said.event.error.type == "WorkerError"
        assert (
            f"receive worker 1 (process {pool.pids()[1]}) was killed by signal {int(number)}"
            in said.event.error.message
        )
        pool.instruct(1, CountDirty(()))  # to the dead: nothing happens
        assert pool.read() == []
        pool.instruct(0, DigestRegions((0,)))
        assert said_by(pool)[0].worker == 0


def test_sigbus_is_explained() -> None:
    with (
        mapped(PAGES) as (memory,),
        shared_area([memory], REGIONS) as shared,
        WorkerPool(RECEIVE, "receive worker") as pool,
    ):
        pool.start(receive_setup(memory), [shared.fd, memory.fd])
        said_by(pool)
        os.kill(pool.pids()[0], signal.SIGBUS)
        (said,) = said_by(pool)
        assert isinstance(said.event, WorkerFailed)
        assert "no space left" in said.event.error.message


def test_workers_ignore_ctrl_c() -> None:
    with (
        mapped(PAGES) as (memory,),
        shared_area([memory], REGIONS) as shared,
        WorkerPool(RECEIVE, "receive worker") as pool,
    ):
        pool.start(receive_setup(memory), [shared.fd, memory.fd])
        said_by(pool)
        os.kill(pool.pids()[0], signal.SIGINT)
        pool.instruct(0, DigestRegions((0,)))
        assert isinstance(said_by(pool)[0].event, RegionDigests)


def test_close_ends_a_worker_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parmig.engine.pool.STOP_PATIENCE_S", 0.05)
    with mapped(PAGES) as (memory,), shared_area([memory], REGIONS) as shared:
        pool = WorkerPool(RECEIVE, "receive worker")
        pool.start(receive_setup(memory), [shared.fd, memory.fd])
        said_by(pool)
        (pid,) = pool.pids()
        os.kill(pid, signal.SIGSTOP)
        pool.close()
        assert not psutil.pid_exists(pid)
        pool.close()


def test_a_worker_that_takes_no_instructions_does_not_hold_up_who_tells_it() -> None:
    with (
        mapped(PAGES) as (memory,),
        shared_area([memory], REGIONS) as shared,
        WorkerPool(RECEIVE, "receive worker") as pool,
    ):
        pool.start(receive_setup(memory), [shared.fd, memory.fd])
        said_by(pool)
        os.kill(pool.pids()[0], signal.SIGSTOP)
        many = DigestRegions(tuple(range(10_000)))
        began = time.monotonic()
        for _ in range(50):  # far more than a pipe holds
            pool.instruct(0, many)
        assert time.monotonic() - began < 20 * PIPE_LIMIT_S, "it waited for each of 50"
        (said,) = said_by(pool)
        assert isinstance(said.event, WorkerFailed)
        assert said.event.error.type == "WorkerError"
        assert "was killed by signal 9; it took no instructions for 1 s" in said.event.error.message


def test_signals_to_the_group_reach_neither_workers_nor_what_makes_them() -> None:
    """As of a terminal that is closed, or of a service manager."""
    program = (
        "import os, signal, sys, time\n"
        "from parmig.processes import start_process\n"
        "process, connection = start_process('tests.engine.test_pool:answer', 'test', b'', [])\n"
        "for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):\n"
        "    signal.signal(number, lambda *_: None)\n"
        "    os.killpg(0, number)\n"
        "connection.send_bytes(b'still there?')\n"
        "assert connection.recv_bytes() == b'still there?'\n"
        "other, another = start_process('tests.engine.test_pool:answer', 'test', b'', [])\n"
        "another.send_bytes(b'and you?')\n"
        "assert another.recv_bytes() == b'and you?'\n"
    )
    subprocess.run([sys.executable, "-c", program], timeout=PATIENCE_S, check=True, start_new_session=True)


def answer(connection: Any, _setup: bytes, _fds: object) -> None:
    """A process that says what it is told, twice at most."""
    connection.send_bytes(connection.recv_bytes())


def test_a_process_that_cannot_be_started_is_refused_in_one_line() -> None:
    program = (
        "import resource, os\n"
        "from parmig.errors import HostRefusedError\n"
        "from parmig.processes import start_process, warm_up\n"
        "warm_up()\n"
        "held = os.dup(0)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (held, 1024))\n"
        "try:\n"
        "    start_process('tests.engine.test_pool:answer', 'parmig-test', b'', [])\n"
        "except HostRefusedError as error:\n"
        "    print(error)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    (line,) = result.stdout.splitlines()
    assert line.startswith("the process parmig-test cannot be started")
    assert "Too many open files" in line


def test_a_process_that_not_even_sigkill_ends_is_left_behind() -> None:
    class Hanging:
        """As one inside a dead file system: killed, and still there."""

        def __init__(self) -> None:
            self.waits: list[float] = []

        def join(self, limit_s: float) -> None:
            self.waits.append(limit_s)

        def is_alive(self) -> bool:
            return True

        def kill(self) -> None:
            pass

        def close(self) -> None:
            pass

    process = Hanging()
    end_process(process, patience_s=0.5)
    assert process.waits == [0.5, KILLED_LIMIT_S]
