# SPDX-License-Identifier: Apache-2.0
"""What watching a migration costs: a synthetic guest moves over loopback, watched and unwatched in turns.

Watched: with ``--events FILE --metrics ADDRESS:PORT``, and the metrics are read each second. Each side has a core of
its own, as two hosts would.

usage: python -m tools.bench_observing [--runs 15] [--mib 1024] [--keep FILE]   # cost of events and metrics
       python -m tools.bench_observing --status [--mib 2048]                    # how fast a command answers

The first prints medians, and what watching changes: the median of the differences of each turn, with an interval of
95 % by bootstrap. ``--keep`` appends the turns to a file and counts all that are there, so that a long measurement can
be made in pieces.

rate             MiB/s of round 1
pause_ms         of the guest
command_percent  share of a core that the command ``parmig send`` itself takes after its set-up, without its workers. It
                 watches for all of them. So it bounds what watching takes from the rate, also where the rates of two
                 runs on a shared machine differ by more.

The second asks a command how far it is each 20 ms, as ``parmig status`` does, and prints how long the answers take.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import psutil

from parmig.config import SendConfig
from parmig.engine.steering.steering_client import SteeringClient
from parmig.errors import ParmigError
from parmig.experiments.free_memory import MORE_BYTES
from parmig.experiments.sides import two_sides
from parmig.experiments.table import Figure, interval
from tools.bench_lab import MIB, describe_host, median, migrate_by_commands, to_json

DIRTY_RATE = "20MiB/s"
SCRAPE_S = 1.0
ASK_S = 0.02
SAMPLE_S = 0.02


class Cost(msgspec.Struct):
    """One migration; see above."""

    rate: float
    pause_ms: float
    command_percent: float


class Turn(msgspec.Struct):
    """Two migrations, one after the other."""

    unwatched: Cost
    watched: Cost


def move(memory_mib: int, options: Sequence[str]) -> Cost:
    """What one migration with more *options* of ``parmig send`` costs."""
    guest = f"synthetic:memory={memory_mib}MiB"
    with two_sides(pinned=True) as sides, _sampling() as samples:
        report = migrate_by_commands(
            f"{guest},rate={DIRTY_RATE}",
            guest,
            SendConfig(workers=2),
            *options,
            touch_bytes=memory_mib * MIB + MORE_BYTES,
            enter_source=sides.source.entered,
            enter_destination=sides.destination.entered,
        )
        assert report.downtime_ms is not None
    sent_s = (report.total_time_ms - (report.setup_time_ms or 0)) / 1000
    last = samples[-1]
    first = next(sample for sample in samples if sample.at_s >= last.at_s - sent_s)
    share = (last.used_s - first.used_s) / (last.at_s - first.at_s)
    return Cost(report.throughput_mib_per_s, report.downtime_ms, 100 * share)


class Sample(NamedTuple):
    """Processor time of a process so far, and when it was read."""

    at_s: float
    used_s: float


@contextlib.contextmanager
def _sampling() -> Iterator[list[Sample]]:
    """What ``parmig send`` itself, a child of this process, has used, as long as it runs in the context."""
    samples: list[Sample] = []
    ended = threading.Event()

    def sample() -> None:
        command = None
        while not ended.wait(SAMPLE_S):
            with contextlib.suppress(psutil.Error):
                command = command or next((one for one in psutil.Process().children() if "send" in one.cmdline()), None)
                if command is not None:
                    used = command.cpu_times()
                    samples.append(Sample(time.monotonic(), used.user + used.system))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()


def move_watched(memory_mib: int) -> Cost:
    """The same, watched."""
    with tempfile.TemporaryDirectory() as directory, socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
        free.close()
        with _scraping(f"http://{address}/metrics"):
            return move(memory_mib, ["--events", str(Path(directory, "events")), "--metrics", address])


@contextlib.contextmanager
def _scraping(url: str) -> Iterator[None]:
    """Read *url* each second in the context, as Prometheus would."""
    ended = threading.Event()

    def scrape() -> None:
        while not ended.wait(SCRAPE_S):
            with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=SCRAPE_S) as answer:
                answer.read()

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def bench_watching(runs: int, memory_mib: int, keep: Path | None) -> dict[str, object]:
    """The figures of *runs* more turns, and of those in the file *keep*."""
    turns = [] if keep is None or not keep.exists() else [_turn(line) for line in keep.read_bytes().splitlines()]
    for number in range(runs):
        if number % 2:  # the second one may find the host otherwise than the first
            watched, unwatched = move_watched(memory_mib), move(memory_mib, [])
        else:
            unwatched, watched = move(memory_mib, []), move_watched(memory_mib)
        turns.append(Turn(unwatched, watched))
        if keep is not None:
            with keep.open("ab") as file:
                file.write(msgspec.json.encode(turns[-1]) + b"\n")
    return {
        "turns": len(turns),
        "unwatched": _medians([turn.unwatched for turn in turns]),
        "watched": _medians([turn.watched for turn in turns]),
        "rate_percent": _change([100 * (turn.watched.rate / turn.unwatched.rate - 1) for turn in turns]),
        "pause_ms": _change([turn.watched.pause_ms - turn.unwatched.pause_ms for turn in turns]),
        "command_percent": _change([turn.watched.command_percent - turn.unwatched.command_percent for turn in turns]),
    }


def _turn(line: bytes) -> Turn:
    return msgspec.json.decode(line, type=Turn)


def _medians(costs: Sequence[Cost]) -> dict[str, float]:
    return {name: round(median([getattr(cost, name) for cost in costs]), 2) for name in Cost.__struct_fields__}


def _change(values: Sequence[float]) -> dict[str, float | None]:
    figure: Figure = interval(values)
    ends = {"low": figure.low, "high": figure.high}
    return {"median": round(figure.median, 3)} | {
        name: None if end is None else round(end, 3) for name, end in ends.items()
    }


def bench_status(memory_mib: int) -> dict[str, float]:
    """Milliseconds that a command takes to say how far it is, while it sends at full rate."""
    took_ms: list[float] = []
    ended = threading.Event()

    def ask() -> None:
        while not ended.is_set():
            with contextlib.suppress(ParmigError), SteeringClient("observed") as client:
                while not ended.wait(ASK_S):
                    began = time.monotonic()
                    status = client.status()
                    if status.status == "active" and status.round >= 1:
                        took_ms.append((time.monotonic() - began) * 1000)
            time.sleep(ASK_S)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        cost = move(memory_mib, ["--name", "observed"])
    finally:
        ended.set()
        thread.join()
    ranked = sorted(took_ms)
    return {
        "answers": len(ranked),
        "median_ms": round(median(ranked), 2),
        "ninth_decile_ms": round(ranked[len(ranked) * 9 // 10], 2),
        "worst_ms": round(ranked[-1], 2),
        "mib_per_s": round(cost.rate),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--mib", type=int)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--status", action="store_true")
    chosen = parser.parse_args()
    figures: object
    if chosen.status:
        figures = bench_status(chosen.mib or 2048)
    else:
        figures = bench_watching(chosen.runs, chosen.mib or 1024, chosen.keep)
    print(to_json({"host": describe_host(), "figures": figures}))


if __name__ == "__main__":
    main()
