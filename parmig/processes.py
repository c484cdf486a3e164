# SPDX-License-Identifier: Apache-2.0
"""Starting processes of our own: workers and synthetic guests, always from a fork server.

A fork server is a clean process that has imported what workers need and holds no ZeroMQ context, no
thread and no descriptor of parmig; forking it takes milliseconds and shares the imported code's memory
(spawning an interpreter each takes about 0.3 s and 20 MiB more). It ends with this process.

A signal to our process group (Ctrl-C, a lost terminal, a service manager's SIGTERM) is for this process alone to act
on: the fork server does not take those, and each process it makes has a session of its own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import types
from collections.abc import Iterator, Sequence
from pkgutil import resolve_name
from typing import Any

import multiprocess
from multiprocess import forkserver, reduction, resource_tracker
from multiprocess import process as multiprocess_process
from multiprocess.connection import Connection

from parmig.errors import HostRefusedError
from parmig.linux import process

PRELOADED = [
    *("numpy", "zmq", "msgspec", "xxhash", "lz4.block"),
    *("parmig.transport.zeromq", "parmig.transport.tcp"),
    *("workers.send", "workers.receive", "workers.save", "workers.restore", "workers.guardian"),
]

KILLED_LIMIT_S = 5.0
"""For a process to end after SIGKILL. One that takes longer hangs in the kernel and is left behind."""

_GROUP_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)

_lock = threading.Lock()


class _Descriptor:
    """A descriptor on its way to a new process; arrives as a plain number that the process owns."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __reduce__(self) -> tuple[Any, tuple[Any]]:
        return _arrive, (reduction.DupFd(self._fd),)


def _arrive(passed: Any) -> int:
    return int(passed.detach())


def _run(program: str, name: str, connection: Connection, setup: bytes, fds: Sequence[int]) -> None:
    """In the new process: import the program and run it."""
    os.setsid()
    while signal.sigtimedwait(_GROUP_SIGNALS, 0) is not None:
        pass  # sent to the group a moment before this process left it
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _GROUP_SIGNALS)
    process.name_process(name)
    resolve_name(program)(connection, setup, fds)


@contextlib.contextmanager
def _fork_server() -> Iterator[Any]:
    """The fork server's context, the server running; without the caller's main module and threads.

    A new process would import the caller's ``__main__`` again, which costs time and memory and runs
    scripts that do not guard against it. OpenBLAS would start a thread per core in each process.
    """
    context = multiprocess.get_context("forkserver")
    with _lock:
        main, threads = sys.modules["__main__"], os.environ.get("OPENBLAS_NUM_THREADS")
        sys.modules["__main__"] = types.ModuleType("__main__")
        os.environ["OPENBLAS_NUM_THREADS"] = "1"
        try:
            context.set_forkserver_preload(PRELOADED)
            resource_tracker.ensure_running()  # now: it unblocks signals when it is started
            before = signal.pthread_sigmask(signal.SIG_BLOCK, _GROUP_SIGNALS)
            try:
                forkserver.ensure_running()  # a mask is inherited
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            yield context
        finally:
            sys.modules["__main__"] = main
            if threads is None:
                del os.environ["OPENBLAS_NUM_THREADS"]
            else:
                os.environ["OPENBLAS_NUM_THREADS"] = threads


def warm_up() -> None:
    """Start the fork server without waiting for it: its imports take 0.3 s, which the caller may spend otherwise."""
    with _fork_server():
        pass


def start_process(program: str, name: str, setup: bytes, fds: Sequence[int]) -> tuple[Any, Connection]:
    """Start ``program(connection, setup, fds)`` in a new process.

    Args:
        program: ``module:function``.
        name: shown in process lists, at most 15 characters of it.
        setup: passed as it is.
        fds: descriptors; the process gets duplicates of its own, in this order. -1 stays -1.

    Returns:
        the process and our end of the pipe to it; the caller joins one and closes the other.

    Raises:
        HostRefusedError: this host has no process, descriptor or memory left for it.
    """
    try:
        return _start(program, name, setup, fds)
    except (OSError, EOFError) as error:
        raise HostRefusedError(
            f"the process {name} cannot be started: {error or type(error).__name__}; "
            "see the limits of processes, open files and memory (ulimit -a, and those of the service or container)"
        ) from error


def _start(program: str, name: str, setup: bytes, fds: Sequence[int]) -> tuple[Any, Connection]:
    with _fork_server() as context:
        own_end, worker_end = context.Pipe(duplex=True)
        passed = [_Descriptor(fd) if fd >= 0 else -1 for fd in fds]
        process = context.Process(target=_run, args=(program, name, worker_end, setup, passed), name=name, daemon=True)
        try:
            process.start()
        except BaseException:
            own_end.close()
            raise
        finally:
            worker_end.close()
    return process, own_end


def end_process(process: Any, *, patience_s: float) -> None:
    """Join *process*; past *patience_s* kill it first. Releases the process object, whether or not it ends."""
    process.join(patience_s)
    if process.is_alive():
        process.kill()
        process.join(KILLED_LIMIT_S)
    # At its own end this process would join for ever whatever is still in this list.
    multiprocess_process._children.discard(process)
    with contextlib.suppress(ValueError):  # it hangs in the kernel
        process.close()


def describe_exit(process: Any) -> str:
    """How *process* ended, for people."""
    code = process.exitcode
    if code is None:
        return "is still running"
    return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
