# SPDX-License-Identifier: Apache-2.0
"""Figures of a migration: pause of a working Linux guest, sparse guests, memory beyond the guest, scan time.

usage: python -m tools.bench_migration [BENCH|all] [--runs 5] [--workers 2] [--json]

pause   Linux guest of 512 MiB writing 20 MiB/s under QEMU: pause to resume by parmig and, in turns, by QEMU itself
kvm     KVM guest of 256 MiB with 2 vCPUs writing 20 MiB/s at random: pause to resume, and its phases (7 runs at least)
sparse  a 16 GiB guest of which 512 MiB was touched beside a 512 MiB guest, both wholly random
terabyte  a guest of 1 TiB of which 512 MiB was touched: time, pause, memory and page tables beyond the guest
memory  Pss of parmig's processes without guest memory, at its highest, a side
scan    a clean dirty scan of 1 GiB by one worker
rate    2 GiB synthetic guest at rest, by number of workers
onehost a guest of 4 GiB whose memory stays in place, synthetic and QEMU: time, pause and phases; and 2 GiB of a QEMU
        that are copied, from memory to memory and over tcp in turns
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from parmig.config import SendConfig
from parmig.engine.reporting.report import DowntimePhases, Report
from parmig.guests.registry import open_guest
from parmig.linux import uffd
from parmig.ram.blocks import PAGE_BYTES, BlockMemory, RamBlock
from parmig.ram.dirty_log import DirtyLog, Segment
from parmig.ram.dirty_scanner import DirtyScanner
from parmig.ram.reach.mapped import BlockMapping
from parmig.ram.regions import cut
from parmig.ram.shared import SharedArea
from parmig.ram.trackers.pagemap import PagemapTracker
from tools.bench_lab import (
    MIB,
    QemuMachine,
    initrd,
    median,
    migrate,
    migrate_by_commands,
    migrate_guests,
    phases_median,
    qemu_migrate,
    run_benches,
)
from tools.bench_onehost import bench_onehost


def bench_pause(runs: int, workers: int) -> dict[str, Any]:
    """Downtimes of a Linux guest that writes 20 MiB/s, moved by parmig and by QEMU in turns."""
    parmig_ms: list[float] = []
    qemu_ms: list[float] = []
    phases: list[DowntimePhases] = []
    how: dict[str, Any] = {"memory_bytes": 512 * MIB, "rate": 20}
    with initrd() as image:
        for _ in range(runs):
            with QemuMachine(image, **how) as source, QemuMachine(image, incoming=True, **how) as destination:
                source.wait_for_serial("TICK 3")
                report = migrate(source, destination, SendConfig(workers=workers))
                destination.wait_for_ticks(1)
                parmig_ms.append(report.downtime_ms or 0.0)
                phases.append(report.downtime_phases_ms)
            with QemuMachine(image, **how) as source, QemuMachine(image, incoming=True, **how) as destination:
                source.wait_for_serial("TICK 3")
                qemu_ms.append(float(qemu_migrate(source, destination, 0)["downtime"]))
    return {
        "parmig_downtime_ms": {"median": median(parmig_ms), "runs": parmig_ms},
        "qemu_downtime_ms": {"median": median(qemu_ms), "runs": qemu_ms},
        "parmig_phases_median_ms": phases_median(phases),
    }


def bench_kvm(runs: int, workers: int) -> dict[str, Any]:
    """Downtimes of a KVM guest under moderate load, by phases."""
    guest = "kvm:memory=256MiB,vcpus=2"
    source = f"{guest},program=random,rate=20MiB/s"
    reports = [migrate_by_commands(source, guest, SendConfig(workers=workers)) for _ in range(max(7, runs))]
    downtimes = [report.downtime_ms or 0.0 for report in reports]
    return {
        "downtime_ms": {"median": round(median(downtimes), 2), "runs": [round(downtime, 2) for downtime in downtimes]},
        "phases_median_ms": phases_median([report.downtime_phases_ms for report in reports]),
        "pages_in_the_pause": [
            sum(round_.sent_pages for round_ in report.rounds if round_.paused) for report in reports
        ],
        "total_time_ms": round(median([report.total_time_ms for report in reports]), 1),
    }


def bench_sparse(runs: int, workers: int) -> dict[str, Any]:
    """Time of a 16 GiB guest with 512 MiB touched over that of a 512 MiB guest."""
    times: dict[str, list[float]] = {"512 MiB": [], "16 GiB": []}
    for _ in range(runs):
        for name, options in (("512 MiB", "memory=512MiB"), ("16 GiB", "memory=16GiB,touched=512MiB")):
            with (
                open_guest(f"synthetic:{options},rate=0", incoming=False) as source,
                open_guest(f"synthetic:{options},rate=0", incoming=True) as destination,
            ):
                report, _arrived = migrate_guests(source, destination, SendConfig(workers=workers))
                times[name].append(report.total_time_ms)
    medians = {name: round(median(values), 1) for name, values in times.items()}
    return {"total_time_ms": medians, "ratio": round(medians["16 GiB"] / medians["512 MiB"], 2)}


def overhead_bytes(pids: list[int], guest_names: tuple[str, ...]) -> int:
    """Pss of *pids* without the mappings whose name holds one of *guest_names*."""
    total = 0
    for pid in pids:
        counting = True
        try:
            lines = Path(f"/proc/{pid}/smaps").read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            if "-" in line.split(" ", 1)[0] and not line.split(" ", 1)[0].endswith(":"):
                counting = not any(name in line for name in guest_names)
            elif line.startswith("Pss:") and counting:
                total += int(line.split()[1]) * 1024
    return total


def table_bytes(pids: list[int]) -> int:
    """Page tables of *pids*, without those of the upper levels."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmPTE:"))
    return total


