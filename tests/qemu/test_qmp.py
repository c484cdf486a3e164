# SPDX-License-Identifier: Apache-2.0
"""The QMP session against servers that misbehave; they are threads of this process."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from parmig.errors import GuestError, GuestRefusedError
from parmig.guests.qemu.qmp import Qmp
from tests.support import PATIENCE_S

GREETING = {"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 22}, "package": ""}, "capabilities": []}}


class Server:
    """A QMP server that answers as *script* says: command to reply, or to None for silence."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.script: dict[str, Callable[[], dict[str, object] | None]] = {}
        self.greet = True
        self.first_line: bytes | None = None
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(self.path)
        self._listening.listen(1)
        self.connection: socket.socket | None = None
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def send(self, message: object) -> None:
        assert self.connection is not None
        self.connection.sendall(json.dumps(message).encode() + b"\n")

    def _serve(self) -> None:
        try:
            self.connection, _ = self._listening.accept()
        except OSError:
            return
        with self.connection:
            if self.first_line is not None:
                self.connection.sendall(self.first_line)
            elif self.greet:
                self.send(GREETING)
            text = ""
            while more := self.connection.recv(65536):
                # Commands are JSON objects one after the other; the client ends none by a newline.
                text += more.decode()
                while text.strip():
                    request, end = json.JSONDecoder().raw_decode(text.lstrip())
                    text = text.lstrip()[end:]
                    self._answer(request)

    def _answer(self, request: dict[str, str]) -> None:
        version: dict[str, object] = {"return": GREETING["QMP"]["version"]}
        reply: dict[str, object] | None = version if request["execute"] == "query-version" else {"return": {}}
        if request["execute"] in self.script:
            reply = self.script[request["execute"]]()
        if reply is not None:
            self.send({**reply, "id": request.get("id")})

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        if self.connection is not None:
            try:
                self.connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path / "qmp")
    yield server
    server.close()


def no_threads_left() -> bool:
    return not any(thread.name == "parmig-qmp" for thread in threading.enumerate())


def test_a_missing_socket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GuestRefusedError, match=r"-qmp unix:.*server=on,wait=off"):
        Qmp(str(tmp_path / "nothing"))
    assert no_threads_left()


def test_a_socket_without_listener_is_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "stale")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
    with pytest.raises(GuestRefusedError, match="Connection refused"):
        Qmp(path)


@pytest.mark.parametrize("folder_mode", [0o1777, 0o755])
@pytest.mark.parametrize("what", ["listener", "file"])
def test_a_socket_of_another_user_is_refused_where_everyone_may_make_one(
    shared_folder: Path, what: str, folder_mode: int
) -> None:
    path = shared_folder / "qmp"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        if what == "file":
            os.chown(path, 65534, 65534)
            sock.listen()
        else:
            os.seteuid(65534)  # the kernel notes who calls listen()
            try:
                sock.listen()
            finally:
                os.seteuid(0)
        shared_folder.chmod(folder_mode)
        shared = folder_mode == 0o1777
        reason = r"is not trusted.* user 65534.*run parmig as that user" if shared else "no QMP greeting"
        with pytest.raises(GuestRefusedError, match=reason):
            Qmp(str(path), limit_s=0.1)


def test_a_server_that_speaks_otherwise_is_refused(server: Server) -> None:
    server.first_line = b"220 mail ready\n"
    with pytest.raises(GuestRefusedError, match="is not a QMP server"):
        Qmp(server.path)
    assert no_threads_left()


def test_a_server_that_does_not_greet_is_refused(server: Server) -> None:
    server.greet = False
    with pytest.raises(GuestRefusedError, match=r"no QMP greeting within 0\.3 s; another client probably holds"):
        Qmp(server.path, limit_s=0.3)
    assert no_threads_left()


def test_peer_and_version_are_known(server: Server) -> None:
    qmp = Qmp(server.path)
    assert (qmp.peer_pid, qmp.version) == (os.getpid(), (7, 2, 22))
    qmp.close()
    qmp.close()
    assert no_threads_left()


def test_a_refusal_has_the_command_and_the_words(server: Server) -> None:
    server.script["cont"] = lambda: {"error": {"class": "GenericError", "desc": "the moon is full"}}
    qmp = Qmp(server.path)
    with pytest.raises(GuestError, match="cont: the moon is full"):
        qmp.execute("cont")
    qmp.close()


def test_silence_has_a_limit(server: Server) -> None:
    server.script["cont"] = lambda: None
    qmp = Qmp(server.path)
    with pytest.raises(GuestError, match=r"did not answer cont within 0\.2 s"):
        qmp.execute("cont", limit_s=0.2)
    assert qmp.execute("stop") == {}, "the session stays usable"
    qmp.close()


def test_a_lost_connection_is_noticed_by_command_and_listener(server: Server) -> None:
    def die() -> None:
        assert server.connection is not None
        server.connection.shutdown(socket.SHUT_RDWR)

    server.script["quit"] = die
    qmp = Qmp(server.path)
    with qmp.listen("STOP") as listener:
        began = time.monotonic()
        with pytest.raises(GuestError, match="lost at quit"):
            qmp.execute("quit")
        with pytest.raises(GuestError, match="waiting for STOP"):
            listener.get(PATIENCE_S)
        assert time.monotonic() - began < PATIENCE_S / 2
    with pytest.raises(GuestError, match="cont"):
        qmp.execute("cont")
    qmp.close()


def test_events_before_the_wait_are_kept_and_stamped(server: Server) -> None:
    def stop() -> dict[str, object]:
        wall_ns = time.time_ns() - 20_000_000
        stamp = {"seconds": wall_ns // 10**9, "microseconds": wall_ns % 10**9 // 1000}
        server.send({"event": "OTHER", "timestamp": stamp})
        server.send({"event": "STOP", "timestamp": stamp})
        server.send({"event": "MIGRATION", "data": {"status": "active"}, "timestamp": stamp})
        return {"return": {}}

    server.script["stop"] = stop
    qmp = Qmp(server.path)
    with qmp.listen("STOP", "MIGRATION") as listener:
        qmp.execute("stop")
        now_ns = time.monotonic_ns()
        first, second = listener.get(PATIENCE_S), listener.get(PATIENCE_S)
        assert (first.name, second.name, second.status) == ("STOP", "MIGRATION", "active")
        assert 15e6 < now_ns - first.at_ns < PATIENCE_S * 1e9
        with pytest.raises(GuestError, match=r"did not report STOP/MIGRATION within 0\.05 s"):
            listener.get(0.05)
    qmp.close()


@pytest.mark.parametrize(
    "stamp",
    [{"seconds": 2**40, "microseconds": 0}, {"seconds": 1, "microseconds": 0}, {"seconds": -1, "microseconds": -1}],
)
def test_an_impossible_stamp_counts_as_now(server: Server, stamp: dict[str, int]) -> None:
    server.script["stop"] = lambda: server.send({"event": "STOP", "timestamp": stamp}) or {"return": {}}  # type: ignore[func-returns-value]
    qmp = Qmp(server.path)
    before_ns = time.monotonic_ns()
    with qmp.listen("STOP") as listener:
        qmp.execute("stop")
        assert before_ns < listener.get(PATIENCE_S).at_ns < time.monotonic_ns()
    qmp.close()
