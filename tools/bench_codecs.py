# SPDX-License-Identifier: Apache-2.0
"""Compression beside none, and beside QEMU's multifd with zstd.

usage: python -m tools.bench_codecs [changes|linux|loopback] [--runs 3] [--json]

- ``changes``: a guest rewrites a few bytes in each of 100 MiB of its pages every second, over 300 Mbit/s.
- ``linux``: a paused Linux guest whose memory holds sources and programs as page cache, over 1 Gbit/s: parmig with each
  choice, and QEMU's multifd with zstd. Needs a kernel, as the tests of QEMU do.
- ``loopback``: ``auto`` beside ``none`` without any limit, with random data and with text.

It runs in a network namespace of its own, whose loopback device has the rate of the link (tc-tbf). It needs root.
Contenders run in turns, and times are medians.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from parmig.config import SendConfig
from parmig.engine.reporting.report import Report
from parmig.errors import NotConvergingError
from parmig.guests.synthetic.options import parse_options
from parmig.guests.synthetic.synthetic_guest import SyntheticGuest
from parmig.ram.codecs.registry import choices
from parmig.units import MIB
from tests.qemu.machines import INIT, QemuMachine, pack_initrd, wait_until
from tools.bench_lab import median, migrate, migrate_guests, qemu_migrate, run_benches

_INSIDE = "PARMIG_BENCH_CODECS"
_SOURCES = ("/usr/lib/python3/dist-packages", "/usr/lib/python3.11", "/usr/share/perl", "/usr/include")
_SOURCE_BYTES = 120 * MIB
_MEMORY_BYTES = 640 * MIB


def _link(rate: str) -> None:
    """Give the loopback device of this namespace *rate*; empty: no limit."""
    subprocess.run(["tc", "qdisc", "del", "dev", "lo", "root"], check=False, stderr=subprocess.DEVNULL)
    if rate:
        limit = ["rate", rate, "burst", "256kb", "latency", "50ms"]
        subprocess.run(["tc", "qdisc", "add", "dev", "lo", "root", "tbf", *limit], check=True)


def _synthetic(options: str, config: SendConfig) -> Report:
    source = SyntheticGuest(parse_options(options))
    destination = SyntheticGuest(parse_options(options), incoming=True)
    with contextlib.closing(source), contextlib.closing(destination):
        return migrate_guests(source, destination, config)[0]


def changes(runs: int) -> dict[str, Any]:
    """Whether a guest whose pages change in a few bytes converges, and how long that takes."""
    _link("300mbit")
    results: dict[str, Any] = {}
    for choice in ("none", "zstd", "delta", "auto"):
        outcomes: list[str | float] = []
        for _ in range(runs):
            config = SendConfig(workers=2, compress=choice)
            try:
                report = _synthetic("memory=256MiB,touched=100MiB,rate=100MiB/s,pattern=sequential", config)
                outcomes.append(round(report.total_time_ms / 1000, 1))
            except NotConvergingError:
                outcomes.append("does not converge")
        results[choice] = outcomes
    return results


@contextlib.contextmanager
def _sources_initrd() -> Iterator[Path]:
    """An initrd with sources, and with a program beside them."""
    with tempfile.TemporaryDirectory(prefix="parmig-bench-") as directory:
        root = Path(directory) / "root"
        for name in ("bin", "proc", "dev", "src"):
            (root / name).mkdir(parents=True)
        shutil.copy(shutil.which("busybox") or "busybox", root / "bin" / "busybox")
        shutil.copy(shutil.which("qemu-system-x86_64") or sys.executable, root / "src" / "program")
        (root / "init").write_text(INIT)
        (root / "init").chmod(0o755)
        left = _SOURCE_BYTES
        files = (path for top in _SOURCES for path in sorted(Path(top).rglob("*.[pch]*")) if path.is_file())
        for number, path in enumerate(files):
            left -= path.stat().st_size
            if left < 0:
                break
            shutil.copy(path, root / "src" / f"{number}")
        yield pack_initrd(root, Path(directory) / "initrd")


def linux(runs: int) -> dict[str, Any]:
    """Seconds of whole migrations of a Linux guest, and how many times faster than QEMU's multifd zstd each is."""
    _link("1gbit")
    contenders = ["qemu zstd 2", *(f"parmig {choice}" for choice in choices())]
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    with _sources_initrd() as initrd:
        for _ in range(runs):
            for name in contenders:
                with (
                    QemuMachine(initrd, memory_bytes=_MEMORY_BYTES) as source,
                    QemuMachine(initrd, memory_bytes=_MEMORY_BYTES, incoming=True) as destination,
                ):
                    wait_until(lambda machine=source: len(machine.ticks()) > 2, "the guest's ticks", 90)  # type: ignore[misc]
                    source.ask("stop")
                    if name.startswith("qemu"):
                        for machine in (source, destination):
                            machine.ask("migrate-set-parameters", **{"multifd-compression": "zstd"})
                        seconds[name].append(qemu_migrate(source, destination, 2)["wall_ms"] / 1000)
                    else:
                        options = ["--compress", name.split()[1]]
                        report = migrate(source, destination, SendConfig(workers=2), options=options)
                        seconds[name].append(report.total_time_ms / 1000)
    medians = {name: median(times) for name, times in seconds.items()}
    return {
        name: {"seconds": round(value, 2), "times_faster": round(medians[contenders[0]] / value, 2)}
        for name, value in medians.items()
    }


def loopback(runs: int) -> dict[str, Any]:
    """MiB/s of round 1 without a limit, and ``auto`` over ``none``."""
    _link("")
    results: dict[str, Any] = {}
    for fill in ("random", "text"):
        for workers in (1, 2):
            rates: dict[str, list[float]] = {"none": [], "auto": []}
            for _ in range(runs):
                for choice, found in rates.items():
                    config = SendConfig(workers=workers, compress=choice)
                    found.append(_synthetic(f"memory=1GiB,rate=0,fill={fill}", config).throughput_mib_per_s)
            medians = {choice: median(found) for choice, found in rates.items()}
            results[f"{fill}, {workers} workers"] = {
                **{choice: round(value) for choice, value in medians.items()},
                "auto_over_none": round(medians["auto"] / medians["none"], 3),
            }
    return results


if __name__ == "__main__":
    if _INSIDE not in os.environ:
        os.environ[_INSIDE] = "1"
        os.execvp("unshare", ["unshare", "--net", sys.executable, "-m", "tools.bench_codecs", *sys.argv[1:]])
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    run_benches(__doc__, {"changes": changes, "linux": linux, "loopback": loopback}, runs=3)
