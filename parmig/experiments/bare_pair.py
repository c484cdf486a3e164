# SPDX-License-Identifier: Apache-2.0
"""The floor of a bulk transfer: N pairs of processes carry one memory file into a fresh one over TCP.

Nothing else happens: no dirty log, no zero pages, no checks, no acknowledgement but one at the end. The file uses
nothing of parmig but system calls, so it stays the same whatever parmig becomes. A sender sends slices of its mapping.
A receiver takes the bytes into a buffer that stays in the processor's cache, and places them from there:

copy     by UFFDIO_COPY, which creates the pages of a fresh file without a lock that all receivers share
pwrite   by pwrite, which holds the lock of the file
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import mmap
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from parmig.errors import WorkerError
from parmig.linux import uffd
from parmig.units import MIB

PIECE_BYTES = 4 * MIB
"""What a sender gives to one call, and the socket buffers that both sides ask for."""
BUFFER_BYTES = 256 << 10
"""What a receiver takes at once. It fits the second-level cache."""
PLACEMENTS = ("copy", "pwrite")
LIMIT_S = 120.0


@contextlib.contextmanager
def started_pairs(
    source: Path,
    destination: Path,
    pairs: int,
    placement: str = "copy",
    *,
    limit_s: float = LIMIT_S,
    addresses: Sequence[str] = ("127.0.0.1",),
    enter_source: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    enter_destination: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
) -> Iterator[Callable[[], float]]:
    """Pairs of processes that are connected and wait; the processes have ended after the context.

    Args:
        source: the file to carry.
        destination: a new file of the same size without any page.
        limit_s: how long the carrying may take.
        addresses: of the destination; the pairs take turns with them.
        enter_source: a context in which the senders are started.
        enter_destination: a context in which the receivers are started.

    Yields:
        a function that carries the file and returns the seconds until every receiver has placed its last byte.

    Raises:
        WorkerError: (the function) a process failed, or the limit passed.
    """
    program = [sys.executable, "-m", "parmig.experiments.bare_pair"]
    size = source.stat().st_size
    cuts = [size * number // pairs // PIECE_BYTES * PIECE_BYTES for number in range(pairs)] + [size]
    with contextlib.ExitStack() as stack:
        senders: list[subprocess.Popen[str]] = []
        for (low, high), address in zip(itertools.pairwise(cuts), itertools.cycle(addresses), strict=False):
            part = [f"{low}", f"{high}", address]
            with enter_destination():
                receiver = stack.enter_context(_start([*program, "receive", str(destination), *part, placement]))
            port = _line(receiver)
            with enter_source():
                sender = stack.enter_context(_start([*program, "send", str(source), *part, port]))
            senders.append(sender)
        for sender in senders:
            _line(sender)  # it is connected, and waits

        def kill_senders() -> None:
            for sender in senders:
                sender.kill()

        def carry() -> float:
            began = time.monotonic()
            for sender in senders:
                assert sender.stdin is not None
                sender.stdin.write("go\n")
                sender.stdin.flush()
            timer = threading.Timer(limit_s, kill_senders)
            timer.start()
            try:
                for sender in senders:
                    _line(sender)
            finally:
                timer.cancel()
            return time.monotonic() - began

        yield carry


@contextlib.contextmanager
def _start(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A process with pipes. It has ended after the context: by itself, or killed if the context is left by an error."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        except BaseException:
            process.kill()
            raise
        process.wait(LIMIT_S)


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise WorkerError(f"a process of the bare pairs ended early (code {process.wait()}); see its message above")
    return line.strip()


def send(path: str, low: int, high: int, address: str, port: int) -> None:
    """(sender) Send bytes *low* to *high* of the file *path* to *port* at *address*, after a line on standard input."""
    sock = socket.create_connection((address, port))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PIECE_BYTES)
    with open(path, "rb") as file:
        memory = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
    _say("connected")
    sys.stdin.readline()
    for at in range(low, high, PIECE_BYTES):
        sock.sendall(memory[at : min(at + PIECE_BYTES, high)])
    sock.shutdown(socket.SHUT_WR)
    if not sock.recv(1):
        raise ConnectionError("the receiver ended before it had placed all bytes")
    _say("placed")


def receive(path: str, low: int, high: int, address: str, placement: str) -> None:
    """(receiver) Print a port of *address*, and place what arrives there at *low* to *high* of the file *path*."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, PIECE_BYTES)
        listener.bind((address, 0))
        listener.listen(1)
        fd = os.open(path, os.O_RDWR)
        buffer = mmap.mmap(-1, BUFFER_BYTES)
        view = memoryview(buffer)
        place = _Copier(fd, buffer) if placement == "copy" else lambda at, size: _write(fd, view[:size], at)
        _say(str(listener.getsockname()[1]))
        sock, _ = listener.accept()
    at = low
    while at < high:
        size = sock.recv_into(view, min(BUFFER_BYTES, high - at), socket.MSG_WAITALL)
        if size == 0:
            raise ConnectionError("the sender ended before it had sent all bytes")
        place(at, size)
        at += size
    sock.send(b"x")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _write(fd: int, data: memoryview, at: int) -> None:
    if os.pwrite(fd, data, at) != len(data):
        raise OSError(errno.ENOSPC, "the destination took only a part of the bytes; its file system is full")


class _Copier:
    """Copies from *buffer* into the file of descriptor *fd* by UFFDIO_COPY, through a mapping that it owns.

    Raises:
        OSError: userfaultfd is not allowed; (a call) a page is there already, or there is no memory.
    """

    def __init__(self, fd: int, buffer: mmap.mmap) -> None:
        self._target = mmap.mmap(fd, 0)
        self._base, self._buffer = (
            ctypes.addressof(ctypes.c_char.from_buffer(memory)) for memory in (self._target, buffer)
        )
        self._uffd = uffd.create_filler(self._base, len(self._target))

    def __call__(self, at: int, size: int) -> None:
        """Copy the first *size* bytes of the buffer to offset *at* of the file."""
        if uffd.copy_absent(self._uffd, self._base + at, self._buffer, size) != size:
            raise OSError(errno.EEXIST, "a page of the destination exists already; give a file without any page")


if __name__ == "__main__":
    if sys.argv[1:2] == ["send"]:
        send(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5], int(sys.argv[6]))
    else:
        receive(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5], sys.argv[6])
