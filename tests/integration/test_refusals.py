# SPDX-License-Identifier: Apache-2.0
"""What does not fit is refused by name on both sides, and what is broken does not disturb what works."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import zmq

from parmig.config import ReceiveConfig, SendConfig
from parmig.engine.report import Report
from parmig.ram.blocks import BlockMemory
from parmig.units import MIB, NS_PER_MS
from tests.integration.sides import (
    LISTEN,
    Command,
    Discard,
    HeldGuest,
    Migration,
    allocated_bytes,
    guests,
    migrate,
    never_ran,
    runs_on,
)


def refused(report: Report, *words: str) -> None:
    """A check before the start said no, and what it named."""
    assert report.error is not None, report
    assert (report.status, report.error.type, report.exit_code) == ("failed", "PeerRefusedError", 3), report.error
    for word in words:
        assert word in report.error.message, report.error
    assert report.rounds == []


# -- nobody there, or no parmig ------------------------------------------------------------------------


def test_nobody_listening_is_told_with_address_and_advice() -> None:
    with HeldGuest("memory=8MiB") as source, socket.socket() as unused:  # type: ignore[attr-defined]
        unused.bind(("127.0.0.1", 0))
        uri = f"zmq+tcp://127.0.0.1:{unused.getsockname()[1]}"
        config = SendConfig(workers=2, connect_timeout_ns=300 * NS_PER_MS)
        with Migration(source, None, config, uri=uri) as migration:
            report = migration.sent()
        assert report.error is not None
        assert (report.error.type, report.exit_code) == ("PeerUnreachableError", 1)
        assert uri in report.error.message
        assert "parmig receive" in report.error.message
        runs_on(source)


def test_a_listener_that_is_no_parmig_is_told() -> None:
    with HeldGuest("memory=8MiB") as source, socket.socket() as other:  # type: ignore[attr-defined]
        other.bind(("127.0.0.1", 0))
        other.listen()
        uri = f"zmq+tcp://127.0.0.1:{other.getsockname()[1]}"
        config = SendConfig(workers=2, connect_timeout_ns=300 * NS_PER_MS)
        with Migration(source, None, config, uri=uri) as migration:
            report = migration.sent()
        assert report.error is not None
        assert report.error.type == "PeerUnreachableError"
        assert "does not speak ZeroMQ" in report.error.message
        runs_on(source)


# -- the two sides do not match ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("there", "words"),
    [
        ("memory=64MiB", ("RAM block 'ram0'", "memory size", "32 MiB", "64 MiB")),
        ("memory=32MiB,blocks=2", ("RAM block 'ram1'", "RAM block 'ram0'", "32 MiB", "16 MiB")),
    ],
)
def test_other_memory_is_refused_with_every_difference(there: str, words: tuple[str, ...]) -> None:
    with guests("memory=32MiB,rate=20MiB/s", destination_options=there) as (source, destination):
        sent, received = migrate(source, destination)
        refused(sent, *words)
        refused(received, *words)
        runs_on(source)
        never_ran(destination)


def test_other_block_names_are_refused() -> None:
    with guests("memory=32MiB") as (source, destination):
        [memory] = destination.memory()
        import msgspec

        destination._memory = [BlockMemory(msgspec.structs.replace(memory.block, name="pc.ram"), memory.fd)]
        sent, received = migrate(source, destination)
        for report in (sent, received):
            refused(report, "RAM block 'ram0'", "RAM block 'pc.ram'", "ids must match")
        runs_on(source)


def test_too_few_data_ports_are_refused_by_both() -> None:
    with guests("memory=32MiB") as (source, destination):
        receive = ReceiveConfig(listen=LISTEN, data_ports=(47010, 47011))
        with Migration(source, destination, receive=receive) as migration:
            refused(migration.sent(), "--data-ports 47010-47011", "2 workers")
            refused(migration.received(), "--data-ports 47010-47011", "2 workers")
        runs_on(source)
        never_ran(destination)


def test_data_ports_that_do_are_used() -> None:
    with guests("memory=32MiB,rate=10MiB/s") as (source, destination):
        receive = ReceiveConfig(listen=LISTEN, data_ports=_free_ports(3))
        with Migration(source, destination, receive=receive) as migration:
            assert migration.sent().error is None
            assert migration.received().error is None


def _free_ports(count: int) -> tuple[int, int]:
    for first in range(42000 + os.getpid() % 5000, 60000, count):
        sockets = [socket.socket() for _ in range(count)]
        try:
            for number, one in enumerate(sockets):
                one.bind(("127.0.0.1", first + number))
            return first, first + count - 1
        except OSError:
            continue
        finally:
            for one in sockets:
                one.close()
    raise AssertionError("no free ports")


def test_a_taken_data_port_is_told_to_both() -> None:
    with guests("memory=32MiB") as (source, destination), socket.socket() as taken:
        first, last = _free_ports(3)
        taken.bind(("127.0.0.1", first))
        taken.listen()
        with Migration(
            source, destination, receive=ReceiveConfig(listen=LISTEN, data_ports=(first, last))
        ) as migration:
            for report in (migration.sent(), migration.received()):
                assert report.error is not None
                assert f"127.0.0.1:{first}" in report.error.message
        runs_on(source)
        never_ran(destination)


@pytest.mark.parametrize("listen", ["zmq+tcp://0.0.0.0:0", "zmq+tcp://[::]:0"])
def test_listening_beyond_this_host_needs_to_be_asked_for(listen: str) -> None:
    with HeldGuest("memory=8MiB", incoming=True) as destination:  # type: ignore[attr-defined]
        with Migration(None, destination, receive=ReceiveConfig(listen=listen)) as migration:
            report = migration.received()
        assert report.error is not None
        assert (report.error.type, report.exit_code) == ("UsageError", 2)
        assert "--insecure" in report.error.message


def test_listening_on_all_addresses_works_when_asked_for() -> None:
    with guests("memory=32MiB,rate=10MiB/s") as (source, destination):
        receive = ReceiveConfig(listen="zmq+tcp://0.0.0.0:0", insecure=True)
        with Migration(None, destination, receive=receive) as there:
            uri = there.uri.replace("0.0.0.0", "127.0.0.1")
            with Migration(source, None, uri=uri) as here:
                assert here.sent().error is None
            assert there.received().error is None


@pytest.mark.parametrize(("field", "value"), [("compress", "zstd9"), ("transport", "pigeon"), ("workers", 65)])
def test_what_is_unknown_here_is_a_usage_error(field: str, value: Any) -> None:
    with HeldGuest("memory=8MiB") as source:  # type: ignore[attr-defined]
        with Migration(source, None, SendConfig(**{field: value}), uri="zmq+tcp://127.0.0.1:1") as migration:
            report = migration.sent()
        assert report.error is not None
        assert (report.error.type, report.exit_code) == ("UsageError", 2)
        assert str(value) in report.error.message
        runs_on(source)


# -- no space ------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 16 MiB."""
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16M", "parmig-test", str(tmp_path)], capture_output=True)
    if done.returncode:
        if os.environ.get("CI"):
            pytest.fail(f"tests on a full disk are mandatory where CI is set: {done.stderr.decode()}")
        pytest.skip(f"cannot mount: {done.stderr.decode()}")
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_destination_without_space_refuses(small_disk: Path) -> None:
    with guests("memory=32MiB,rate=20MiB/s", directory=small_disk) as (source, destination):
        sent, received = migrate(source, destination)
        for report in (sent, received):
            refused(report, "no space at the destination", "32 MiB", "16 MiB")
        assert allocated_bytes(destination) == 0
        runs_on(source)
        never_ran(destination)


