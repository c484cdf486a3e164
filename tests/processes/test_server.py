# SPDX-License-Identifier: Apache-2.0
"""Both kinds of fork server: what their processes hold, how they end, what happens when one is missing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from typing import Any

import psutil
import pytest

from parmig.errors import HostRefusedError
from parmig.processes import end_process, fork_server, start, start_process, warm_up
from tests.support import PATIENCE_S, wait_until

HERE = "tests.processes.test_server"

COMMAND = """
import json, os, sys, threading, time
from parmig import processes
from tests.processes import test_server
mine = os.open("/dev/null", os.O_RDONLY)
os.set_inheritable(mine, True)
test_server.MARK = "set by the command"
print("once")
if sys.argv[1] == "thread":
    threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
if sys.argv[1] == "warm_up":
    processes.warm_up()
else:
    processes.fork_server()
given = os.pipe()
process, pipe = processes.start_process("tests.processes.test_server:describe", "parmig-test", b"", [given[0], -1])
print(pipe.recv_bytes().decode(), flush=True)
time.sleep(1000)
"""

MARK = ""


def describe(connection: Any, _setup: bytes, fds: list[int]) -> None:
    """Send what this process is and holds, and wait until it is ended."""
    own = psutil.Process()
    known = {
        "pid": own.pid,
        "server": own.ppid(),
        "name": own.name(),
        "arguments": own.cmdline(),
        "mark": MARK,
        "fds": sorted(int(fd) for fd in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{fd}")),
        "given": [0, 1, 2, connection.fileno(), *(fd for fd in fds if fd >= 0)],
        "missing": fds[1],
        "input": os.readlink("/proc/self/fd/0"),
        "session": os.getsid(0),
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
    }
    connection.send_bytes(json.dumps(known).encode())
    connection.poll(None)


def echo(connection: Any, setup: bytes, _fds: list[int]) -> None:
    """Send the setup back, and wait until this process is ended."""
    connection.send_bytes(setup)
    connection.poll(None)


def fail(_connection: Any, setup: bytes, _fds: list[int]) -> None:
    """End in the way that the setup names."""
    if setup == b"signal":
        os.kill(os.getpid(), signal.SIGSEGV)
    raise ZeroDivisionError


@pytest.mark.parametrize("kind", ["fork_server", "thread", "warm_up"])
def test_a_process_holds_what_it_was_given_and_dies_with_the_command(kind: str) -> None:
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # as parmig sets it: numpy starts no thread
    arguments = [sys.executable, "-c", COMMAND, kind]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=environment) as command:
        try:
            assert command.stdout is not None
            assert command.stdout.readline() == "once\n"
            known = json.loads(command.stdout.readline())
            server = psutil.Process(known["server"])
            assert (server.name(), server.ppid()) == ("parmig-server", command.pid)
            held = [os.readlink(f"/proc/{server.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{server.pid}/fd")]
            assert held.count(os.devnull) == 1  # its standard input
        finally:
            command.kill()
    assert known["fds"] == known["given"]
    assert (known["missing"], known["input"], known["blocked"]) == (-1, os.devnull, [])
    assert (known["name"], known["session"]) == ("parmig-test", known["pid"])
    assert known["mark"] == ("set by the command" if kind == "fork_server" else "")
    assert [argument for argument in known["arguments"] if argument] == ["parmig-test"]
    wait_until(lambda: not any(map(is_there, (known["pid"], known["server"]))), "the end of all processes")


def is_there(pid: int) -> bool:
    """Whether it runs. Where nobody collects orphans they stay as zombies."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_large_setup_arrives() -> None:
    setup = os.urandom(1 << 21)
    process, pipe = start_process(f"{HERE}:echo", "parmig-test", setup, [])
    assert pipe.recv_bytes() == setup
    pipe.close()
    end_process(process, patience_s=PATIENCE_S)


@pytest.mark.parametrize(("how", "code"), [("signal", -signal.SIGSEGV), ("error", 1)])
def test_the_exit_code_arrives(how: str, code: int) -> None:
    process, pipe = start_process(f"{HERE}:fail", "parmig-test", how.encode(), [])
    process.join(PATIENCE_S)
    assert (process.exitcode, process.is_alive()) == (code, False)
    process.kill()  # nothing happens
    process.close()
    process.close()
    pipe.close()


def test_a_program_that_does_not_exist_ends_by_itself() -> None:
    process, pipe = start_process("tests.processes.nowhere:main", "parmig-test", b"", [])
    process.join(PATIENCE_S)
    assert process.exitcode == 1
    process.close()
    pipe.close()


def test_more_descriptors_than_the_kernel_passes_are_refused() -> None:
    with pytest.raises(HostRefusedError, match="it would get 252 descriptors, at most 251 can be passed"):
        start_process(f"{HERE}:echo", "parmig-test", b"", [0] * 252)


def test_a_fork_server_without_room_refuses_in_words_and_goes_on() -> None:
    warm_up()
    assert start._running is not None
    server = psutil.Process(start._running.pid)
    before = server.rlimit(psutil.RLIMIT_NOFILE)
    server.rlimit(psutil.RLIMIT_NOFILE, (server.num_fds() + 1, before[1]))
    try:
        with pytest.raises(HostRefusedError, match=r"parmig-test cannot be started: .*Too many open files"):
            start_process(f"{HERE}:echo", "parmig-test", b"", [0, 1, 2])
    finally:
        server.rlimit(psutil.RLIMIT_NOFILE, before)
    process, pipe = start_process(f"{HERE}:echo", "parmig-test", b"still there", [])
    assert (pipe.recv_bytes(), start._running.pid) == (b"still there", server.pid)
    pipe.close()
    end_process(process, patience_s=PATIENCE_S)


def test_when_the_fork_server_is_killed_its_processes_end_and_the_next_one_gets_a_new_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(start, "_running", None)
    process, pipe = start_process(f"{HERE}:echo", "parmig-test", b"", [])
    assert start._running is not None
    old = start._running.pid
    os.kill(old, signal.SIGKILL)
    process.join(PATIENCE_S)
    assert process.exitcode == 255
    wait_until(lambda: not is_there(process.pid), "the end of its process")
    process.close()
    pipe.close()
    process, pipe = start_process(f"{HERE}:echo", "parmig-test", b"new", [])
    assert pipe.recv_bytes() == b"new"
    assert start._running.pid != old
    pipe.close()
    end_process(process, patience_s=PATIENCE_S)
    start._forget()


def test_a_program_with_threads_is_not_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "_running", None)
    monkeypatch.setattr(start, "_fork", lambda *_: pytest.fail("forked beside a thread"))
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    fork_server()
    stop.set()
    thread.join()
    start._forget()
