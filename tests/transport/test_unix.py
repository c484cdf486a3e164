# SPDX-License-Identifier: Apache-2.0
"""What a channel over a Unix socket has besides the contract of all transports: its file, its peers, descriptors."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from parmig.errors import HostRefusedError, PeerLostError, PeerUnreachableError, UsageError
from parmig.transport.transport import Endpoint, parse_uri
from parmig.transport.unix import MAX_NUMBER_BYTES, MAX_PATH_BYTES, UnixTransport
from parmig.transport.unix_connection import MAX_DESCRIPTORS
from parmig.units import MIB, NS_PER_S
from tests.support import PATIENCE_NS, next_message, wait_until, while_pumping


@contextmanager
def opened(count: int = 1) -> Iterator[list[UnixTransport]]:
    """Channels that are not connected."""
    with ExitStack() as stack:
        channels = [UnixTransport("channel", max_message_bytes=MIB) for _ in range(count)]
        for channel in channels:
            stack.callback(channel.shutdown)
        yield channels


def at(path: Path) -> Endpoint:
    return parse_uri(f"unix://{path}")


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[UnixTransport, UnixTransport]]:
    """A listening channel, and a connected one that nobody has accepted."""
    with opened(2) as (listener, connector):
        listener.bind(at(tmp_path / "socket"))
        while_pumping(
            lambda: connector.connect(at(tmp_path / "socket"), timeout_ns=PATIENCE_NS), lambda: listener.read(5)
        )
        yield listener, connector


# -- the file -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_the_socket_belongs_to_its_user_alone(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with opened() as (listener,):
            listener.bind(at(tmp_path / "socket"))
            mode = stat.S_IMODE(os.stat(tmp_path / "socket").st_mode)
    finally:
        os.umask(before)
    assert mode & ~0o600 == 0
    assert mode == 0o600 & ~umask
    assert not list(tmp_path.iterdir())


def test_the_socket_of_a_dead_listener_makes_room(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "socket"))
    with opened(2) as (listener, second):
        listener.bind(at(tmp_path / "socket"))
        with pytest.raises(HostRefusedError, match=r"another process listens there; end that one"):
            second.bind(at(tmp_path / "socket"))
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    path.write_text("mine")
    with opened() as (listener,), pytest.raises(HostRefusedError, match=r"a file that is no socket; remove it"):
        listener.bind(at(path))
    assert path.read_text() == "mine"


def test_a_socket_of_somebody_else_is_not_removed_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with opened() as (listener,), socket.socket(socket.AF_UNIX) as other:
        listener.bind(at(path))
        path.unlink()
        other.bind(str(path))
        listener.shutdown()
        assert path.exists()


def test_only_one_of_many_that_find_a_dead_socket_listens(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    outcomes: list[bool] = []

    def listen(channel: UnixTransport) -> None:
        try:
            channel.bind(at(path))
        except HostRefusedError:
            outcomes.append(False)
        else:
            outcomes.append(True)

    with opened(8) as channels:
        threads = [threading.Thread(target=listen, args=(channel,)) for channel in channels]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(outcomes) == [False] * 7 + [True]


@pytest.mark.parametrize("port", [0, 65])
def test_a_path_may_be_as_long_as_the_kernel_allows(tmp_path: Path, port: int) -> None:
    room = MAX_PATH_BYTES - MAX_NUMBER_BYTES - len(os.fsencode(tmp_path)) - 1
    with opened(2) as (longest, longer):
        longest.bind(Endpoint("unix", str(tmp_path / ("x" * room)), port))
        with pytest.raises(HostRefusedError, match=rf"has {MAX_PATH_BYTES + 1 - (0 if port else 3)} bytes.*shorter"):
            longer.bind(Endpoint("unix", str(tmp_path / ("x" * (room + 1))), port))


@pytest.mark.parametrize("path", ["missing/socket", "x" * 300])
def test_a_path_that_cannot_be_is_told(tmp_path: Path, path: str) -> None:
    with opened(2) as (listener, connector):
        with pytest.raises(HostRefusedError, match=r"cannot listen on unix://.*choose"):
            listener.bind(at(tmp_path / path))
        with pytest.raises(PeerUnreachableError, match="check the path"):
            connector.connect(at(tmp_path / path), timeout_ns=NS_PER_S // 5)


@pytest.mark.parametrize("text", ["unix://", "unix://socket", "unix:///run/", "unix:///a\0b"])
def test_what_is_no_whole_path_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="write the whole path of a file"):
        parse_uri(text)


# -- who is at the other end --------------------------------------------------------------------------

AS_NOBODY = """
import os, socket, sys
role, path = sys.argv[1:]
sock = socket.socket(socket.AF_UNIX)
if role == "listen":
    sock.bind(path)
    os.chmod(path, 0o777)
