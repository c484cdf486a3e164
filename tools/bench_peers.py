# SPDX-License-Identifier: Apache-2.0
"""parmig beside QEMU's own multifd migration: 2 GiB of random data, a paused guest, loopback, the same memory files.

usage: python -m tools.bench_peers [--memory-mib 2048] [--rounds 5] [--channels 1,2,4] [--workers 1,2,4] [--json]

Every round runs each contender once, in turns, so that a change of the machine's load hits all alike. The rate is
guest bytes over the time from "go" to "completed"; parmig's is given with and without its set-up (starting worker
processes), QEMU's has its set-up in it. PARMIG_QEMU chooses another QEMU.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

from parmig.config import SendConfig
from tools.bench_lab import MIB, QemuMachine, describe_host, fill_random, median, migrate, qemu_migrate, to_json


def contend(name: str, count: int, memory_bytes: int, source: Any) -> dict[str, float]:
    """One migration of *source* to a fresh destination; the source can go again afterwards."""
    touch_bytes = memory_bytes + 512 * MIB
    with QemuMachine(memory_bytes=memory_bytes, incoming=True) as destination:
        if name == "qemu":
            migration = qemu_migrate(source, destination, count, touch_bytes=touch_bytes)
            seconds = setup = migration["wall_ms"] / 1000
        else:
            report = migrate(source, destination, SendConfig(workers=count), touch_bytes=touch_bytes)
            setup = report.total_time_ms / 1000
            seconds = (report.total_time_ms - report.setup_time_ms) / 1000
        return {"mib_per_s": memory_bytes / MIB / seconds, "with_setup_mib_per_s": memory_bytes / MIB / setup}


def main() -> None:
    """Run the contenders in turns and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--memory-mib", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--channels", default="1,2,4")
    parser.add_argument("--workers", default="1,2,4")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    memory_bytes = options.memory_mib * MIB
    contenders = [("qemu", int(n)) for n in options.channels.split(",")] + [
        ("parmig", int(n)) for n in options.workers.split(",")
    ]
    results: dict[str, list[dict[str, float]]] = {f"{name} {count}": [] for name, count in contenders}
    host = describe_host()
    for _ in range(options.rounds):
        for name, count in contenders:
            # A fresh source each time: QEMU must not resume between runs, and both start from the same state.
            with QemuMachine(memory_bytes=memory_bytes) as source:
                fill_random(source, memory_bytes)
                results[f"{name} {count}"].append(contend(name, count, memory_bytes, source))
    medians = {
        name: {key: round(median([run[key] for run in runs])) for key in runs[0]} for name, runs in results.items()
    }
    best = {
        who: max((m["mib_per_s"], n) for n, m in medians.items() if n.startswith(who)) for who in ("qemu", "parmig")
    }
    with_setup = max(m["with_setup_mib_per_s"] for n, m in medians.items() if n.startswith("parmig"))
    summary: dict[str, Any] = {
        "host": host,
        "memory_mib": options.memory_mib,
        "rounds": options.rounds,
        "medians": medians,
        "runs_mib_per_s": {name: [round(run["mib_per_s"]) for run in runs] for name, runs in results.items()},
        "best_qemu": best["qemu"][1],
        "best_parmig": best["parmig"][1],
        "ratio": round(best["parmig"][0] / best["qemu"][0], 2),
        "ratio_with_setup": round(with_setup / best["qemu"][0], 2),
        "load_average_after": [round(load, 2) for load in os.getloadavg()],
    }
    if options.json:
        print(to_json(summary))
        return
    print(f"host: {host}")
    for name, values in medians.items():
        runs = " ".join(map(str, summary["runs_mib_per_s"][name]))
        rates = f"{values['mib_per_s']:6.0f} MiB/s   with set-up {values['with_setup_mib_per_s']:6.0f} MiB/s"
        print(f"  {name:10} {rates}   ({runs})")
    print(f"best parmig / best QEMU: {summary['ratio']} (with parmig's set-up {summary['ratio_with_setup']})")


if __name__ == "__main__":
    main()
