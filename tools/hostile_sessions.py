# SPDX-License-Identifier: Apache-2.0
"""A hostile process with valid keys against a long-lived honest one: many sessions a second, each on real connections.

usage: python -m tools.hostile_sessions [--messages 100000] [--seed 1] [--seconds 0]

``tools/hostile_peer.py`` moves whole guests between commands, which takes seconds for a few messages. Here one honest
process serves session after session by parmig's own ends (``tools/hostile_honest.py``), and this process attacks them
(``tools/hostile_ends.py``). The honest process must refuse each by a documented error and in time, it may grow by 64
MiB and a few descriptors at most, and bytes around the agreed blocks stay as they are. Prints a table, one line for
each end; exit code 1: something went wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from parmig.linux.process import anonymous_bytes
from parmig.transport.security.fleet import add_hosts
from parmig.transport.security.security import Security
from parmig.transport.transport import Endpoint, parse_uri
from tools.fuzzing import MEMORY_LIMIT_BYTES, FindingError
from tools.hostile_ends import Hostile
from tools.hostile_orders import KINDS, LISTENING, Order, Outcome

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 60.0
"""For the honest end of a session. Its own limits are a few seconds, on a machine that may be busy."""

WARM_UP = 3
"""So many honest sessions of each end come first; growth counts from there."""

FEW_DESCRIPTORS = 4

ENDS = [
    (kind, scheme) for kind in KINDS for scheme in (("tcp", "zmq+tcp") if kind in ("pages", "answers") else ("tcp",))
]

T = TypeVar("T")


@dataclass
class Row:
    """What happened at one end.

    Attributes:
        sessions: how many.
        sent: hostile messages.
        read: messages of the hostile side that the honest side read.
        errors: by which documented errors sessions ended; empty: none.
        took_s, slowest_s: all sessions together, and the longest.
    """

    sessions: int = 0
    sent: int = 0
    read: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    took_s: float = 0.0
    slowest_s: float = 0.0


class Battle:
    """One honest process, and this one that attacks it.

    Args:
        seed: of everything hostile.
    """

    def __init__(self, seed: int) -> None:
        self.rows = {end: Row() for end in ENDS}
        self.grew_bytes = 0
        self._chance = random.Random(seed)
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Battle:
        fleet = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="parmig-hostile-"))
        (keys,) = add_hosts(fleet, [("localhost", "127.0.0.1")], 30)
        self._pipe, other = multiprocessing.Pipe()
        self._hostile = Hostile(Security(str(keys), ("127.0.0.1",)), self._chance, self._pipe.poll)
        command = [sys.executable, "-m", "tools.hostile_honest", str(other.fileno()), str(keys)]
        self._process = subprocess.Popen(command, cwd=ROOT, pass_fds=[other.fileno()])
        other.close()
        self._stack.callback(self._end)
        for end in ENDS * WARM_UP:
            outcome = self._session(end, honest=True)
            if outcome.crash or outcome.error not in ("", "PeerLostError") or not outcome.messages:
                raise FindingError(f"an honest session of {end} ends by {outcome}")
        self._before_bytes, self._before_files = anonymous_bytes(self._process.pid), self._files()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _end(self) -> None:
        self._pipe.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _files(self) -> int:
        return len(os.listdir(f"/proc/{self._process.pid}/fd"))

    def fight(self, end: tuple[str, str]) -> None:
        """One session at *end*.

        Raises:
            FindingError: the honest side did what it must not do.
        """
        row, sent, began = self.rows[end], self._hostile.sent, time.monotonic()
        outcome = self._session(end, honest=False)
        row.sessions += 1
        row.sent += self._hostile.sent - sent
        row.read += outcome.messages
        row.errors[outcome.error] += 1
        took_s = time.monotonic() - began
        row.took_s += took_s
        row.slowest_s = max(row.slowest_s, took_s)
        self.grew_bytes = max(self.grew_bytes, anonymous_bytes(self._process.pid) - self._before_bytes)
        if outcome.crash:
            raise FindingError(f"{end}: {outcome.crash}")
        if self.grew_bytes > MEMORY_LIMIT_BYTES:
            raise FindingError(f"{end}: the honest process grew by {self.grew_bytes} bytes")
        if self._files() > self._before_files + FEW_DESCRIPTORS:
            raise FindingError(f"{end}: the honest process holds {self._files()} descriptors, not {self._before_files}")

    def _session(self, end: tuple[str, str], *, honest: bool) -> Outcome:
        kind, scheme = end
        order = Order(kind, Endpoint(scheme, "127.0.0.1", 0), self._chance.randbytes(16))
        self._hostile.begin(kind, honest=honest)
        if kind in LISTENING:
            with self._hostile.listening(order) as (where, harm):
                self._pipe.send(order._replace(endpoint=where))
                harm()
        else:
            self._pipe.send(order)
            where = self._hear(str)
            self._hostile.attack(order._replace(endpoint=parse_uri(where)))
        self._pipe.send(None)
        return self._hear(Outcome)

    def _hear(self, kind: type[T]) -> T:
        """What the honest process says, of this *kind*."""
        try:
            if self._pipe.poll(LIMIT_S):
                said = self._pipe.recv()
                if isinstance(said, kind):
                    return said
                raise FindingError(f"the honest process says {said}")
        except EOFError as error:
            raise FindingError(f"the honest process has ended: exit code {self._process.wait(5)}") from error
        os.kill(self._process.pid, signal.SIGUSR1)  # it prints where it is
        time.sleep(1)
        raise FindingError(f"the honest process does not answer within {LIMIT_S:g} s")

    @property
    def sent(self) -> int:
        """All hostile messages so far."""
        return sum(row.sent for row in self.rows.values())

    def table(self) -> Iterator[str]:
        """The lines of a table, one for each end."""
        yield f"{'end':22} {'sessions':>9} {'hostile':>9} {'read':>9} {'mean ms':>8} {'most ms':>8}  ended by"
        for (kind, scheme), row in self.rows.items():
            errors = ", ".join(f"{error or 'none'}: {count}" for error, count in row.errors.most_common())
            name, mean_ms = f"{kind} ({scheme})", row.took_s * 1000 / max(row.sessions, 1)
            times = f"{mean_ms:8.1f} {row.slowest_s * 1000:8.1f}"
            yield f"{name:22} {row.sessions:9} {row.sent:9} {row.read:9} {times}  {errors}"
        total = sum(row.read for row in self.rows.values())
        yield f"{self.sent} hostile messages; {total} messages read; grew by {self.grew_bytes >> 20} MiB"


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=100_000, help="hostile messages to send in all")
    parser.add_argument("--seconds", type=float, default=0, help="end after this time, too")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    until = time.monotonic() + options.seconds if options.seconds else float("inf")
    shown = time.monotonic()
    with Battle(options.seed) as battle:
        try:
            while battle.sent < options.messages and time.monotonic() < until:
                for end in ENDS:
                    battle.fight(end)
                if time.monotonic() > shown + 60:
                    shown = time.monotonic()
                    print(*battle.table(), sep="\n", flush=True)
        except FindingError as error:
            print(*battle.table(), f"seed {options.seed}: {error}", sep="\n")
            return 1
        print(*battle.table(), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
