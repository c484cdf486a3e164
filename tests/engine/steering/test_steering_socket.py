# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from parmig.engine.reporting.change import Change
from parmig.engine.reporting.report import Progress
from parmig.engine.steering import run_directory, steering_client
from parmig.engine.steering.desk import NOT_YET, TOO_LATE, Desk
from parmig.engine.steering.steering_client import SteeringClient, running, the_only_one
from parmig.engine.steering.steering_messages import MAX_QUESTION_BYTES
from parmig.engine.steering.steering_server import MAX_CLIENTS, serving
from parmig.errors import (
    GuestRefusedError,
    HostRefusedError,
    PeerLostError,
    PeerUnreachableError,
    StatusError,
    UsageError,
)
from tests.integration.sides import until
from tests.support import PATIENCE_S


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty run directory for this test."""
    path = tmp_path / "run"
    path.mkdir(mode=0o700)
    monkeypatch.setenv(run_directory.ENVIRONMENT, str(path))
    return path


class Engine:
    """An engine that notes what is asked of it, and refuses to slow down."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()
        self.made: list[Change] = []
        self.desk = Desk(self.cancelled.set)

    def look(self) -> None:
        """Take all wishes, in the thread of whoever wished."""
        while (wish := self.desk.take()) is not None:
            change, answer = wish
            if change.auto_converge:
                answer.set_exception(GuestRefusedError("no"))
                continue
            self.made.append(change)
            answer.set_result(None)


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine()
    with serving(engine.desk, "send", name="mover", peer="tcp://192.0.2.1:4600"):
        yield engine


def raw(directory: Path, name: str = "mover") -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(PATIENCE_S)
    sock.connect(str(directory / f"{name}.sock"))
    return sock


def test_a_command_says_how_far_it_is(engine: Engine) -> None:
    engine.desk.post_progress(Progress(status="active", round=3, remaining_bytes=5, throttle_percent=20))
    with SteeringClient("mover") as client:
        for _ in range(2):
            status = client.status()
            assert (status.name, status.command, status.process) == ("mover", "send", os.getpid())
            assert (status.status, status.round, status.throttle_percent) == ("active", 3, 20)
            assert (status.ram.remaining_bytes, status.peer) == (5, "tcp://192.0.2.1:4600")
    assert [one.name for one in running()] == ["mover"]
    assert the_only_one("") == "mover"


def test_a_change_is_made_or_refused_with_the_engines_reason(engine: Engine) -> None:
    engine.desk.open(engine.look)
    with SteeringClient("mover") as client:
        client.change(Change(max_bandwidth_bytes_per_s=7))
        assert engine.made == [Change(max_bandwidth_bytes_per_s=7)]
        with pytest.raises(GuestRefusedError, match="mover: no"):
            client.change(Change(auto_converge="on"))


def test_an_engine_takes_no_wish_before_and_after_its_time(engine: Engine) -> None:
    with SteeringClient("mover") as client:
        with pytest.raises(StatusError, match=NOT_YET):
            client.change(Change(timeout_ns=7))
        engine.desk.open(lambda: None)
        waiting = engine.desk.wish(Change(timeout_ns=7))
        engine.desk.close()
        assert isinstance(waiting.exception(0), StatusError)
        with pytest.raises(StatusError, match=TOO_LATE):
            client.change(Change(timeout_ns=7))


def test_a_cancel_reaches_the_engine(engine: Engine) -> None:
    with SteeringClient("mover") as client:
        client.cancel()
    assert engine.cancelled.wait(PATIENCE_S)


def test_nothing_is_left_when_the_command_ends(directory: Path) -> None:
    engine = Engine()
    with serving(engine.desk, "save"):
        (name,) = run_directory.names()
        assert name == f"save-{os.getpid()}"
        client = SteeringClient(name)
        entry = (directory / f"{name}.sock").stat()
        assert (stat.S_ISSOCK(entry.st_mode), entry.st_mode & 0o777) == (True, 0o600)
    with pytest.raises(PeerLostError), client:
        client.status()
    assert list(directory.iterdir()) == []
    assert running() == []
    with pytest.raises(UsageError, match="no parmig command"):
        the_only_one("")
    with pytest.raises(PeerUnreachableError, match="no command 'mover'"):
        SteeringClient("mover")