os.setgid(65534); os.setuid(65534)
if role == "listen":
    sock.listen()
    print("listening", flush=True)
    sys.stdin.read()
else:
    sock.connect(path)
    print(len(sock.recv(100)), flush=True)
"""


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A path that every user reaches, which is not so of pytest's directories."""
    if os.geteuid():
        pytest.skip("only root can act as another user")
    with tempfile.TemporaryDirectory(prefix="parmig-test-") as directory:
        os.chmod(directory, 0o755)
        yield Path(directory) / "socket"


def test_another_user_is_shut_out(open_path: Path) -> None:
    with opened(2) as (listener, right):
        listener.bind(at(open_path))
        os.chmod(open_path, 0o666)  # as its directory could allow
        with subprocess.Popen(
            [sys.executable, "-c", AS_NOBODY, "connect", str(open_path)], stdout=subprocess.PIPE, text=True
        ) as stranger:
            wait_until(lambda: listener.read(5) is None and stranger.poll() is not None, "the end of the stranger")
            assert stranger.stdout is not None
            assert stranger.stdout.read() == "0\n"  # not even a greeting
        while_pumping(lambda: right.connect(at(open_path), timeout_ns=PATIENCE_NS), lambda: listener.read(5))


def test_a_listener_of_another_user_gets_nothing(open_path: Path) -> None:
    with (
        opened() as (connector,),
        subprocess.Popen(
            [sys.executable, "-c", AS_NOBODY, "listen", str(open_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as other,
    ):
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(PeerUnreachableError, match="user 65534 listens there, expected root or this user"):
            connector.connect(at(open_path), timeout_ns=PATIENCE_NS)


# -- descriptors --------------------------------------------------------------------------------------


def same_file(a: int, b: int) -> bool:
    return os.path.sameopenfile(a, b)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_descriptors_come_with_the_message_after_them(pair: tuple[UnixTransport, UnixTransport]) -> None:
    listener, connector = pair
    fds = [os.memfd_create(f"block{number}") for number in range(3)]
    before = descriptors()
    connector.send_descriptors(fds)
    connector.write([b"hello"])
    assert next_message(listener) == [b"hello"]
    taken = listener.take_descriptors()
    assert len(taken) == 3
    assert all(map(same_file, taken, fds))
    assert not any(map(os.get_inheritable, taken))
    assert listener.take_descriptors() == []
    listener.accept()
    listener.send_descriptors(fds[:1])
    listener.write([b"answer"])
    assert next_message(connector) == [b"answer"]
    taken += connector.take_descriptors()
    assert len(taken) == 4
    for fd in taken:
        os.close(fd)
    assert descriptors() <= before
    for fd in fds:
        os.close(fd)


def test_descriptors_that_nobody_takes_are_closed(tmp_path: Path) -> None:
    before = descriptors()
    with opened(2) as (listener, connector):
        listener.bind(at(tmp_path / "socket"))
        while_pumping(
            lambda: connector.connect(at(tmp_path / "socket"), timeout_ns=PATIENCE_NS), lambda: listener.read(5)
        )
        connector.send_descriptors([0] * MAX_DESCRIPTORS)
        connector.write([b"hello"])
        assert next_message(listener) == [b"hello"]
    assert descriptors() == before


def test_a_peer_that_sends_too_many_descriptors_is_lost(pair: tuple[UnixTransport, UnixTransport]) -> None:
    listener, connector = pair
    connector.write([b"hello"])
    assert next_message(listener) == [b"hello"]
    listener.accept()
    before = descriptors()
    connector.send_descriptors([0] * MAX_DESCRIPTORS)
    connector.send_descriptors([0])

    with pytest.raises(PeerLostError, match="descriptors"):
        wait_until(lambda: listener.read(10) is not None, "the loss")
    assert descriptors() == before


def test_what_is_no_descriptor_is_an_error_here(pair: tuple[UnixTransport, UnixTransport]) -> None:
    _, connector = pair
    with pytest.raises(PeerLostError, match="Bad file descriptor"):
        connector.send_descriptors([10**6])
