# SPDX-License-Identifier: Apache-2.0
"""How well several paths are filled, in the network lab (:mod:`parmig.experiments.netlab`).

usage: python -m tools.bench_paths [--links 1Gbit,500Mbit,250Mbit,250Mbit] [--transport tcp] [--runs 3] [--json]

A synthetic guest with random data, which writes nothing, moves over each link alone and then over all of them. The rate
is that of round 1, and "share" is the rate over all links divided by the sum of the links alone. Runs take turns,
and rates are medians. With ``--lose 2`` the last link is cut two seconds after round 1 began, and "ideal" is the
duration of round 1 if the other links went on at their rates from that instant on. It needs root.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from parmig.engine.reporting.report import Report
from parmig.experiments.netlab import Lab, Line, Link, open_lab
from parmig.units import MIB, format_bit_rate
from tools.bench_lab import LIMIT_S, describe_host, median, to_json
from tools.netlab import parse_line

ALONE_S = 3
"""How long the guest takes that moves over a single link."""


def move(lab: Lab, links: Sequence[Link], options: Sequence[str], guest: str, lose_s: float = 0) -> Report:
    """The source's report of one migration from the first host to the second over *links*.

    Args:
        lose_s: cut the last link so long after round 1 began; 0: never.
    """
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
        send = source.command(*parmig, "send", uri, "--guest", guest, *paths, *options, "--json")
        with subprocess.Popen(send, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as sender:
            assert sender.stderr is not None
            if lose_s:
                next(line for line in sender.stderr if "active, round 1" in line)
                time.sleep(lose_s)
                links[-1].cut()
            output, _ = sender.communicate(timeout=LIMIT_S)
        report = msgspec.json.decode(output, type=Report)
        if report.error is not None:
            receiver.terminate()  # it would wait for the next sender
        receiver.communicate(timeout=LIMIT_S)
    report.raise_for_status()
    return report


def lose_one(lines: Sequence[Line], transport: str, memory: str, runs: int, lose_s: float) -> dict[str, Any]:
    """How long round 1 takes when the last link is lost, beside the ideal, in seconds."""
    guest, took, ideal = f"synthetic:memory={memory},rate=0,fill=random", [], []
    options = ["--transport", transport, "--workers", str(len(lines))]
    for _ in range(runs):
        with open_lab(lines) as lab:
            whole = move(lab, lab.links, options, guest)
            report = move(lab, lab.links, options, guest, lose_s)
        size_mib, rate = whole.ram.total_bytes / MIB, whole.throughput_mib_per_s
        left = 1 - lines[-1].rate_bytes_per_s / sum(line.rate_bytes_per_s for line in lines)
        ideal.append(lose_s + (size_mib - lose_s * rate) / (rate * left))
        took.append(report.rounds[0].duration_ms / 1000)
    return {
        "seconds": round(median(took), 2),
        "ideal_seconds": round(median(ideal), 2),
        "over_ideal": round(median([one / best for one, best in zip(took, ideal, strict=True)]), 3),
    }


def measure(lines: Sequence[Line], transport: str, workers: int, memory: str, runs: int) -> dict[str, Any]:
    """Rates in MiB/s over each link alone and over all, and the share of the sum."""
    guest = "synthetic:memory={},rate=0,fill=random"
    alone: dict[Line, list[float]] = {line: [] for line in lines}
    together: list[float] = []
    with open_lab(lines) as lab:
        for _ in range(runs):
            for line, rates in alone.items():
                link = next(link for link in lab.links if link.line == line)
                size_bytes = line.rate_bytes_per_s * ALONE_S // MIB * MIB
                options = ["--transport", transport, "--workers", "1"]
                rates.append(move(lab, [link], options, guest.format(size_bytes)).throughput_mib_per_s)
            options = ["--transport", transport, "--workers", str(workers)]
            report = move(lab, lab.links, options, guest.format(memory))
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
    parser.add_argument("--lose", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    lines = [parse_line(rate) for rate in chosen.links.split(",")]
    results: dict[str, Any] = {"host": describe_host()}
    for transport in chosen.transport.split(","):
        if chosen.lose:
            results[transport] = lose_one(lines, transport, chosen.memory, chosen.runs, chosen.lose)
        else:
            workers = chosen.workers or len(lines)
            results[transport] = measure(lines, transport, workers, chosen.memory, chosen.runs)
        if not chosen.json:
            print(f"{transport}: {to_json(results[transport])}", flush=True)
    if chosen.json:
        print(to_json(results))


if __name__ == "__main__":
    main()
