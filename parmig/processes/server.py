# SPDX-License-Identifier: Apache-2.0
"""The fork server: starts a process for each request, and reports how each process ended."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Iterable, Sequence
from importlib import import_module
from multiprocessing.connection import Connection
from pkgutil import resolve_name
from typing import NoReturn

import msgspec

from parmig.linux import privileges, process
from parmig.processes.wire import ANSWER, EXIT_CODE, GROUP_SIGNALS, HEAD, MOST_FDS, Request


def serve(control_fd: int, imports: Sequence[str]) -> NoReturn:
    """Serve until the other end of *control_fd* closes. The process ends then, and so do all that it started.

    Call it in a process that does nothing else, with the signals of a group blocked. All other descriptors are closed,
    and standard input becomes empty.

    Args:
        control_fd: socket to the owner; owned.
        imports: modules that processes will need, imported at once.
    """
    status = 1
    try:
        control_fd = _keep_only(control_fd)
        gc.disable()  # imports leave no garbage
        process.name_process("parmig-server")
        _import(imports)
        _Server(socket.socket(fileno=control_fd)).run()
        status = 0
    finally:
        os._exit(status)


def _keep_only(fd: int) -> int:
    """Close all descriptors but the standard ones and *fd*; returns the latter's new number, which is above those."""
    kept = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    _close_all_but([kept])
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, 0)
    for number in (1, 2):
        with contextlib.suppress(OSError):
            os.fstat(number)
            continue
        os.dup2(null, number)
    if null > 2:
        os.close(null)
    return kept


def _close_all_but(fds: Iterable[int]) -> None:
    """Close all descriptors from 3 on but *fds*."""
    first = 3
    for fd in sorted(fds):
        os.closerange(first, fd)
        first = fd + 1
    os.closerange(first, os.sysconf("SC_OPEN_MAX"))


def _import(modules: Iterable[str]) -> None:
    """Import *modules*; what follows a colon in a name does not count."""
    for name in modules:
        with contextlib.suppress(ImportError):  # the process that needs it shows the error
            import_module(name.partition(":")[0])


class _Server:
    """The loop of the fork server.

    Args:
        control: to the owner.
    """

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._decoder = msgspec.msgpack.Decoder(Request)
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)
        self._children: dict[int, tuple[int, int]] = {}  # pidfd -> pid, pipe for the exit code

    def run(self) -> None:
        """Serve until the owner is gone."""
        while True:
            for fd, _ in self._poll.poll():
                if fd in self._children:
                    self._reap(fd)
                elif not self._answer():
                    return

    def _reap(self, pidfd: int) -> None:
        pid, exit_fd = self._children.pop(pidfd)
        self._poll.unregister(pidfd)
        _, status = os.waitpid(pid, 0)
        with contextlib.suppress(BrokenPipeError):
            os.write(exit_fd, EXIT_CODE.pack(os.waitstatus_to_exitcode(status)))
        os.close(exit_fd)
        os.close(pidfd)

    def _answer(self) -> bool:
        """Serve one request. Returns False if the owner is gone."""
        head, fds, flags, _ = socket.recv_fds(self._control, HEAD.size, MOST_FDS, socket.MSG_CMSG_CLOEXEC)
        if not head:
            return False
        (length_bytes,) = HEAD.unpack(head)
        body = self._control.recv(length_bytes, socket.MSG_WAITALL)
        try:
            if flags & socket.MSG_CTRUNC:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            request = self._decoder.decode(body)
            _import((*request.imports, request.program))
            answer = self._fork(request, fds)
        except OSError as error:
            answer = -(error.errno or errno.EIO)
        finally:
            for fd in fds:
                os.close(fd)
        self._control.sendall(ANSWER.pack(answer))
        return True

    def _fork(self, request: Request, fds: Sequence[int]) -> int:
        """Start a process. Returns its process id."""
        exit_fd = os.dup(fds[0])
        server = os.getpid()
        gc.freeze()  # a collection in the new process would write to all objects, and so copy the memory they are in
        try:
            pid = os.fork()
            if not pid:
                _run(request, fds[1:], server)
        except OSError:
            os.close(exit_fd)
            raise
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(exit_fd)
            raise
        self._children[pidfd] = pid, exit_fd
        self._poll.register(pidfd, select.POLLIN)
        return pid


def _run(request: Request, fds: Sequence[int], server: int) -> NoReturn:
    """In the new process: run the program with the descriptors *fds*, the first of which is its pipe."""
    status = 1
    try:
        _close_all_but(fds)
        privileges.gain_no_more()
        process.die_with_parent(signal.SIGKILL)
        if os.getppid() != server:
            os._exit(status)  # it ended before
        os.setsid()
        while signal.sigtimedwait(GROUP_SIGNALS, 0) is not None:
            pass  # sent to the group a moment before this process left it
        signal.pthread_sigmask(signal.SIG_UNBLOCK, GROUP_SIGNALS)
        process.name_process(request.name)
        gc.enable()
        pipe, *passed = fds
        numbers = iter(passed)
        given = [next(numbers) if there else -1 for there in request.fds]
        resolve_name(request.program)(Connection(pipe), request.setup, given)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)
