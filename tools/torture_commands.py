# SPDX-License-Identifier: Apache-2.0
"""The commands of a tortured migration, and a file system that can be filled."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from parmig.engine.records.handover_record import RecordState
from parmig.engine.records.record_store import RecordStore
from parmig.units import MIB
from tests.qemu.machines import wait_until

START_LIMIT_S = 180.0
"""For a command to show its first line, and a guest to boot. It takes a second, and many times that on a busy
machine."""


class WrongError(Exception):
    """A promise was broken; the message says which."""


@dataclass
class Side:
    """A running command."""

    process: subprocess.Popen[str]
    log: Path

    def code(self) -> int | None:
        """Its exit code; None: a signal ended it."""
        return self.process.returncode if self.process.returncode >= 0 else None


@contextlib.contextmanager
def space_for(size_bytes: int) -> Iterator[Path]:
    """A tmpfs for this much, and a little more."""
    path = Path(tempfile.mkdtemp(prefix="parmig-torture-", dir="/dev/shm"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_bytes + MIB}", "tmpfs", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)
        path.rmdir()


@contextlib.contextmanager
def filled(space: Path) -> Iterator[None]:
    """Take all space that is left."""
    with tempfile.NamedTemporaryFile(dir=space, prefix="filler-", buffering=0) as file:
        with contextlib.suppress(OSError):
            while file.write(bytes(MIB)):
                pass
        yield


def listens_at(receive: Side) -> str:
    """Wait until the receiver listens, and return where."""

    def uri() -> str:
        if receive.process.poll() is not None:
            raise WrongError(f"receive ended: {receive.log.read_text()}")
        line = receive.log.read_text().partition("listening on ")[2]
        return line.split("\n")[0].strip() if "\n" in line else ""

    wait_until(uri, "the receiver", START_LIMIT_S)
    return uri()


def wait_for_first_line(side: Side) -> None:
    """Wait until a command has shown something, or has ended."""
    wait_until(lambda: side.process.poll() is not None or side.log.read_text(), "a command's first line", START_LIMIT_S)


def wait_for(side: Side, limit_s: float) -> None:
    """Wait until a command has ended; WrongError: it has not within the limit."""
    try:
        side.process.wait(limit_s)
    except subprocess.TimeoutExpired:
        raise WrongError(f"a command did not end within {limit_s:g} s:\n{side.log.read_text()[-2000:]}") from None


def error_of(side: Side) -> str:
    """The error that a command has reported; empty: none, or no report."""
    reports = [line for line in side.log.read_text().splitlines() if line.startswith('{"parmig"')]
    error = json.loads(reports[-1])["error"] if reports else None
    return f"{error['phase']}: {error['message']}" if error else ""


def record_states(directory: Path) -> list[RecordState]:
    """What a host has on record."""
    with RecordStore(str(directory)) as store:
        return [entry.record.state for entry in store.entries() if entry.record is not None]


def recover(source: Path, destination: Path) -> None:
    """What an operator does: see to both hosts, whose records are in these directories."""
    words = [sys.executable, "-m", "parmig", "recover", "--json", "--wait", "5s", "--state-dir"]
    with contextlib.ExitStack() as opened:
        listen = ["--listen", "tcp://127.0.0.1:0"]
        there = subprocess.Popen(
            [*words, str(destination), *listen], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        opened.callback(there.wait)
        opened.callback(there.kill)
        assert there.stderr is not None
        uri = next((line.split()[-1] for line in there.stderr if "listening on" in line), "")
        peer = ["--peer", uri] if uri else []
        subprocess.run([*words, str(source), *peer], check=False, timeout=60, capture_output=True)


def end(side: Side) -> None:
    """End a command, whatever it does."""
    side.process.kill()
    side.process.wait()
