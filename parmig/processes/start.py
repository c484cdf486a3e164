# SPDX-License-Identifier: Apache-2.0
"""The owner's end of the fork server: starts it, and asks it for processes."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, Pipe
from typing import NamedTuple

import msgspec

from parmig.errors import HostRefusedError
from parmig.processes.child import ChildProcess
from parmig.processes.server import serve
from parmig.processes.wire import ANSWER, GROUP_SIGNALS, HEAD, MOST_FDS, Request

ANSWER_LIMIT_S = 30.0
"""For the fork server to answer. It imports before it answers, which takes 0.3 s."""

_CONTROL_FD = 3
"""The number of the fork server's socket in a fresh interpreter."""

_PROGRAM = f"import sys; from parmig.processes.server import serve; serve({_CONTROL_FD}, sys.argv[1:])"


class _Server(NamedTuple):
    """A fork server that was started.

    Attributes:
        pid: its process id, a child of this process.
        control: to it.
    """

    pid: int
    control: socket.socket

    def is_alive(self) -> bool:
        """Whether its end of the socket is open."""
        poll = select.poll()
        poll.register(self.control, 0)
        return not poll.poll(0)

    def end(self) -> None:
        """Close the socket, so that it ends, if it has not; and kill it, if it hangs."""
        self.control.close()
        with contextlib.suppress(OSError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


_lock = threading.Lock()
_running: _Server | None = None


def fork_server(*imports: str) -> None:
    """Fork the fork server from this process, which then need not be imported again.

    Only a program of ours may do this, before it holds anything that a fork must not copy. With more than one thread
    the fork server gets a fresh interpreter instead, as it does with :func:`warm_up`.

    Args:
        imports: modules that the processes will need, and this one does not.
    """
    alone = len(os.listdir("/proc/self/task")) == 1
    with _lock:
        _ensure(_fork if alone else _spawn, imports)


def warm_up(*imports: str) -> None:
    """Start the fork server without waiting for it: its imports take 0.3 s, which the caller may spend otherwise.

    Args:
        imports: modules that the processes will need.
    """
    with _lock:
        _ensure(_spawn, imports)


def start_process(
    program: str, name: str, setup: bytes, fds: Sequence[int], imports: Sequence[str] = ()
) -> tuple[ChildProcess, Connection]:
    """Start ``program(connection, setup, fds)`` in a new process.

    Args:
        program: ``module:function``.
        name: shown in process lists, at most 15 characters of it.
        setup: passed as it is.
        fds: descriptors; the process gets duplicates of its own, in this order. -1 stays -1.
        imports: modules that the program will import only later; the fork server imports them for all processes.

    Returns:
        the process and our end of the pipe to it; the caller closes both.

    Raises:
        HostRefusedError: this host has no process, descriptor or memory left for it.
    """
    request = Request(program, name, setup, tuple(fd >= 0 for fd in fds), tuple(imports))
    try:
        return _start(msgspec.msgpack.encode(request), [fd for fd in fds if fd >= 0])
    except (OSError, EOFError) as error:
        raise HostRefusedError(
            f"the process {name} cannot be started: {error or type(error).__name__}; "
            "see the limits of processes, open files and memory (ulimit -a, and those of the service or container)"
        ) from error


def _start(request: bytes, fds: Sequence[int]) -> tuple[ChildProcess, Connection]:
    if len(fds) + 2 > MOST_FDS:
        raise OSError(f"it would get {len(fds)} descriptors, at most {MOST_FDS - 2} can be passed")
    with contextlib.ExitStack() as undo, contextlib.ExitStack() as passed:
        own_end, its_end = Pipe()
        undo.callback(own_end.close)
        passed.callback(its_end.close)
        sentinel, exit_fd = os.pipe()
        undo.callback(os.close, sentinel)
        passed.callback(os.close, exit_fd)
        with _lock:
            pid = _ask(_ensure(_spawn, ()), request, [exit_fd, its_end.fileno(), *fds])
        undo.pop_all()
        return ChildProcess(pid, sentinel), own_end


def _ask(server: _Server, request: bytes, fds: Sequence[int]) -> int:
    """Have *server* start a process. Returns its process id; raises OSError."""
    try:
        socket.send_fds(server.control, [HEAD.pack(len(request))], fds)
        server.control.sendall(request)
        answer = server.control.recv(ANSWER.size)
    except OSError:
        _forget()  # what it answers later would be taken for the answer to another request
        raise
    if not answer:
        _forget()
        raise EOFError("the fork server has ended")
    (pid,) = ANSWER.unpack(answer)
    if pid < 0:
        raise OSError(-pid, os.strerror(-pid))
    return int(pid)


def _ensure(start: Callable[[socket.socket, Sequence[str]], int], imports: Sequence[str]) -> _Server:
    """The fork server that runs; if there is none, one that *start* starts. The caller holds the lock."""
    global _running
    if _running is not None and not _running.is_alive():
        _forget()
    if _running is None:
        control, its_control = socket.socketpair()
        try:
            _running = _Server(start(its_control, imports), control)
        except BaseException:
            control.close()
            raise
        finally:
            its_control.close()
        control.settimeout(ANSWER_LIMIT_S)
    return _running


def _forget() -> None:
    """End the fork server. The caller holds the lock."""
    global _running
    if _running is not None:
        server, _running = _running, None
        server.end()


def _fork(control: socket.socket, imports: Sequence[str]) -> int:
    """Start the fork server as a fork of this process. Returns its process id."""
    sys.stdout.flush()  # what is in a buffer would be written twice
    sys.stderr.flush()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, GROUP_SIGNALS)
    try:
        pid = os.fork()
        if not pid:
            serve(control.detach(), imports)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return pid


def _spawn(control: socket.socket, imports: Sequence[str]) -> int:
    """Start the fork server in a fresh interpreter. Returns its process id."""
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    return os.posix_spawn(
        sys.executable,
        [sys.executable, "-P", "-c", _PROGRAM, *imports],
        {**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"},  # OpenBLAS starts a thread for each core
        file_actions=[(os.POSIX_SPAWN_DUP2, control.fileno(), _CONTROL_FD)],
        setsigmask=GROUP_SIGNALS,
    )
