# SPDX-License-Identifier: Apache-2.0
"""Rate and pause of a migration alone, and beside strangers at its own ports and elsewhere, in turns.

usage: python -m tools.bench_strangers [--runs N] [--connections N] [--kind KIND] [--transport NAME] [--keys DIR]

While the migration runs, strangers make so many connections (``tools.strangers``). They run on this machine, so they
take processor time from the migration whatever it does. The same strangers show how much that is where nobody of parmig
is concerned: at ports where nobody listens, and at those of a bare process that accepts connections and closes them.
What parmig loses to strangers is the difference between those and its own ports. The processor time that the strangers
themselves take is printed, too.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from tools.bench_lab import median

FIRST_PORT = 21_000
OTHER_PORTS = 20_000
"""The first of the ports where nobody listens."""

HELD = 50
"""Connections that are held to each port at a time."""

ALONE, CLOSED, BARE, HERE = "alone", "at closed ports", "at a bare process", "at parmig's ports"


class Scene:
    """Strangers beside one migration, if there are any.

    Args:
        ports: where they connect; empty: there are none.
        kind: what they do.
        per_second: how many connections they make.
    """

    def __init__(self, ports: range, kind: str, per_second: int) -> None:
        self._process: subprocess.Popen[str] | None = None
        if ports:
            held, pace = str(HELD), ["--per-second", str(per_second)]
            command = [sys.executable, "-m", "tools.strangers", *pace, kind, held, *map(str, ports)]
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            assert self._process.stdout is not None
            self._process.stdout.readline()

    def end(self) -> tuple[int, float]:
        """End them, and return how many connections they have made, and the seconds of a processor that they took."""
        if self._process is None:
            return 0, 0.0
        self._process.terminate()
        made, spent_s = self._process.communicate(timeout=10)[0].split()
        return int(made), float(spent_s)


def accept_and_close(ports: range) -> None:
    """Accept connections at *ports*, and close them, until this process is ended."""
    poller, listeners = select.epoll(), {}
    for port in ports:
        listener = socket.create_server(("127.0.0.1", port), backlog=4096)
        listeners[listener.fileno()] = listener
        poller.register(listener, select.EPOLLIN)
    print("there", flush=True)
    while True:
        for fd, _ in poller.poll():
            listeners[fd].accept()[0].close()


@contextlib.contextmanager
def bare_process(ports: range) -> Iterator[None]:
    """While the context is open, another process accepts connections at *ports*, and closes them."""
    command = [sys.executable, "-m", "tools.bench_strangers", "--accept", str(ports.start), str(ports.stop)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield
        finally:
            process.kill()


def migrate(
    scene: str, options: argparse.Namespace, first_port: int, per_second: int
) -> tuple[dict[str, Any], int, float, float]:
    """The report of one migration in that scene, how many connections were made beside it, the seconds of a processor
    that this took the strangers, and how long the command took.
    """
    ports = range(first_port, first_port + 4)
    parmig = [sys.executable, "-m", "parmig"]
    keys = ["--keys", options.keys] if options.keys else []
    uri = f"tcp://127.0.0.1:{ports[0]}"
    guest = f"synthetic:memory={options.memory}"
    receive = [*parmig, "receive", "--listen", uri, "--guest", guest, "--data-ports", f"{ports[1]}-{ports[3]}", *keys]
    send = [*parmig, "send", uri, "--guest", f"{guest},rate=20MiB/s", "--workers", "2", "--connect-timeout", "20s"]
    send += ["--transport", options.transport, *keys]
    elsewhere = range(OTHER_PORTS, OTHER_PORTS + len(ports))
    places = {ALONE: range(0), CLOSED: elsewhere, BARE: elsewhere, HERE: ports}
    with (
        bare_process(elsewhere) if scene == BARE else contextlib.nullcontext(),
        subprocess.Popen([*receive, "--quiet"], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as there,
    ):
        assert there.stderr is not None
        there.stderr.readline()
        strangers = Scene(places[scene], options.kind, per_second)
        began = time.monotonic()
        done = subprocess.run([*send, "--json", "--quiet"], capture_output=True, check=False, text=True)
        took_s = time.monotonic() - began
        made, spent_s = strangers.end()
        if done.returncode:
            there.terminate()
            raise SystemExit(done.stderr)
    report: dict[str, Any] = json.loads(done.stdout)
    return report, made, spent_s, took_s


def main() -> None:
    """Print all three, and what parmig loses to strangers."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--connections", type=int, default=10_000, help="to be made during each migration")
    parser.add_argument("--kind", default="mixed")
    parser.add_argument("--transport", default="tcp")
    parser.add_argument("--memory", default="4GiB")
    parser.add_argument("--keys", default="")
    parser.add_argument("--accept", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.accept:
        accept_and_close(range(*options.accept))
    figures: dict[str, list[tuple[float, float, int, float]]] = {scene: [] for scene in (ALONE, CLOSED, BARE, HERE)}
    *_, took_s = migrate(ALONE, options, FIRST_PORT, 0)
    port = FIRST_PORT + 4
    for _ in range(options.runs):
        for scene, results in figures.items():
            report, made, spent_s, took_s = migrate(scene, options, port, round(options.connections / took_s))
            results.append((report["throughput_mib_per_s"], report["downtime_ms"], made, spent_s))
            print(f"  {scene:18} {results[-1][0]:7.0f} MiB/s, {made} connections in {took_s:.1f} s", flush=True)
            port += 4
    medians = {scene: tuple(map(median, zip(*results, strict=True))) for scene, results in figures.items()}
    for scene, (rate, pause, count, spent_s) in medians.items():
        beside = f", {count:.0f} connections, which took {spent_s:.2f} s of a core" if count else ""
        print(f"{scene:18} {rate:7.0f} MiB/s, pause {pause:6.1f} ms{beside}")
    for scene in (ALONE, CLOSED, BARE):
        rate, pause = medians[HERE][0] / medians[scene][0] - 1, medians[HERE][1] - medians[scene][1]
        print(f"at parmig's ports, not {scene:18} rate {rate:+.1%}, pause {pause:+.1f} ms")


if __name__ == "__main__":
    main()
