# SPDX-License-Identifier: Apache-2.0
"""A peer that holds the session and means harm: real commands against a real command on loopback.

usage: python -m tools.hostile_peer [--runs 100] [--seed 1] [--plain]

One side of each migration is an honest ``parmig``. The other one is parmig, too, but sends damaged, cut, repeated and
reordered messages, and bytes that are no messages, in all its channels and in bursts. It has proven its session by
then, so everything that comes after that is reached. The honest side must end in time with a documented exit code and
without a traceback, it may grow by 64 MiB at most, and leaves no process. Prints a table, and the runs that went wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from parmig.cli import main as parmig
from parmig.linux.process import anonymous_bytes
from parmig.transport.security.fleet import add_hosts
from parmig.transport.tcp import TcpTransport
from parmig.transport.transport import Buffer
from parmig.transport.zeromq import ZmqTransport
from tools.fuzzing import MEMORY_LIMIT_BYTES
from tools.hostile_messages import Mangler

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 60.0
"""For the honest side to end. Its own limits are a few seconds."""

PATIENCE_S = 6.0
"""For a receiver to end after its sender has, unless it has refused it and waits for the next one."""

EXIT_CODES = (0, 1, 3, 4, 5, 6)
"""Those of docs/cli.md but usage errors and signals."""

ROLES = ("send", "receive")
TRANSPORTS = ("tcp", "zmq")


# -- the hostile side ---------------------------------------------------------------------------------


def turn_hostile(seed: int, counted: str) -> None:
    """Have this process, and those that are forked from it, replace what they send.

    Args:
        counted: a file to which the number of hostile messages is appended, a line for each burst.
    """
    manglers: dict[int, Mangler] = {}

    def mangler() -> Mangler:
        if (pid := os.getpid()) not in manglers:
            chance = random.Random(f"{seed} {Path('/proc/self/comm').read_text()}")
            manglers[pid] = Mangler(chance, chance.choice((0.05, 0.3, 1.0)), chance.choice((0, 1, 2, 4, 8, 16)))
        return manglers[pid]

    def count(messages: int) -> None:
        with open(counted, "a") as file:
            file.write(f"{messages}\n")

    def replacing(write: Any) -> Any:
        def replaced(transport: Any, frames: Sequence[Buffer], *, kept: bool = False) -> None:
            messages = mangler().replace(frames)
            if messages is None:
                write(transport, frames, kept=kept)
                return
            count(len(messages))
            for message in messages:
                write(transport, message)

        return replaced

    for kind in (TcpTransport, ZmqTransport):
        kind.write = replacing(kind.write)  # type: ignore[method-assign]


# -- both sides ---------------------------------------------------------------------------------------


class Run(NamedTuple):
    """What became of one migration.

    Attributes:
        hostile: the side that was hostile.
        code: the exit code of the honest side.
        messages: hostile ones that were sent.
        most_bytes: the most private memory that a process of the honest side had.
        problem: what went wrong; empty: nothing did.
    """

    hostile: str
    transport: str
    code: int
    messages: int
    most_bytes: int
    problem: str


class Side:
    """A command under way, and what its processes take."""

    def __init__(self, command: Sequence[str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        self.words = ""
        self.most_bytes = 0
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.words += line

    def uri(self) -> str:
        """Where it listens."""
        until = time.monotonic() + LIMIT_S
        while "listening on " not in self.words or not self.words.partition("listening on ")[2].partition("\n")[1]:
            if time.monotonic() > until or not self._reader.is_alive():
                raise TimeoutError(f"it does not listen: {self.words}")
            time.sleep(0.01)
        return self.words.partition("listening on ")[2].partition("\n")[0]

    def watch(self, other: Side) -> list[psutil.Process]:
        """Wait until it ends, at most LIMIT_S, and PATIENCE_S after *other* has ended. Returns its processes."""
        family: set[psutil.Process] = set()
        until = time.monotonic() + LIMIT_S
        while self.process.poll() is None and time.monotonic() < until:
            if other is not self and other.process.poll() is not None:
                until = min(until, time.monotonic() + PATIENCE_S)
                other = self
            with contextlib.suppress(psutil.Error):
                family |= {*psutil.Process(self.process.pid).children(recursive=True)}
            taken = [anonymous_bytes(pid) for pid in (self.process.pid, *(one.pid for one in family))]
            self.most_bytes = max(self.most_bytes, *taken)
            time.sleep(0.02)
        return list(family)

    def end(self) -> None:
        """Kill it if it runs."""
        self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()


@contextlib.contextmanager
def _side(command: Sequence[str]) -> Iterator[Side]:
    side = Side(command)
    try:
        yield side
    finally:
        side.end()


def _arguments(role: str, transport: str, uri: str, state: str, keys: str) -> list[str]:
    common = ["--json", "--state-dir", state, *(["--keys", keys] if keys else [])]
    if role == "receive":
        return ["receive", "--listen", uri, "--guest", "synthetic:memory=32MiB", *common]
    limits = ["--reconnect-timeout", "2s", "--switchover-timeout", "3s", "--connect-timeout", "5s", "--timeout", "10s"]
    guest = ["--guest", "synthetic:memory=32MiB,rate=20MiB/s", "--workers", "2", "--transport", transport, "--verify"]
    return ["send", uri, *guest, *limits, *common]


def run(seed: int, hostile: str, transport: str, most_bytes: int = 0, keys: str = "") -> Run:
    """One migration.

    Args:
        hostile: the side that is hostile; empty: none is.
        most_bytes: the most private memory of a process where nobody is hostile; 0: not known.
        keys: a directory of keys that both sides have; empty: they have none.
    """
    with tempfile.TemporaryDirectory(prefix="parmig-hostile-") as directory, contextlib.ExitStack() as stack:
        counted = f"{directory}/counted"

        def begin(role: str, uri: str, *, honest: bool) -> Side:
            arguments = _arguments(role, transport, uri, f"{directory}/{role}", keys)
            start = ["-m", "parmig"] if honest else ["-m", "tools.hostile_peer", "--peer", f"{seed}", counted]
            return stack.enter_context(_side([*start, *arguments]))

        receiver = begin("receive", "tcp://127.0.0.1:0", honest=hostile != "receive")
        uri = receiver.uri()
        sender = begin("send", uri, honest=hostile != "send")
        honest = receiver if hostile == "send" else sender
        family = honest.watch(sender)
        if hostile == "send" and honest.process.poll() is None:  # it has refused that one, and waits for another
            begin("send", uri, honest=True)
            family += honest.watch(receiver)
        code = honest.process.poll()
        honest.end()
        left = [one.pid for one in psutil.wait_procs(family, 5)[1]]
        problem = ""
        if code is None:
            problem = f"it did not end within {LIMIT_S:g} s"
        elif code not in EXIT_CODES or "Traceback" in honest.words:
            problem = f"exit code {code}: {honest.words[-2000:]}"
        elif most_bytes and honest.most_bytes - most_bytes > MEMORY_LIMIT_BYTES:
            problem = f"a process took {honest.most_bytes} bytes, {most_bytes} without a hostile peer"
        elif left:
            problem = f"processes are left: {left}"
        messages = sum(map(int, Path(counted).read_text().split())) if os.path.exists(counted) else 0
        return Run(hostile, transport, -1 if code is None else code, messages, honest.most_bytes, problem)


def table(runs: Sequence[Run]) -> Iterator[str]:
    """The lines of a table, one for each hostile side and transport."""
    yield f"{'hostile':8} {'transport':9} {'runs':>5} {'messages':>9} {'most MiB':>9}  exit codes of the honest side"
    for role in ROLES:
        for transport in TRANSPORTS:
            these = [one for one in runs if (one.hostile, one.transport) == (role, transport)]
            if these:
                codes = [one.code for one in these]
                counts = ", ".join(f"{code}: {codes.count(code)}" for code in sorted(set(codes)))
                most = max(one.most_bytes for one in these) >> 20
                total = sum(one.messages for one in these)
                yield f"{role:8} {transport:9} {len(these):5} {total:9} {most:9}  {counts}"


def main() -> int:
    """Run what was asked for."""
    if sys.argv[1:2] == ["--peer"]:
        seed, counted, *sys.argv[1:] = sys.argv[2:]
        turn_hostile(int(seed), counted)
        parmig()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plain", action="store_true", help="without keys")
    options = parser.parse_args()
    runs = []
    with tempfile.TemporaryDirectory(prefix="parmig-hostile-keys-") as fleet:
        keys = "" if options.plain else str(add_hosts(fleet, [("localhost", "127.0.0.1")], 30)[0])
        usual = {transport: run(0, "", transport, keys=keys).most_bytes for transport in TRANSPORTS}
        for number in range(options.runs):
            transport = TRANSPORTS[number // 2 % 2]
            runs.append(run(options.seed + number, ROLES[number % 2], transport, usual[transport], keys))
            if runs[-1].problem:
                print(f"run {number}: {runs[-1]}", flush=True)
    print(*table(runs), sep="\n")
    return 1 if any(one.problem for one in runs) else 0


if __name__ == "__main__":
    sys.exit(main())
