# SPDX-License-Identifier: Apache-2.0
"""What does not fit is refused by name on both sides, and what is broken does not disturb what works."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
import zmq

from parmig.config import ReceiveConfig, SendConfig
from parmig.engine.agreement.agreement import CAPABILITIES
from parmig.engine.channels.control import ControlChannel
from parmig.engine.destination_plan import destination_steps
from parmig.engine.messages import peer_messages as m
from parmig.engine.reporting.report import Report
from parmig.ram.blocks import BlockMemory
from parmig.transport.tcp import TcpTransport
from parmig.transport.tcp_framing import GREETING, encode
from parmig.transport.transport import parse_uri
from parmig.units import MIB, NS_PER_MS, NS_PER_S
from tests.integration.sides import (
    LISTEN,
    Command,
    Discard,
    HeldGuest,
    Migration,
    allocated_bytes,
    guests,
    never_ran,
    runs_on,
    until,
)
from tests.ports import free_ports


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
        assert "does not speak parmig's protocol" in report.error.message
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
    with (
        guests("memory=32MiB,rate=20MiB/s", destination_options=there) as (source, destination),
        HeldGuest(f"{there},rate=20MiB/s") as right,  # type: ignore[attr-defined]
    ):
        refused_and_then(source, right, destination, *words)
        runs_on(source)


def refused_and_then(
    wrong: HeldGuest, right: HeldGuest, destination: HeldGuest, *words: str, receive: ReceiveConfig | None = None
) -> None:
    """The source *wrong* is refused, which the receiver shows; then the same receiver takes *right*."""
    with Migration(None, destination, receive=receive) as there:
        with Migration(wrong, None, uri=there.uri) as first:
            refused(first.sent(), *words)
        until(lambda: any("refused a source" in one.message for one in there.received_progress), "the refusal")
        (shown,) = [one.message for one in there.received_progress if "refused a source" in one.message]
        for word in words:
            assert word in shown
        with Migration(right, None, SendConfig(workers=1, verify=True), uri=there.uri) as second:
            assert (second.sent().error, second.sent().verified) == (None, True)
        assert there.received().error is None
    destination.pause(Discard())
    destination.check()


def test_other_block_names_are_refused() -> None:
    with guests("memory=32MiB") as (source, destination):
        [memory] = destination.memory()
        import msgspec

        destination._memory = [BlockMemory(msgspec.structs.replace(memory.block, name="pc.ram"), memory.fd)]
        with Migration(source, destination) as migration:
            refused(migration.sent(), "RAM block 'ram0'", "RAM block 'pc.ram'", "ids must match")
            assert migration.receiver is not None
            migration.receiver.cancel()
            report = migration.received()
        assert report.error is not None
        assert report.error.type == "CancelledError"
        assert "RAM block 'pc.ram'" in report.error.message
        runs_on(source)
        never_ran(destination)


def test_too_few_data_ports_are_refused_by_both() -> None:
    first, last = free_ports(2)
    with guests("memory=32MiB") as (source, destination), HeldGuest("memory=32MiB") as right:  # type: ignore[attr-defined]
        receive = ReceiveConfig(listen=LISTEN, data_ports=(first, last))
        refused_and_then(source, right, destination, f"--data-ports {first}-{last}", "2 workers", receive=receive)
        runs_on(source)


def test_data_ports_that_do_are_used() -> None:
    with guests("memory=32MiB,rate=10MiB/s") as (source, destination):
        receive = ReceiveConfig(listen=LISTEN, data_ports=free_ports(3))
        with Migration(source, destination, receive=receive) as migration:
            assert migration.sent().error is None
            assert migration.received().error is None


def test_a_taken_data_port_is_told_to_both() -> None:
    with guests("memory=32MiB") as (source, destination), socket.socket() as taken:
        first, last = free_ports(3)
        taken.bind(("127.0.0.1", first))
        taken.listen()
        with Migration(
            source, destination, receive=ReceiveConfig(listen=LISTEN, data_ports=(first, last))
        ) as migration:
            refused(migration.sent(), f"127.0.0.1:{first}", "in use")
            report = migration.received()
        assert report.error is not None
        assert (report.error.type, report.exit_code) == ("HostRefusedError", 3)
        assert f"127.0.0.1:{first}" in report.error.message
        runs_on(source)
        never_ran(destination)


@pytest.mark.parametrize("address", ["taken", "zmq+tcp://192.0.2.77:4600", "tcp://no-such-host.invalid:1"])
def test_a_receiver_that_cannot_listen_says_so_at_once(address: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"zmq+tcp://127.0.0.1:{taken.getsockname()[1]}" if address == "taken" else address
        with Command("receive", "--listen", listen, "--insecure", "--guest", GUEST, "--json") as command:
            code, report = command.end()
            assert (code, report["error"]["type"]) == (3, "HostRefusedError"), command.errors
            assert listen.partition("://")[2] in report["error"]["message"]
            assert len([one for one in command.errors.splitlines() if "cannot listen" in one]) == 1
            assert "Traceback" not in command.errors


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
        with Migration(source, destination) as migration:
            refused(migration.sent(), "no space at the destination", "32 MiB", "16 MiB")
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
        assert "the memory file of block 'ram0' has no space left" in received.error.message
        assert sent.error is not None
        assert sent.error.type == "PeerFailedError"
        assert received.error.message in sent.error.message
        assert source.is_running()
        never_ran(destination)


# -- strangers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("transport", "worker_ports"), [("tcp", 0), ("zmq", 2)])
def test_nobody_reaches_any_port_during_a_migration(transport: str, worker_ports: int) -> None:
    """The control and state ports are closed then. ZeroMQ keeps those of the workers open, and they answer nobody."""
    before = set(_listening(os.getpid()))
    with guests("memory=32MiB,rate=5MiB/s") as (source, destination):
        config = SendConfig(
            workers=2, verify=True, transport=transport, max_bandwidth_bytes_per_s=25 * MIB, switchover="manual"
        )
        with Migration(source, destination, config) as migration:
            migration.at_round(1)
            assert set(_listening(os.getpid())) <= before
            ports = [port for pid in migration.receive_workers() for port in _listening(pid)]
            assert len(ports) == worker_ports
            for port in [*ports, int(migration.uri.rpartition(":")[2])]:
                with pytest.raises(OSError):
                    socket.create_connection(("127.0.0.1", port), timeout=0.2).close()
            assert migration.status == "active"
            migration.switch_over()
            report = migration.sent()
            assert migration.received().error is None
        assert (report.error, report.verified) == (None, True)
        destination.pause(Discard())
        destination.check()


def _listening(pid: int) -> list[int]:
    return [one.laddr.port for one in psutil.Process(pid).net_connections("tcp") if one.status == psutil.CONN_LISTEN]


def test_garbage_before_the_source_comes_does_not_disturb_a_receiver() -> None:
    with guests("memory=32MiB,rate=5MiB/s") as (source, destination), Migration(None, destination) as there:
        port = int(there.uri.rpartition(":")[2])
        configure = encode([m.encode_control(m.Goodbye())])
        garbage = [
            b"GET / HTTP/1.1\r\n\r\n",
            os.urandom(100_000),
            b"\xff" + bytes(8) + b"\x7f",
            GREETING,
            GREETING + bytes(100_000),
            GREETING + b"\0\0\0\1\xff\xff\xff\xff",
            *(GREETING + encode(frames) for frames in ([b""], [b"garbage"], [b"PARMIG"], [b"x"] * 8)),
            GREETING + encode([configure]),
            GREETING + encode([m.CONTROL_MAGIC + b"\0\0\0\2" + b"\x91" * 200_000]),
            GREETING + encode([m.CONTROL_MAGIC + b"\0\0\0\2" + b"\xa5\x1b[2J" * 100]),
        ]
        for data in garbage:
            with socket.create_connection(("127.0.0.1", port)) as raw:
                raw.sendall(data)
        with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
            stranger.connect(there.uri.removeprefix("zmq+"))
            for frames in ([b""], [b"garbage"], [b"PARMIG"]):
                stranger.send_multipart(frames)
            assert not stranger.poll(50)
            stranger.close(linger=0)
        with Migration(source, None, uri=there.uri) as here:
            assert here.sent().error is None
        assert there.received().error is None
        assert all(one.message.isprintable() for one in there.received_progress)


def test_a_source_that_is_let_in_and_does_not_connect_loses_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(destination_steps, "CONNECT_LIMIT_NS", 500 * NS_PER_MS)
    with guests("memory=32MiB,rate=5MiB/s") as (source, destination), Migration(None, destination) as there:
        endpoint = parse_uri(there.uri)
        for says_more in (False, True):
            with closing(ControlChannel(TcpTransport("source", heartbeat=True, max_message_bytes=MIB))) as idle:
                idle.transport.connect(endpoint, timeout_ns=10 * NS_PER_S)
                idle.write(_wish(destination))
                assert isinstance(idle.wait("Accept", 20 * NS_PER_S), m.Accept)
                if says_more:
                    idle.write(m.HandOver(True))
                answer = idle.wait("the failure", 20 * NS_PER_S)
                assert isinstance(answer, m.Failure), answer
                assert ("HandOver" if says_more else "did not connect") in answer.error.message
            until(lambda: not there.receiver._pool.pids(), "the end of its workers")  # type: ignore[union-attr]
        with Migration(source, None, uri=there.uri) as here:
            assert here.sent().error is None
        assert there.received().error is None
        destination.pause(Discard())
        destination.check()


def _wish(guest: HeldGuest) -> m.Configure:
    info = guest.info()
    return m.Configure(
        parmig="0",
        kind=info.kind,
        machine=info.machine,
        blocks=tuple(one.block for one in guest.memory()),
        allocated_bytes=0,
        workers=1,
        transport="zmq",
        codec="none",
        batch_bytes=MIB,
        credit_bytes=6 * MIB,
        region_pages=512,
        running=True,
        verify=False,
        switchover_timeout_ns=NS_PER_S,
        capabilities=CAPABILITIES,
    )


# -- the command line ----------------------------------------------------------------------------------

GUEST = "synthetic:memory=32MiB"
OTHER_VERSION = "import parmig.engine.messages.peer_messages as m; m.VERSIONS = range(98, 100)"


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


def test_another_protocol_version_is_refused_by_name_and_the_right_one_taken_then() -> None:
    with Command("receive", "--listen", LISTEN, "--guest", GUEST, "--json") as there:
        send = ("send", there.uri(), "--guest", GUEST, "--workers", "2", "--json")
        with Command(*send, prelude=OTHER_VERSION) as wrong:
            code, report = wrong.end()
            assert (code, report["error"]["type"]) == (3, "PeerRefusedError"), report["error"]
            assert "protocol version 3, this parmig versions 98 and 99" in report["error"]["message"]
        there.wait_for("refused a source: the peer speaks protocol version 98, this parmig versions 2 and 3")
        with Command(*send) as right:
            assert (right.end()[0], there.end()[0]) == (0, 0), right.errors + there.errors


def test_other_memory_ends_the_sender_with_3_and_the_receiver_waits_for_the_right_one() -> None:
    there_has = "synthetic:memory=64MiB"
    with Command("receive", "--listen", LISTEN, "--guest", there_has, "--json") as there:
        with Command("send", there.uri(), "--guest", GUEST, "--json") as wrong:
            code, report = wrong.end()
            assert (code, report["error"]["type"]) == (3, "PeerRefusedError"), report["error"]
            for word in ("ram0", "32 MiB", "64 MiB"):
                assert word in report["error"]["message"]
        there.wait_for("refused a source: RAM block 'ram0'")
        with Command("send", there.uri(), "--guest", there_has, "--workers", "1", "--json") as right:
            assert (right.end()[0], there.end()[0]) == (0, 0), right.errors + there.errors
