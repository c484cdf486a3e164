# SPDX-License-Identifier: Apache-2.0
"""The floor of a bulk transfer: N pairs of processes carry one memory file into a fresh one over loopback TCP.

usage: python -m tools.bare_pair [--memory-mib 2048] [--pairs 1,2] [--placements copy,pwrite] [--runs 3]

Nothing else happens: no dirty log, no zero pages, no checks, no acknowledgement but one at the end. The file uses
nothing of parmig, so it stays the same whatever parmig becomes. A sender sends slices of its mapping. A receiver takes
the bytes into a buffer that stays in the processor's cache, and places them from there:

copy     by UFFDIO_COPY, which creates the pages of a fresh file without a lock that all receivers share
pwrite   by pwrite, which holds the lock of the file

The command compares both files after each run. :mod:`tools.bench_peers` runs the same pairs beside other programs.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import fcntl
import filecmp
import itertools
import mmap
import os
import platform
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

MIB = 1 << 20
PIECE_BYTES = 4 * MIB
"""What a sender gives to one call, and the socket buffers that both sides ask for."""
BUFFER_BYTES = 256 << 10
"""What a receiver takes at once. It fits the second-level cache."""
PLACEMENTS = ("copy", "pwrite")
LIMIT_S = 120.0

_SYS_USERFAULTFD = {"x86_64": 323, "aarch64": 282}
_UFFD_USER_MODE_ONLY = 1
_UFFDIO_API = 0xC018AA3F  # struct uffdio_api: api, features, ioctls
_UFFDIO_REGISTER = 0xC020AA00  # struct uffdio_register: start, len, mode, ioctls
_UFFDIO_COPY = 0xC028AA03  # struct uffdio_copy: dst, src, len, mode, copy
_MODE_MISSING = 1
_MODE_DONTWAKE = 1


@contextlib.contextmanager
def started_pairs(
    source: Path,
    destination: Path,
    pairs: int,
    placement: str = "copy",
    *,
    enter_source: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    enter_destination: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
) -> Iterator[Callable[[], float]]:
    """Pairs of processes that are connected and wait; the processes have ended after the context.

    Args:
        source: the file to carry.
        destination: a new file of the same size without any page.
        enter_source: a context in which the senders are started.
        enter_destination: a context in which the receivers are started.

    Yields:
        a function that carries the file and returns the seconds until every receiver has placed its last byte.

    Raises:
        RuntimeError: (the function) a process failed.
    """
    program = [sys.executable, "-m", "tools.bare_pair"]
    size = source.stat().st_size
    cuts = [size * number // pairs // PIECE_BYTES * PIECE_BYTES for number in range(pairs)] + [size]
    with contextlib.ExitStack() as stack:
        senders = []
        for low, high in itertools.pairwise(cuts):
            part = [f"{low}", f"{high}"]
            with enter_destination():
                receiver = stack.enter_context(_start([*program, "receive", str(destination), *part, placement]))
            port = _line(receiver)
            with enter_source():
                sender = stack.enter_context(_start([*program, "send", str(source), *part, port]))
            senders.append(sender)
        for sender in senders:
            _line(sender)  # it is connected, and waits

        def carry() -> float:
            began = time.monotonic()
            for sender in senders:
                assert sender.stdin is not None
                sender.stdin.write("go\n")
                sender.stdin.flush()
            for sender in senders:
                _line(sender)
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
        raise RuntimeError(f"a process of the bare pairs ended early (code {process.wait()}); see its message above")
    return line.strip()


def send(path: str, low: int, high: int, port: int) -> None:
    """(sender) Send bytes *low* to *high* of the file *path* to *port*, after a line on standard input."""
    sock = socket.create_connection(("127.0.0.1", port))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PIECE_BYTES)
    with open(path, "rb") as file:
        memory = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
    print("connected", flush=True)
    sys.stdin.readline()
    for at in range(low, high, PIECE_BYTES):
        sock.sendall(memory[at : min(at + PIECE_BYTES, high)])
    sock.shutdown(socket.SHUT_WR)
    if not sock.recv(1):
        raise ConnectionError("the receiver ended before it had placed all bytes")
    print("placed", flush=True)


def receive(path: str, low: int, high: int, placement: str) -> None:
    """(receiver) Print a port, and place what arrives there as bytes *low* to *high* of the file *path*."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, PIECE_BYTES)
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        fd = os.open(path, os.O_RDWR)
        buffer = mmap.mmap(-1, BUFFER_BYTES)
        view = memoryview(buffer)
        place = _Copier(fd, buffer) if placement == "copy" else lambda at, size: _write(fd, view[:size], at)
        print(listener.getsockname()[1], flush=True)
        sock, _ = listener.accept()
    at = low
    while at < high:
        size = sock.recv_into(view, min(BUFFER_BYTES, high - at), socket.MSG_WAITALL)
        if size == 0:
            raise ConnectionError("the sender ended before it had sent all bytes")
        place(at, size)
        at += size
    sock.send(b"x")


