# SPDX-License-Identifier: Apache-2.0
"""What watching a migration costs: a synthetic guest moves over loopback, watched and unwatched in turns.

Watched: with ``--events FILE --metrics ADDRESS:PORT``, and the metrics are read each second. Each side has a core of
its own, as two hosts would.

usage: python -m tools.bench_observing [moves] [--runs 15] [--mib 1024] [--keep FILE]
       python -m tools.bench_observing held [--runs 4]
       python -m tools.bench_observing status [--mib 2048]

``moves`` prints medians of the rate of round 1 and of the pause, and what watching changes: the median of the
differences of each turn, with an interval of 95 % by bootstrap. ``--keep`` appends the turns to a file and counts all
that are there, so that a long measurement can be made in pieces.

``held`` prints the share of a core that the command ``parmig send`` itself takes while its migration waits for the
switchover, in the same way. The command does all the watching, and none of the sending. So this bounds what watching
takes from the rate, also on a machine where the rates of two runs differ by more. Rounds are shortest then, so there
are more events than while a guest moves.

``status`` asks a command how far it is each 20 ms, as ``parmig status`` does, while it sends at full rate, and prints
how long the answers take.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

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
HELD_S = 8.0
NAME = "bench-observing"


class Cost(msgspec.Struct):
    """One migration: MiB/s of round 1, and milliseconds of pause."""

    rate: float
    pause_ms: float


class Turn(msgspec.Struct):
    """Two migrations, one after the other."""

    unwatched: Cost
    watched: Cost


def move(memory_mib: int, options: Sequence[str]) -> Cost:
    """What one migration with more *options* of ``parmig send`` costs."""
    guest = f"synthetic:memory={memory_mib}MiB"
    with two_sides(pinned=True) as sides:
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
        return Cost(report.throughput_mib_per_s, report.downtime_ms)


def move_watched(memory_mib: int) -> Cost:
    """The same, watched."""
    with watching() as options:
        return move(memory_mib, options)


@contextlib.contextmanager
def watching() -> Iterator[list[str]]:
    """Options of ``parmig send`` whose events and metrics are taken in the context."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with tempfile.TemporaryDirectory() as directory, _scraping(f"http://{address}/metrics"):
        yield ["--events", str(Path(directory, "events")), "--metrics", address]


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


def held_percent(options: Sequence[str]) -> float:
    """The share of a core that ``parmig send`` takes while it waits for its switchover."""
    parmig = [sys.executable, "-m", "parmig"]
    guest = "synthetic:memory=256MiB"
    receive = [*parmig, "receive", "--listen", "tcp://127.0.0.1:0", "--guest", guest]
    pipe, null = subprocess.PIPE, subprocess.DEVNULL
    with subprocess.Popen(receive, stdout=null, stderr=pipe, text=True) as receiver:
        assert receiver.stderr is not None
        uri = next(line.split()[-1] for line in receiver.stderr if "listening on" in line)
        send = [*parmig, "send", uri, "--guest", f"{guest},rate={DIRTY_RATE}", "--switchover", "manual", *options]
        with subprocess.Popen([*send, "--name", NAME, "--quiet"], stdout=null, stderr=null) as sender:
            _await_round(2)
            process = psutil.Process(sender.pid)
            before, began = process.cpu_times(), time.monotonic()
            time.sleep(HELD_S)
            after, ended = process.cpu_times(), time.monotonic()
            sender.terminate()
        receiver.communicate(timeout=60)
    used_s: float = after.user + after.system - before.user - before.system
    return 100 * used_s / (ended - began)


def _await_round(number: int) -> None:
    """Wait until the command is in round *number*."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(ParmigError), SteeringClient(NAME) as client:
            if client.status().round >= number:
                return
        time.sleep(ASK_S)
    raise TimeoutError(f"the command is not in round {number} after 60 s")


def bench_held(runs: int) -> dict[str, object]:
    """The shares of both, and their difference."""
    shares: dict[bool, list[float]] = {False: [], True: []}
    for number in range(runs):
        for watched in (False, True) if number % 2 == 0 else (True, False):
            with contextlib.ExitStack() as stack:
                options = stack.enter_context(watching()) if watched else []
                shares[watched].append(held_percent(options))
    pairs = zip(shares[False], shares[True], strict=True)
    return {
        "turns": runs,
        "unwatched_percent": round(median(shares[False]), 2),
        "watched_percent": round(median(shares[True]), 2),
        "change_percent": _change([after - before for before, after in pairs]),
    }


def bench_status(memory_mib: int) -> dict[str, float]:
    """Milliseconds that a command takes to say how far it is, while it sends at full rate."""
    took_ms: list[float] = []
    ended = threading.Event()

    def ask() -> None:
        while not ended.is_set():
            with contextlib.suppress(ParmigError), SteeringClient(NAME) as client:
                while not ended.wait(ASK_S):
                    began = time.monotonic()
                    status = client.status()
                    if status.status == "active" and status.round >= 1:
                        took_ms.append((time.monotonic() - began) * 1000)
            time.sleep(ASK_S)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        cost = move(memory_mib, ["--name", NAME])
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
    parser.add_argument("bench", nargs="?", default="moves", choices=["moves", "held", "status"])
    parser.add_argument("--runs", type=int)
    parser.add_argument("--mib", type=int)
    parser.add_argument("--keep", type=Path)
    chosen = parser.parse_args()
    figures: object
    if chosen.bench == "status":
        figures = bench_status(chosen.mib or 2048)
    elif chosen.bench == "held":
        figures = bench_held(chosen.runs or 4)
    else:
        figures = bench_watching(15 if chosen.runs is None else chosen.runs, chosen.mib or 1024, chosen.keep)
    print(to_json({"host": describe_host(), "figures": figures}))


if __name__ == "__main__":
    main()
