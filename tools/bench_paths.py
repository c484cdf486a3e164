# SPDX-License-Identifier: Apache-2.0
"""How well several paths are filled, in the network lab (:mod:`tools.netlab`).

usage: python -m tools.bench_paths [--links 1Gbit,500Mbit,250Mbit,250Mbit] [--transport tcp] [--runs 3] [--json]

A synthetic guest with random data, which writes nothing, moves over each link alone and then over all of them. The rate
is that of round 1, and "share" is the rate over all links divided by the sum of the links alone. Runs take turns,
and rates are medians. It needs root.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import msgspec

from parmig.engine.report import Report
from parmig.units import format_bit_rate
from tools.bench_lab import LIMIT_S, describe_host, median, to_json
from tools.netlab import Lab, Line, Link, open_lab, parse_line


def move(lab: Lab, links: Sequence[Link], options: Sequence[str], guest: str) -> Report:
    """The source's report of one migration from the first host to the second over *links*."""
    source, destination = lab.hosts[:2]
    parmig = [sys.executable, "-m", "parmig"]
    listen = f"tcp://{links[0].address(destination)}:0"
    addresses = [option for link in links for option in ("--path", link.address(destination))]
    receive = ["receive", "--listen", listen, "--guest", guest, "--insecure", *addresses, "--json"]
    argv = destination.command(*parmig, *receive)
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as receiver:
        assert receiver.stderr is not None
        uri = next(line.split()[-1] for line in receiver.stderr if "listening on" in line)
        pairs = [f"{link.address(source)}-{link.address(destination)}" for link in links]
        paths = [option for pair in pairs for option in ("--path", pair)]
        send = ["send", uri, "--guest", guest, *paths, *options, "--json", "--quiet"]
        output = subprocess.run(source.command(*parmig, *send), stdout=subprocess.PIPE, check=False, timeout=LIMIT_S)
        report = msgspec.json.decode(output.stdout, type=Report)
        if report.error is not None:
            receiver.terminate()  # it would wait for the next sender
        receiver.communicate(timeout=LIMIT_S)
    report.raise_for_status()
    return report


def measure(lines: Sequence[Line], transport: str, workers: int, memory: str, runs: int) -> dict[str, Any]:
    """Rates in MiB/s over each link alone and over all, and the share of the sum."""
    guest = f"synthetic:memory={memory},rate=0,fill=random"
    alone: dict[Line, list[float]] = {line: [] for line in lines}
    together: list[float] = []
    with open_lab(lines) as lab:
        for _ in range(runs):
            for line, rates in alone.items():
                link = next(link for link in lab.links if link.line == line)
                rates.append(
                    move(lab, [link], ["--transport", transport, "--workers", "1"], guest).throughput_mib_per_s
                )
            options = ["--transport", transport, "--workers", str(workers)]
            report = move(lab, lab.links, options, guest)
            together.append(report.throughput_mib_per_s)
    total = sum(median(alone[line]) for line in lines)
    return {
        "links": [format_bit_rate(line.rate_bytes_per_s) for line in lines],
        "alone_mib_per_s": [round(median(alone[line]), 1) for line in lines],
        "together_mib_per_s": round(median(together), 1),
        "together_all": [round(rate, 1) for rate in together],
        "share": round(median(together) / total, 3),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--links", default="1Gbit,1Gbit,1Gbit,1Gbit", metavar="RATE[,RATE...]")
    parser.add_argument("--transport", default="tcp,zmq", help="one or more, separated by commas")
    parser.add_argument("--workers", type=int, default=0, help="0: one for each link")
    parser.add_argument("--memory", default="1GiB")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    lines = [parse_line(rate) for rate in chosen.links.split(",")]
    results: dict[str, Any] = {"host": describe_host()}
    for transport in chosen.transport.split(","):
        workers = chosen.workers or len(lines)
        results[transport] = measure(lines, transport, workers, chosen.memory, chosen.runs)
        if not chosen.json:
            print(f"{transport}: {to_json(results[transport])}", flush=True)
    if chosen.json:
        print(to_json(results))


if __name__ == "__main__":
    main()
