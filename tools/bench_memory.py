# SPDX-License-Identifier: Apache-2.0
"""Does it matter what memory a QEMU has? Moves of the same guest in private memory and in a shared file, in turns.

usage: python -m tools.bench_memory [rate|pause|all] [--runs 5] [--workers 2] [--json]

rate    2 GiB of random data, a guest that never ran: MiB/s without and with the set-up, and seconds of processor time;
        memory of the host warm (taken in small and in huge pages, and given back right before) and cold
pause   Linux guest of 512 MiB that writes 20 MiB/s, with a disk and a network device: between the monitors' own STOP
        and RESUME events, and as the report has it; device state is taken in either way where memory is shared

PARMIG_QEMU chooses another QEMU.
"""

from __future__ import annotations

import contextlib
from typing import Any

from parmig.config import SendConfig
from parmig.experiments.free_memory import MORE_BYTES, cold_memory
from parmig.experiments.sides import two_sides
from parmig.units import NS_PER_MS
from tools.bench_lab import (
    MIB,
    QemuMachine,
    fill_random,
    initrd,
    median,
    migrate_by_commands,
    phases_median,
    run_benches,
)

RATE_BYTES = 2048 * MIB
PAUSE_BYTES = 512 * MIB
PRIVATE = ["-machine", "pc"]
DEVICES = (
    *("-blockdev", f"null-co,node-name=disk,size={256 * MIB},read-zeroes=on", "-device", "virtio-blk-pci,drive=disk"),
    *("-netdev", "hubport,hubid=0,id=net", "-device", "virtio-net-pci,netdev=net"),
)
WAYS = {
    "private": (PRIVATE, "devices"),
    "shared file": (None, "devices"),
    "shared file, state=migrate": (None, "migrate"),
}


def bench_rate(runs: int, workers: int) -> dict[str, Any]:
    """MiB/s by kind of memory, that of private memory over that of the file, and what the sides' processes took."""
    rates: dict[str, list[float]] = {}
    spent: dict[str, list[float]] = {}
    for _ in range(runs):
        for condition in ("warm", "cold"):
            for name in ("private", "shared file"):
                memory, state = WAYS[name]
                how: dict[str, Any] = {"memory_bytes": RATE_BYTES, "memory": memory}
                with QemuMachine(**how) as source, QemuMachine(incoming=True, **how) as destination:
                    fill_random(source, RATE_BYTES - 16 * MIB, first_byte=MIB)
                    here, there = (f"qemu:{side.socket},state={state}" for side in (source, destination))
                    cold = cold_memory(RATE_BYTES + MORE_BYTES) if condition == "cold" else contextlib.nullcontext()
                    with two_sides(pinned=False) as sides, cold:
                        report = migrate_by_commands(
                            here,
                            there,
                            SendConfig(workers=workers),
                            touch_bytes=RATE_BYTES + MORE_BYTES if condition == "warm" else 0,
                            touch_huge=True,
                            enter_source=sides.source.entered,
                            enter_destination=sides.destination.entered,
                        )
                        for side, used in zip(("source", "destination"), sides, strict=True):
                            spent.setdefault(f"{name}, {condition}, {side}", []).append(used.processor_s() or 0.0)
                for label, milliseconds in (
                    ("without set-up", report.total_time_ms - report.setup_time_ms),
                    ("with set-up", report.total_time_ms),
                ):
                    rates.setdefault(f"{name}, {condition}, {label}", []).append(RATE_BYTES / MIB / milliseconds * 1000)
    medians = {name: round(median(values)) for name, values in rates.items()}
    ratios = {
        rest: round(medians[f"private, {rest}"] / medians[f"shared file, {rest}"], 2)
        for rest in (name.removeprefix("private, ") for name in medians if name.startswith("private"))
    }
    return {
        "mib_per_s": medians,
        "private_over_shared_file": ratios,
        "processor_s_per_gib": {
            name: round(median(values) * 1024 * MIB / RATE_BYTES, 2) for name, values in spent.items()
        },
        "runs": rates,
    }


def bench_pause(runs: int, workers: int) -> dict[str, Any]:
    """Pauses by kind of memory and way of device state."""
    downtimes: dict[str, list[float]] = {name: [] for name in WAYS}
    events: dict[str, list[float]] = {name: [] for name in WAYS}
    phases: dict[str, list[Any]] = {name: [] for name in WAYS}
    with initrd() as image:
        for _ in range(runs):
            for name, (memory, state) in WAYS.items():
                how: dict[str, Any] = {"memory_bytes": PAUSE_BYTES, "memory": memory, "rate": 20, "extra": DEVICES}
                with QemuMachine(image, **how) as source, QemuMachine(image, incoming=True, **how) as destination:
                    source.wait_for_serial("TICK 3")
                    stopped, ran = source.listen("STOP"), destination.listen("RESUME")
                    here, there = (f"qemu:{side.socket},state={state}" for side in (source, destination))
                    report = migrate_by_commands(here, there, SendConfig(workers=workers))
                    events[name].append((ran.get(1).at_ns - stopped.get(1).at_ns) / NS_PER_MS)
                    destination.wait_for_ticks(1)
                downtimes[name].append(report.downtime_ms or 0.0)
                phases[name].append(report.downtime_phases_ms)
    return {
        name: {
            "stop_to_resume_event_ms": {"median": round(median(events[name]), 2), "worst": round(max(events[name]), 2)},
            "downtime_ms": {"median": round(median(downtimes[name]), 2), "worst": round(max(downtimes[name]), 2)},
            "phases_median_ms": phases_median(phases[name]),
        }
        for name in WAYS
    }


BENCHES = {"rate": bench_rate, "pause": bench_pause}


if __name__ == "__main__":
    run_benches(__doc__, BENCHES, runs=5, workers=2)
