# SPDX-License-Identifier: Apache-2.0
"""Rate and pause of a migration alone and beside strangers on all of its ports, in turns.

usage: python -m tools.bench_strangers [RUNS [CONNECTIONS [KIND]]]
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from tools.bench_lab import median

FIRST_PORT = 21_000
GUEST = "synthetic:memory=512MiB"


def migrate(connections: int, kind: str, first_port: int) -> dict[str, Any]:
    """The report of one migration beside so many strangers a port."""
    ports = range(first_port, first_port + 4)
    parmig = [sys.executable, "-m", "parmig"]
    uri = f"tcp://127.0.0.1:{ports[0]}"
    receive = [*parmig, "receive", "--listen", uri, "--guest", GUEST, "--data-ports", f"{ports[1]}-{ports[3]}"]
    send = [*parmig, "send", uri, "--guest", f"{GUEST},rate=20MiB/s", "--workers", "2", "--connect-timeout", "10s"]
    with subprocess.Popen([*receive, "--quiet"], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as there:
        assert there.stderr is not None
        there.stderr.readline()
        crowd = None
        if connections:
            command = [sys.executable, "-m", "tools.strangers", kind, str(connections // len(ports)), *map(str, ports)]
            crowd = subprocess.Popen(command, stdout=subprocess.PIPE)
            assert crowd.stdout is not None
            crowd.stdout.readline()
        try:
            done = subprocess.run([*send, "--json", "--quiet"], capture_output=True, check=False, text=True)
        finally:
            if crowd is not None:
                crowd.kill()
                crowd.communicate()
        if done.returncode:
            there.terminate()
            raise SystemExit(done.stderr)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def main(runs: str = "5", connections: str = "200", kind: str = "idle") -> None:
    """Print both, and how they differ."""
    figures: dict[int, list[tuple[float, float]]] = {0: [], int(connections): []}
    for run in range(int(runs)):
        for number, count in enumerate(figures):
            report = migrate(count, kind, FIRST_PORT + 8 * run + 4 * number)
            figures[count].append((report["throughput_mib_per_s"], report["downtime_ms"]))
    rates = {count: median([rate for rate, _ in found]) for count, found in figures.items()}
    pauses = {count: median([pause for _, pause in found]) for count, found in figures.items()}
    for count in figures:
        print(f"{count:4} strangers: {rates[count]:7.0f} MiB/s, pause {pauses[count]:6.1f} ms")
    alone, beside = figures
    print(f"rate {rates[beside] / rates[alone] - 1:+.1%}, pause {pauses[beside] - pauses[alone]:+.1f} ms")


if __name__ == "__main__":
    main(*sys.argv[1:])
