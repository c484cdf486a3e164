# SPDX-License-Identifier: Apache-2.0
"""Does a busy disk lengthen the pause? A Linux guest of 512 MiB that writes 20 MiB/s, in turns with and without reads.

usage: python -m tools.bench_disk [disk] [--runs 10] [--workers 2] [--json]

The disk is QEMU's ``null-co``, which answers each request after 1 ms; four readers with direct I/O keep it busy in
every second run. Pausing waits for requests in flight, so the pause may grow by the time of one of them.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from parmig.config import SendConfig
from parmig.engine.reporting.report import Report
from tests.qemu.disks import MODULES, build_disk_initrd
from tools.bench_lab import MIB, QemuMachine, median, migrate, phases_median, run_benches

ANSWER_NS = 1_000_000
DISK = (
    *("-blockdev", f"null-co,node-name=slow,size={256 * MIB},latency-ns={ANSWER_NS},read-zeroes=on"),
    *("-device", "virtio-blk-pci,drive=slow"),
)

INIT = rf"""#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc none /proc; mount -t devtmpfs none /dev; mkdir -p /t; mount -t tmpfs -o size=80% none /t
for name in {" ".join(Path(name).name for name in MODULES)}; do insmod /$name.ko; done
(while true; do dd if=/dev/urandom of=/t/hot bs=64k count=16 conv=notrunc 2>/dev/null; usleep 50000; done) &
if grep -q parmig.files=1 /proc/cmdline; then
    for reader in 0 1 2 3; do
        (while true; do dd if=/dev/vda of=/dev/null bs=64k iflag=direct 2>/dev/null; done) &
    done
fi
i=0
while true; do i=$((i+1)); echo TICK $i .; usleep 200000; done
"""


def bench_disk(runs: int, workers: int) -> dict[str, Any]:
    """Pauses beside an idle and beside a busy disk."""
    reports: dict[str, list[Report]] = {"idle": [], "busy": []}
    with tempfile.TemporaryDirectory(prefix="parmig-bench-") as directory:
        image = build_disk_initrd(Path(directory), INIT)
        for _ in range(runs):
            for busy, same_disk in enumerate(reports.values()):
                how: dict[str, Any] = {"memory_bytes": 512 * MIB, "rate": 20, "files": busy, "extra": DISK}
                with QemuMachine(image, **how) as source, QemuMachine(image, incoming=True, **how) as destination:
                    source.wait_for_serial("TICK 8 ")
                    same_disk.append(migrate(source, destination, SendConfig(workers=workers)))
    return {name: _figures(same_disk) for name, same_disk in reports.items()}


def _figures(reports: list[Report]) -> dict[str, Any]:
    downtimes = [report.downtime_ms or 0.0 for report in reports]
    settled = [round_.settle_ms for report in reports for round_ in report.rounds if not round_.paused]
    return {
        "downtime_ms": {"median": round(median(downtimes), 2), "runs": [round(downtime, 2) for downtime in downtimes]},
        "settle_median_ms": round(median(settled), 2),
        "phases_median_ms": phases_median([report.downtime_phases_ms for report in reports]),
    }


if __name__ == "__main__":
    run_benches(__doc__, {"disk": bench_disk}, runs=10, workers=2)
