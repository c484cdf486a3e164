# SPDX-License-Identifier: Apache-2.0
"""Starts two QEMUs for the demonstration: one that runs, and one that waits for it. Nothing here controls them."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from parmig.errors import GuestError, HostRefusedError
from parmig.linux import process
from parmig.units import MIB

QEMU = "qemu-system-x86_64"

START_LIMIT_S = 20.0
"""How long QEMU may take to offer its QMP socket. It takes well under a second on a quiet host."""

ANSWER_LIMIT_S = 1.0
END_LIMIT_S = 5.0


def command(directory: Path, memory_bytes: int, *, incoming: bool, kernel: str, initrd: str) -> list[str]:
    """The command line of one QEMU, whose files are in *directory*. Nothing in it was chosen for parmig."""
    line = [QEMU, "-accel", "tcg", "-machine", "pc", "-m", f"{memory_bytes // MIB}M"]
    line += ["-nodefaults", "-display", "none", "-serial", f"file:{directory / 'console'}"]
    line += ["-qmp", f"unix:{directory / 'qmp'},server=on,wait=off"]
    if kernel:
        line += ["-kernel", kernel, "-append", "console=ttyS0 quiet"]
    if initrd:
        line += ["-initrd", initrd]
    return [*line, "-incoming", "defer", "-S"] if incoming else line


@contextmanager
def qemu_pair(memory_bytes: int, *, kernel: str, initrd: str) -> Iterator[tuple[str, str]]:
    """Two QEMUs, as the texts that open them as guests; leaving ends both and removes their files.

    Raises:
        HostRefusedError: QEMU is not installed, or cannot have that much memory.
        GuestError: QEMU ended at once; the message quotes its output.
    """
    if shutil.which(QEMU) is None:
        raise HostRefusedError(f"{QEMU} is not installed; on Debian and Ubuntu the package is qemu-system-x86")
    if memory_bytes % MIB:
        raise HostRefusedError(f"QEMU cannot have {memory_bytes} bytes of memory, expected whole MiB")
    processes: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory(prefix="parmig-demo-") as directory:
        try:
            for side in ("source", "destination"):
                home = Path(directory, side)
                home.mkdir()
                line = command(home, memory_bytes, incoming=side == "destination", kernel=kernel, initrd=initrd)
                processes.append(_start(line, home))
            yield f"qemu:{Path(directory, 'source', 'qmp')}", f"qemu:{Path(directory, 'destination', 'qmp')}"
        finally:
            for process in processes:
                _end(process)


def _start(line: list[str], home: Path) -> subprocess.Popen[bytes]:
    """Start QEMU and wait until its QMP socket is there. It ends with this process, whatever happens."""
    with open(home / "errors", "wb") as errors:
        process = subprocess.Popen(
            line,
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
    until = time.monotonic() + START_LIMIT_S
    while not _answers(home / "qmp"):
        if process.poll() is not None or time.monotonic() > until:
            _end(process)
            words = (home / "errors").read_text(errors="replace").strip() or "without a message"
            raise GuestError(f"{QEMU} did not start (exit {process.returncode}): {words}")
        time.sleep(0.02)
    return process


def _answers(qmp: Path) -> bool:
    """Whether QEMU has started. It greets before it has opened its files, but answers a command only after that."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(ANSWER_LIMIT_S)
        try:
            connection.connect(str(qmp))
            connection.sendall(b'{"execute": "qmp_capabilities"}')
            with connection.makefile("rb") as lines:
                return any(b'"return"' in line for line in lines)
        except OSError:
            return False


def _end_with_parent() -> None:
    process.die_with_parent(signal.SIGKILL)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(END_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
