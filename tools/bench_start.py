# SPDX-License-Identifier: Apache-2.0
"""What starting and ending costs: the migration of an empty 64 MiB guest by the commands, and the commands' help.

usage: python -m tools.bench_start [--runs 10] [--workers 2] [--transport NAME] [--tree DIRECTORY ...] [--json]

For each tree in turns (default: this one), medians of:

cpu_s      processor seconds of both sides: commands, workers, guests, guardian, and everything else they start
send_s     wall clock of ``parmig send``
receive_s  wall clock of ``parmig receive`` until it listens
help_s     wall clock of ``parmig --help``

The byte code of each tree is kept for the time of the measurement, as pip does when it installs parmig.

Nobody has to be root. This process adopts every orphan (PR_SET_CHILD_SUBREAPER), so the kernel counts all of them.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tools.bench_lab import LIMIT_S, describe_host, median, to_json

PR_SET_CHILD_SUBREAPER = 36
SOURCE = "synthetic:memory=64MiB,rate=0,fill=zero"
DESTINATION = "synthetic:memory=64MiB"


def children_s() -> float:
    """Processor seconds of all descendants so far. Waits until every one has ended."""
    while True:
        try:
            os.wait()
        except ChildProcessError:
            break
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measure(tree: Path, workers: int, transport: str | None, byte_code: str) -> dict[str, float]:
    """One migration and one ``--help`` with the code in *tree*; its byte code is in the directory *byte_code*."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONPYCACHEPREFIX": byte_code}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    parmig = [sys.executable, "-P", "-m", "parmig"]
    before_s, began = children_s(), time.monotonic()
    receive = [*parmig, "receive", "--listen", "tcp://127.0.0.1:0", "--guest", DESTINATION, "--json"]
    with subprocess.Popen(receive, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as receiver:
        assert receiver.stderr is not None
        uri = next(line.split()[-1].decode() for line in receiver.stderr if b"listening on" in line)
        listening = time.monotonic()
        send = [*parmig, "send", uri, "--guest", SOURCE, "--workers", str(workers), "--quiet"]
        send += ["--transport", transport] if transport else []
        try:
            subprocess.run(send, env=environment, stdout=subprocess.DEVNULL, check=True, timeout=LIMIT_S)
            sent = time.monotonic()
            receiver.communicate(timeout=LIMIT_S)
        finally:
            receiver.kill()
    after_s, asked = children_s(), time.monotonic()
    subprocess.run([*parmig, "--help"], env=environment, stdout=subprocess.DEVNULL, check=True, timeout=LIMIT_S)
    return {
        "cpu_s": after_s - before_s,
        "send_s": sent - listening,
        "receive_s": listening - began,
        "help_s": time.monotonic() - asked,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--transport", help="default: that of parmig send")
    parser.add_argument("--tree", type=Path, action="append", default=[])
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    trees = [tree.resolve() for tree in chosen.tree] or [Path(__file__).resolve().parents[1]]
    runs: dict[Path, list[dict[str, float]]] = {tree: [] for tree in trees}
    with tempfile.TemporaryDirectory(prefix="parmig-bench-") as byte_code:
        for tree in trees:
            measure(tree, chosen.workers, chosen.transport, byte_code)
        for _ in range(chosen.runs):
            for tree in trees:
                runs[tree].append(measure(tree, chosen.workers, chosen.transport, byte_code))
    results = {str(tree): _figures(measured) for tree, measured in runs.items()}
    if chosen.json:
        print(to_json({"host": describe_host(), "runs": chosen.runs, **results}))
        return
    for tree, figures in results.items():
        print(f"{tree}: " + ", ".join(f"{name} {value['median']:.3f}" for name, value in figures.items()))


def _figures(runs: list[dict[str, float]]) -> dict[str, Any]:
    return {
        name: {
            "median": round(median([run[name] for run in runs]), 3),
            "runs": [round(run[name], 3) for run in runs],
        }
        for name in runs[0]
    }


if __name__ == "__main__":
    main()