@pytest.mark.parametrize("codec", ["none", "lz4"])
def test_space_that_runs_out_on_the_way_is_told_with_block_and_cure(small_disk: Path, codec: str) -> None:
    options = "memory=32MiB,rate=0,fill=zero"
    with guests(options, hold_source=["start_dirty_log"], directory=small_disk) as (source, destination):
        with Migration(source, destination, SendConfig(workers=2, compress=codec)) as at:
            source.gates["start_dirty_log"].wait()  # announced and accepted was that nothing is allocated
            os.pwrite(source.memory()[0].fd, os.urandom(16 * MIB) * 2, 0)
            source.open_gates()
            sent, received = at.sent(), at.received()
        assert received.error is not None
        assert received.error.type == "MemoryFullError", received.error
        assert "no space left in the memory file of block 'ram0'" in received.error.message
        assert sent.error is not None
        assert sent.error.type == "PeerFailedError"
        assert received.error.message in sent.error.message
        assert source.is_running()
        never_ran(destination)


# -- strangers -----------------------------------------------------------------------------------------


def test_garbage_at_every_port_does_not_disturb_a_migration() -> None:
    before = set(_listening(os.getpid()))
    with guests("memory=32MiB,rate=5MiB/s") as (source, destination):
        config = SendConfig(workers=2, verify=True, max_bandwidth_bytes_per_s=25 * MIB)
        with Migration(source, destination, config) as migration:
            migration.at_round(1)
            ports = [port for pid in migration.receive_workers() for port in _listening(pid)]
            ports += set(_listening(os.getpid())) - before
            assert len(ports) == 4  # control, state, and one a worker
            with zmq.Context() as context:
                for port in ports:
                    _send_garbage(context, port)
            assert migration.status == "active"
            report = migration.sent()
            assert migration.received().error is None
        assert (report.error, report.verified) == (None, True)
        destination.pause(Discard())
        destination.check()


