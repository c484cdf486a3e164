# SPDX-License-Identifier: Apache-2.0
"""Rate and pause of a migration alone, beside strangers elsewhere, and beside strangers on its own ports, in turns.

usage: python -m tools.bench_strangers [--runs N] [--connections N] [--kind KIND] [--transport NAME] [--keys DIR]

While the migration runs, strangers make so many connections (``tools.strangers``). They run on this machine, so they
take processor time from the migration whatever it does. The same strangers at ports where nobody listens show how much
that is. What parmig loses to strangers is the difference between the last two.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from typing import Any

from tools.bench_lab import median

FIRST_PORT = 21_000
OTHER_PORTS = 20_000
"""The first of the ports where nobody listens."""

HELD = 50
"""Connections that are held to each port at a time."""

ALONE, ELSEWHERE, HERE = "alone", "strangers elsewhere", "strangers here"


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

    def end(self) -> int:
        """End them, and return how many connections they have made."""
        if self._process is None:
            return 0
        self._process.terminate()
        made, _ = self._process.communicate(timeout=10)
        return int(made)


def migrate(
    scene: str, options: argparse.Namespace, first_port: int, per_second: int
) -> tuple[dict[str, Any], int, float]:
    """The report of one migration in that scene, how many connections were made beside it, and how long it took."""
    ports = range(first_port, first_port + 4)
    parmig = [sys.executable, "-m", "parmig"]
    keys = ["--keys", options.keys] if options.keys else []
    uri = f"tcp://127.0.0.1:{ports[0]}"
    guest = f"synthetic:memory={options.memory}"
    receive = [*parmig, "receive", "--listen", uri, "--guest", guest, "--data-ports", f"{ports[1]}-{ports[3]}", *keys]
    send = [*parmig, "send", uri, "--guest", f"{guest},rate=20MiB/s", "--workers", "2", "--connect-timeout", "20s"]
    send += ["--transport", options.transport, *keys]
    with subprocess.Popen([*receive, "--quiet"], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as there:
        assert there.stderr is not None
        there.stderr.readline()
        places = {ALONE: range(0), ELSEWHERE: range(OTHER_PORTS, OTHER_PORTS + len(ports)), HERE: ports}
        strangers = Scene(places[scene], options.kind, per_second)
        began = time.monotonic()
        done = subprocess.run([*send, "--json", "--quiet"], capture_output=True, check=False, text=True)
        took_s = time.monotonic() - began
        made = strangers.end()
        if done.returncode:
            there.terminate()
            raise SystemExit(done.stderr)
    report: dict[str, Any] = json.loads(done.stdout)
    return report, made, took_s


def main() -> None:
    """Print all three, and what parmig loses to strangers."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--connections", type=int, default=10_000, help="to be made during each migration")
    parser.add_argument("--kind", default="mixed")
    parser.add_argument("--transport", default="tcp")
    parser.add_argument("--memory", default="4GiB")
    parser.add_argument("--keys", default="")
    options = parser.parse_args()
    figures: dict[str, list[tuple[float, float]]] = {scene: [] for scene in (ALONE, ELSEWHERE, HERE)}
    made = {ELSEWHERE: 0, HERE: 0}
    _, _, took_s = migrate(ALONE, options, FIRST_PORT, 0)
    port = FIRST_PORT + 4
    for _ in range(options.runs):
        for scene, results in figures.items():
            report, count, took_s = migrate(scene, options, port, round(options.connections / took_s))
            results.append((report["throughput_mib_per_s"], report["downtime_ms"]))
            print(f"  {scene:20} {results[-1][0]:7.0f} MiB/s, {count} connections in {took_s:.1f} s", flush=True)
            if scene in made:
                made[scene] += count
            port += 4
    rates = {scene: median([rate for rate, _ in results]) for scene, results in figures.items()}
    pauses = {scene: median([pause for _, pause in results]) for scene, results in figures.items()}
    for scene in figures:
        beside = f", {made[scene] // options.runs} connections" if scene in made else ""
        print(f"{scene:20} {rates[scene]:7.0f} MiB/s, pause {pauses[scene]:6.1f} ms{beside}")
    rate, pause = rates[HERE] / rates[ELSEWHERE] - 1, pauses[HERE] - pauses[ELSEWHERE]
    print(f"here, not elsewhere: rate {rate:+.1%}, pause {pause:+.1f} ms")
    print(f"here, not alone:     rate {rates[HERE] / rates[ALONE] - 1:+.1%}")


if __name__ == "__main__":
    main()