def test_a_name_is_taken_once_and_free_after_a_kill(engine: Engine, directory: Path) -> None:
    other = Engine()
    with pytest.raises(UsageError, match="runs already"), serving(other.desk, "send", name="mover"):
        pass
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(directory / "left.sock"))
    with serving(other.desk, "send", name="left"):
        assert sorted(one.name for one in running()) == ["left", "mover"]
        with pytest.raises(UsageError, match="left, mover; name one"):
            the_only_one("")


def test_a_socket_that_a_killed_command_left_is_removed(directory: Path) -> None:
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(directory / "left.sock"))
    assert running() == []
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize("name", ["", "a/b", "../x", ".hidden", "x" * 65, "a b"])
def test_a_name_stays_in_the_directory(name: str) -> None:
    with pytest.raises(UsageError, match="is not a name"):
        run_directory.check_name(name)


@pytest.mark.parametrize(
    "line",
    [
        b"nonsense",
        b"[]",
        b'{"ask": "status", "more": 1}',
        b'{"ask": "set"}',
        b'{"ask": "set", "change": {"max_bandwidth_bytes_per_s": "7"}}',
        b'{"ask": "set", "change": {"unknown": 7}}',
        b"[" * 8000,
        b"\xff\xfe",
    ],
)
def test_what_is_no_question_is_refused_and_the_next_one_answered(engine: Engine, directory: Path, line: bytes) -> None:
    with raw(directory) as sock, sock.makefile("rb") as lines:
        sock.sendall(line + b"\n" + b'{"ask":"status"}\n')
        refused = msgspec.json.decode(lines.readline())
        assert (refused["answer"], refused["error"]["type"]) == ("refused", "ProtocolError")
        assert msgspec.json.decode(lines.readline())["answer"] == "status"


def test_a_question_without_end_ends_the_connection(engine: Engine, directory: Path) -> None:
    def talk(sock: socket.socket) -> None:
        while True:
            sock.sendall(bytes(MAX_QUESTION_BYTES))

    with raw(directory) as sock, pytest.raises(ConnectionError):
        talk(sock)
    with SteeringClient("mover") as client:
        assert client.status().name == "mover"


def test_many_clients_do_not_keep_one_from_asking(engine: Engine, directory: Path) -> None:
    crowd = [raw(directory) for _ in range(MAX_CLIENTS)]
    with pytest.raises(PeerLostError), SteeringClient("mover") as client:
        client.status()
    for sock in crowd:
        sock.close()
    until(running, "the places of the crowd to be free")


def test_a_directory_that_others_may_use_is_refused_and_the_command_runs_all_the_same(directory: Path) -> None:
    directory.chmod(0o755)
    with pytest.raises(HostRefusedError, match="mode 0755"), run_directory.opened_directory():
        pass
    with serving(Engine().desk, "send", name="mover"):
        assert list(directory.iterdir()) == []


STRANGER = """
import os, socket
os.setgid(65534)
os.setuid(65534)
sock = socket.socket(socket.AF_UNIX)
sock.settimeout(50)
sock.connect("mover.sock")
try:
    sock.sendall(b'{"ask":"status"}\\n')
    print(len(sock.recv(100)))
except ConnectionError:
    print(0)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_is_turned_away(engine: Engine, directory: Path) -> None:
    directory.chmod(0o711)
    (directory / "mover.sock").chmod(0o666)
    done = subprocess.run(
        [sys.executable, "-c", STRANGER], cwd=directory, capture_output=True, text=True, check=False, timeout=PATIENCE_S
    )
    assert (done.stdout.strip(), done.stderr) == ("0", "")


def test_a_client_gives_up_on_a_command_that_does_not_answer(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steering_client, "LIMIT_S", 0.1)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(directory / "silent.sock"))
        silent.listen()
        with pytest.raises(PeerLostError, match="does not answer"), SteeringClient("silent") as client:
            client.status()
