# SPDX-License-Identifier: Apache-2.0
"""Rate and pause of a migration alone, beside strangers elsewhere, and beside strangers on its own ports, in turns.

usage: python -m tools.bench_strangers [RUNS [CONNECTIONS [KIND]]]

The strangers run on this machine, so they take processor time from the migration whatever it does. The same crowd
at a listener that has nothing to do with parmig shows how much that is. What parmig loses to strangers is the
difference between the last two.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tools.bench_lab import median

FIRST_PORT = 21_000
GUEST = "synthetic:memory=512MiB"


ALONE, ELSEWHERE, HERE = "alone", "strangers elsewhere", "strangers here"
OTHER_PORTS = 20_000
"""The first of the ports of the listener that is not parmig's."""

LISTENER = """
import selectors, socket, sys
ready = selectors.DefaultSelector()
for port in sys.argv[1:]:
    ready.register(socket.create_server(("127.0.0.1", int(port)), backlog=128), selectors.EVENT_READ)
print("there", flush=True)
while True:
    for key, _ in ready.select():
        key.fileobj.accept()[0].close()
"""
"""It takes each connection and closes it, as cheaply as Python can."""


@contextmanager
def running(command: list[str]) -> Iterator[None]:
    """Run a process, which prints a line once it is ready, until the end of the block."""
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield
        finally:
            process.kill()


@contextmanager
def crowd(kind: str, connections: int, ports: range) -> Iterator[None]:
    """Run *connections* strangers, spread over *ports*, until the end of the block."""
    with running([sys.executable, "-m", "tools.strangers", kind, str(connections // len(ports)), *map(str, ports)]):
        yield


@contextmanager
def around(scene: str, kind: str, connections: int, ports: range) -> Iterator[None]:
    """Run what *scene* has beside the migration."""
    if scene == ALONE:
        yield
    elif scene == HERE:
        with crowd(kind, connections, ports):
            yield
    else:
        others = range(OTHER_PORTS, OTHER_PORTS + len(ports))
        with running([sys.executable, "-c", LISTENER, *map(str, others)]), crowd(kind, connections, others):
            yield


def migrate(scene: str, kind: str, connections: int, first_port: int) -> dict[str, Any]:
    """The report of one migration in that scene."""
    ports = range(first_port, first_port + 4)
    parmig = [sys.executable, "-m", "parmig"]
    uri = f"tcp://127.0.0.1:{ports[0]}"
    receive = [*parmig, "receive", "--listen", uri, "--guest", GUEST, "--data-ports", f"{ports[1]}-{ports[3]}"]
    send = [*parmig, "send", uri, "--guest", f"{GUEST},rate=20MiB/s", "--workers", "2", "--connect-timeout", "10s"]
    with subprocess.Popen([*receive, "--quiet"], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as there:
        assert there.stderr is not None
        there.stderr.readline()
        with around(scene, kind, connections, ports):
            done = subprocess.run([*send, "--json", "--quiet"], capture_output=True, check=False, text=True)
        if done.returncode:
            there.terminate()
            raise SystemExit(done.stderr)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def main(runs: str = "5", connections: str = "200", kind: str = "idle") -> None:
    """Print all three, and what parmig loses to strangers."""
    figures: dict[str, list[tuple[float, float]]] = {scene: [] for scene in (ALONE, ELSEWHERE, HERE)}
    port = FIRST_PORT
    for _ in range(int(runs)):
        for scene, results in figures.items():
            report = migrate(scene, kind, int(connections), port)
            results.append((report["throughput_mib_per_s"], report["downtime_ms"]))
            port += 4
    rates = {scene: median([rate for rate, _ in results]) for scene, results in figures.items()}
    pauses = {scene: median([pause for _, pause in results]) for scene, results in figures.items()}
    for scene in figures:
        print(f"{scene:20} {rates[scene]:7.0f} MiB/s, pause {pauses[scene]:6.1f} ms")
    rate, pause = rates[HERE] / rates[ELSEWHERE] - 1, pauses[HERE] - pauses[ELSEWHERE]
    print(f"here, not elsewhere: rate {rate:+.1%}, pause {pause:+.1f} ms")


if __name__ == "__main__":
    main(*sys.argv[1:])
