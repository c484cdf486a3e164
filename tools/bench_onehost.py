# SPDX-License-Identifier: Apache-2.0
"""Figures of a migration between two monitors of one host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from parmig.config import SendConfig
from parmig.engine.reporting.report import Report
from tools.bench_lab import MIB, QemuMachine, fill_random, initrd, median, migrate, migrate_by_commands, phases_median

STAYING_BYTES = 4 << 30
COPIED_BYTES = 2 << 30
UNIX = ("--transport", "unix")


def bench_onehost(runs: int, workers: int) -> dict[str, Any]:
    """Memory that stays in place, and memory that is copied."""
    return {
        "synthetic_in_place": _figures([_synthetic(workers, "512MiB") for _ in range(runs)]),
        "synthetic_all_touched": _figures([_synthetic(workers, "100%") for _ in range(runs)]),
        "qemu_in_place": _figures(_qemu(runs, workers)),
        **_copied(runs, workers),
    }


def _figures(reports: Sequence[Report]) -> dict[str, Any]:
    assert all(report.ram.in_place_bytes >= STAYING_BYTES for report in reports)
    return {
        "in_place_gib": round(reports[0].ram.in_place_bytes / (1 << 30), 2),
        "copied_mib": round(reports[0].ram.wire_bytes / MIB, 1),
        "total_ms": {"median": median([r.total_time_ms for r in reports]), "runs": [r.total_time_ms for r in reports]},
        "setup_ms": median([report.setup_time_ms for report in reports]),
        "downtime_ms": {
            "median": median([report.downtime_ms or 0.0 for report in reports]),
            "runs": [report.downtime_ms for report in reports],
        },
        "phases_median_ms": phases_median([report.downtime_phases_ms for report in reports]),
    }


def _synthetic(workers: int, touched: str) -> Report:
    """Its device state has 4 bytes for each page that it touches: 4 MiB if that are all."""
    guest = f"synthetic:memory=4GiB,touched={touched}"
    return migrate_by_commands(f"{guest},rate=100MiB/s", guest, SendConfig(workers=workers), *UNIX)


def _qemu(runs: int, workers: int) -> list[Report]:
    """A Linux guest that writes 20 MiB/s, in a QEMU that is replaced by another one on the same file."""
    reports = []
    with initrd() as image:
        for _ in range(runs):
            with QemuMachine(image, memory_bytes=STAYING_BYTES, rate=20) as source:
                file = f"memory-backend-file,id=ram0,size={STAYING_BYTES},share=on,mem-path={source.directory}/ram"
                memory = ["-machine", "pc,memory-backend=ram0", "-object", file]
                with QemuMachine(image, memory_bytes=STAYING_BYTES, memory=memory, incoming=True) as destination:
                    source.wait_for_serial("TICK 3")
                    reports.append(migrate(source, destination, SendConfig(workers=workers), options=UNIX))
                    destination.wait_for_ticks(1)
    return reports


def _copied(runs: int, workers: int) -> dict[str, Any]:
    """MiB/s of whole migrations without set-up, of a QEMU with random memory into one with a file of its own."""
    rates: dict[str, list[float]] = {"unix": [], "tcp": []}
    for _ in range(runs):
        for transport, values in rates.items():
            with (
                QemuMachine(memory_bytes=COPIED_BYTES) as source,
                QemuMachine(memory_bytes=COPIED_BYTES, incoming=True) as destination,
            ):
                fill_random(source, COPIED_BYTES, outside=True)
                options = ("--transport", transport)
                report = migrate(source, destination, SendConfig(workers=workers), options=options)
                assert report.ram.direct is (transport == "unix")
                values.append(COPIED_BYTES / MIB / (report.total_time_ms - report.setup_time_ms) * 1000)
    return {"copied_mib_per_s": {name: {"median": median(values), "runs": values} for name, values in rates.items()}}
