# SPDX-License-Identifier: Apache-2.0
"""The rates of bare pairs of processes alone (:mod:`parmig.experiments.bare_pair`).

usage: python -m tools.bare_pair [--memory-mib 2048] [--pairs 1,2] [--placements copy,pwrite] [--runs 3]

The command compares both files after each run. :mod:`tools.bench_peers` runs the same pairs beside other programs.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import sys
import tempfile
from pathlib import Path

from parmig.experiments.bare_pair import PLACEMENTS, started_pairs
from parmig.units import MIB


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
    main()