def _listening(pid: int) -> list[int]:
    return [one.laddr.port for one in psutil.Process(pid).net_connections("tcp") if one.status == psutil.CONN_LISTEN]


def _send_garbage(context: Any, port: int) -> None:
    for data in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(100_000), b"\xff" + bytes(8) + b"\x7f"):
        with socket.create_connection(("127.0.0.1", port), timeout=5) as raw:
            raw.settimeout(0.05)
            try:
                raw.sendall(data)
                raw.recv(1 << 16)
            except OSError:
                pass  # closed on us, or silent: both are fine
    with context.socket(zmq.DEALER) as stranger:
        stranger.setsockopt(zmq.LINGER, 200)
        stranger.connect(f"tcp://127.0.0.1:{port}")
        for frames in (
            [b""],
            [b"garbage"],
            [os.urandom(1000)] * 3,
            [b"H" + bytes(16)],
            [b"PARMIG\r\n" + bytes(4) + b"x"],
        ):
            stranger.send_multipart(frames)
        assert not stranger.poll(50)


def test_garbage_before_the_source_comes_does_not_disturb_a_receiver() -> None:
    with guests("memory=32MiB,rate=5MiB/s") as (source, destination), Migration(None, destination) as there:
        with zmq.Context() as context:
            for data in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(100_000)):
                with socket.create_connection(("127.0.0.1", int(there.uri.rpartition(":")[2]))) as raw:
                    raw.sendall(data)
            with context.socket(zmq.DEALER) as stranger:
                stranger.connect(there.uri.removeprefix("zmq+"))
                for frames in ([b""], [b"garbage"], [b"PARMIG"]):
                    stranger.send_multipart(frames)
                assert not stranger.poll(50)
        with Migration(source, None, uri=there.uri) as here:
            assert here.sent().error is None
        assert there.received().error is None


# -- the command line ----------------------------------------------------------------------------------

GUEST = "synthetic:memory=32MiB"
OTHER_VERSION = "import parmig.engine.messages as m; m.PROTOCOL_VERSION = 99"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("send", "zmq+tcp://127.0.0.1:1", "--guest", "vmware:x"), "unknown guest scheme 'vmware'"),
        (("send", "zmq+tcp://127.0.0.1:1", "--guest", GUEST, "--compress", "zip"), "zip"),
        (("send", "nonsense", "--guest", GUEST), "nonsense"),
        (("receive", "--listen", LISTEN, "--guest", "vmware:x"), "unknown guest scheme 'vmware'"),
        (("receive", "--listen", "zmq+tcp://0.0.0.0:0", "--guest", GUEST), "--insecure"),
        (("receive", "--listen", LISTEN, "--guest", GUEST, "--data-ports", "9-8"), "9-8"),
    ],
)
def test_bad_usage_ends_with_2(arguments: tuple[str, ...], words: str) -> None:
    with Command(*arguments, "--json") as command:
        code, _ = command.end()
        assert code == 2, command.errors
        assert words in command.errors


def test_nobody_listening_ends_with_1() -> None:
    with Command("send", "zmq+tcp://127.0.0.1:1", "--guest", GUEST, "--connect-timeout", "200ms", "--json") as command:
        code, report = command.end()
        assert (code, report["error"]["type"], report["status"]) == (1, "PeerUnreachableError", "failed")


@pytest.mark.parametrize("which", ["send", "receive"])
def test_another_protocol_version_is_refused_by_name_on_both_sides(which: str) -> None:
    changed = {which: OTHER_VERSION}
    with Command(
        "receive", "--listen", LISTEN, "--guest", GUEST, "--json", prelude=changed.get("receive", "")
    ) as there:
        send = ("send", there.uri(), "--guest", GUEST, "--workers", "2", "--json")
        with Command(*send, prelude=changed.get("send", "")) as here:
            for code, report in (here.end(), there.end()):
                assert (code, report["error"]["type"]) == (3, "PeerRefusedError"), report["error"]
                assert "protocol version" in report["error"]["message"]
                assert "99" in report["error"]["message"]


def test_other_memory_ends_both_commands_with_3() -> None:
    with Command("receive", "--listen", LISTEN, "--guest", "synthetic:memory=64MiB", "--json") as there:  # noqa: SIM117 - too long on one line
        with Command("send", there.uri(), "--guest", GUEST, "--json") as here:
            for code, report in (here.end(), there.end()):
                assert (code, report["error"]["type"]) == (3, "PeerRefusedError"), report["error"]
                for word in ("ram0", "32 MiB", "64 MiB"):
                    assert word in report["error"]["message"]