def watch_peaks(peaks: dict[str, int], sender: Any, receiver: Any) -> None:
    """Note the highest Pss and page tables beyond the guest, until the migration has ended.

    "everything else" is both coordinators, both guests and the fork server. Their page tables are the guests'.
    """
    while not sender._plan or not sender._plan.machine.ended:
        groups = {
            "send workers": sender._pool.pids(),
            "receive workers": receiver._pool.pids(),
            "everything else": [os.getpid(), *(child.pid for child in psutil.Process().children())],
        }
        now = {name: overhead_bytes(pids, ("memfd:parmig-ram",)) for name, pids in groups.items()}
        for name in ("send workers", "receive workers"):
            now[f"page tables of {name}"] = table_bytes(groups[name])
        for name, size_bytes in now.items():
            peaks[name] = max(peaks.get(name, 0), size_bytes)
        time.sleep(0.05)


def bench_terabyte(runs: int, workers: int) -> dict[str, Any]:
    """A guest of 1 TiB of which 512 MiB was touched."""
    reports: list[Report] = []
    peaks: dict[str, int] = {}
    for run in range(runs + 1):
        with (
            open_guest("synthetic:memory=1TiB,touched=512MiB,rate=0", incoming=False) as source,
            open_guest("synthetic:memory=1TiB,touched=512MiB,rate=0", incoming=True) as destination,
        ):
            watch = functools.partial(watch_peaks, peaks) if run == runs else None  # watching costs time
            reports.append(migrate_guests(source, destination, SendConfig(workers=workers), watch)[0])
    timed = reports[:runs]
    return {
        "total_time_ms": {"median": round(median([report.total_time_ms for report in timed]), 1)},
        "downtime_ms": {
            "median": round(median([report.downtime_ms or 0.0 for report in timed]), 1),
            "runs": [round(report.downtime_ms or 0.0, 1) for report in timed],
        },
        "phases_median_ms": phases_median([report.downtime_phases_ms for report in timed]),
        "mib": {name: round(value / MIB, 1) for name, value in peaks.items()},
    }


def bench_memory(runs: int, workers: int) -> dict[str, Any]:
    """The highest Pss beyond the guest, by :func:`watch_peaks`."""
    peaks: dict[str, int] = {}
    watch = functools.partial(watch_peaks, peaks)
    memory = "memory=1GiB,rate=50MiB/s"
    for _ in range(runs):
        with (
            open_guest(f"synthetic:{memory}", incoming=False) as source,
            open_guest(f"synthetic:{memory}", incoming=True) as destination,
        ):
            limited = SendConfig(workers=workers, max_bandwidth_bytes_per_s=500 * MIB)
            migrate_guests(source, destination, limited, watch)
    return {
        "workers": workers,
        "mib": {name: round(value / MIB, 1) for name, value in peaks.items()},
        "allowed_mib_a_side": 64 + 32 * workers,
    }


def bench_scan(runs: int, _workers: int) -> dict[str, Any]:
    """Milliseconds of a clean scan of 1 GiB of populated memory, by one DirtyScanner."""
    size = 1 << 30
    block = RamBlock("ram0", size)
    fd = os.memfd_create("bench")
    os.ftruncate(fd, size)
    mapping = BlockMapping(BlockMemory(block, fd))
    mapping.words[:, 0] = 1
    tracking_fd = uffd.create()
    uffd.enable(tracking_fd, uffd.UFFD_TRACKING_FEATURES)
    address = mapping.pages.ctypes.data
    uffd.register_wp(tracking_fd, address, size)
    log = DirtyLog("pagemap", os.getpid(), ((Segment(0, block.pages, address),),))
    regions = cut([block], 16 * MIB // PAGE_BYTES)
    shared = SharedArea(-1, workers=1, blocks=[block], regions=len(regions))
    scanner = DirtyScanner(regions, [mapping], PagemapTracker(log, [block]), shared)
    everything = list(range(len(regions)))
    for scanned in scanner.find(everything, first_pass=True):
        assert scanned.num_dirty_pages
    times = [_timed(lambda: list(scanner.find(everything, first_pass=False))) for _ in range(20 * runs)]
    mapping.words[np.random.default_rng(1).choice(block.pages, block.pages // 100, replace=False), 1] = 7
    dirty = _timed(lambda: list(scanner.find(everything, first_pass=False)))
    os.close(tracking_fd)
    return {"clean_1gib_ms": round(median(times), 2), "one_percent_dirty_ms": round(dirty, 2)}


def _timed(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return (time.perf_counter() - began) * 1000


def bench_rate(runs: int, _workers: int) -> dict[str, Any]:
    """MiB/s of round 1 of a 2 GiB synthetic guest with random data at rest."""
    rates: dict[int, list[float]] = {1: [], 2: [], 4: []}
    for _ in range(runs):
        for count in rates:
            with (
                open_guest("synthetic:memory=2GiB,rate=0", incoming=False) as source,
                open_guest("synthetic:memory=2GiB,rate=0", incoming=True) as destination,
            ):
                rates[count].append(
                    migrate_guests(source, destination, SendConfig(workers=count))[0].throughput_mib_per_s
                )
    return {"round_1_mib_per_s": {str(count): round(median(values)) for count, values in rates.items()}}


BENCHES = {
    "pause": bench_pause,
    "kvm": bench_kvm,
    "sparse": bench_sparse,
    "terabyte": bench_terabyte,
    "memory": bench_memory,
    "scan": bench_scan,
    "rate": bench_rate,
    "onehost": bench_onehost,
}


if __name__ == "__main__":
    run_benches(__doc__, BENCHES, runs=5, workers=2)