def _write(fd: int, data: memoryview, at: int) -> None:
    if os.pwrite(fd, data, at) != len(data):
        raise OSError(errno.ENOSPC, "the destination took only a part of the bytes; its file system is full")


class _Copier:
    """Copies from *buffer* into the file of descriptor *fd* by UFFDIO_COPY, through a mapping that it owns.

    Raises:
        OSError: userfaultfd is not allowed; (a call) EEXIST: a page is there already, ENOMEM: there is no memory.
    """

    def __init__(self, fd: int, buffer: mmap.mmap) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        flags = os.O_CLOEXEC | os.O_NONBLOCK | _UFFD_USER_MODE_ONLY
        self._uffd = libc.syscall(_SYS_USERFAULTFD[platform.machine()], flags)
        if self._uffd < 0:
            raise OSError(ctypes.get_errno(), "userfaultfd is not allowed here; use the placement pwrite")
        self._target = mmap.mmap(fd, 0)
        self._base, self._buffer = (
            ctypes.addressof(ctypes.c_char.from_buffer(memory)) for memory in (self._target, buffer)
        )
        fcntl.ioctl(self._uffd, _UFFDIO_API, bytearray(struct.pack("=QQQ", 0xAA, 0, 0)))
        registration = bytearray(struct.pack("=QQQQ", self._base, len(self._target), _MODE_MISSING, 0))
        fcntl.ioctl(self._uffd, _UFFDIO_REGISTER, registration)

    def __call__(self, at: int, size: int) -> None:
        """Copy the first *size* bytes of the buffer to offset *at* of the file."""
        done = 0
        while done < size:
            copy = (self._base + at + done, self._buffer + done, size - done, _MODE_DONTWAKE, 0)
            argument = bytearray(struct.pack("=QQQQq", *copy))
            try:
                fcntl.ioctl(self._uffd, _UFFDIO_COPY, argument)
            except OSError as error:
                if error.errno != errno.EAGAIN:
                    raise
            done += max(0, struct.unpack_from("=q", argument, 32)[0])


def main() -> None:
    """Carry a file of random bytes with each number of pairs and each placement, and print the rates."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--memory-mib", type=int, default=2048)
    parser.add_argument("--pairs", default="1,2")
    parser.add_argument("--placements", default=",".join(PLACEMENTS))
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="parmig-bench-", dir="/dev/shm") as directory:
        source, destination = Path(directory, "source"), Path(directory, "destination")
        block = os.urandom(16 * MIB)
        with source.open("wb") as file:
            for number in range(-(-options.memory_mib // 16)):
                file.write(block[number * 4096 :] + block[: number * 4096])
            file.truncate(options.memory_mib * MIB)
        for placement in options.placements.split(","):
            for pairs in map(int, options.pairs.split(",")):
                rates = []
                for _ in range(options.runs):
                    with destination.open("wb") as file:
                        file.truncate(options.memory_mib * MIB)
                    with started_pairs(source, destination, pairs, placement) as carry:
                        rates.append(round(options.memory_mib / carry()))
                    if not filecmp.cmp(source, destination, shallow=False):
                        sys.exit(f"{placement}, {pairs} pairs: the destination differs from the source")
                    destination.unlink()
                print(f"{placement:7} {pairs} pairs: {' '.join(map(str, rates))} MiB/s", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["send"]:
        send(sys.argv[2], *map(int, sys.argv[3:6]))
    elif sys.argv[1:2] == ["receive"]:
        receive(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
    else:
        main()
