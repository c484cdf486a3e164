# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

from tools.bench_table import medians, slopes, write_table


def run(contender: str, rate: int, *, memory_mib: int = 1024, processor_s: float | None = 1.0) -> dict[str, Any]:
    seconds = None if processor_s is None else processor_s / memory_mib * 1024
    return {
        "memory_mib": memory_mib,
        "condition": "cold",
        "fill": "guest",
        "placement": "free",
        "contender": contender,
        "count": 2,
        "mib_per_s": rate,
        "without_setup_mib_per_s": rate,
        "source_processor_s": processor_s and processor_s / 2,
        "destination_processor_s": processor_s and processor_s / 2,
        "processor_s": processor_s,
        "processor_s_per_gib": seconds,
    }


RUNS = [run("parmig-tcp", rate) for rate in (900, 100, 800)] + [run("floor", 1000), run("qemu", 400)]


def test_ratios_are_of_medians_and_peers_come_first() -> None:
    rows = medians(RUNS)
    assert [row["contender"] for row in rows] == ["floor", "qemu", "parmig-tcp"]
    assert (rows[2]["mib_per_s"], rows[2]["over_floor"], rows[2]["over_qemu"]) == (800, 0.8, 2.0)
    assert (rows[2]["lowest_mib_per_s"], rows[2]["highest_mib_per_s"], rows[2]["runs"]) == (100, 900, 3)


def test_iperf3_is_compared_with_as_many_streams() -> None:
    other = {**run("iperf3", 4000), "count": 4}
    rows = medians([*RUNS, run("iperf3", 1000), other])
    ratios = {(row["contender"], row["count"]): row["over_iperf3"] for row in rows}
    assert (ratios["parmig-tcp", 2], ratios["iperf3", 4], ratios["floor", 2]) == (0.8, 1.0, 1.0)


def test_the_slope_has_no_starting_costs() -> None:
    runs = [
        run("qemu", 400, memory_mib=1024, processor_s=3.0),
        run("qemu", 400, memory_mib=5120, processor_s=7.0),
    ]
    assert [row["processor_s_per_gib"] for row in slopes(medians(runs))] == [1.0]


def test_a_table_without_peers_and_processor_time_has_dashes() -> None:
    table = write_table([run("parmig-tcp", 500, processor_s=None)])
    assert table.splitlines()[-1].split() == ["parmig-tcp,", "2", "workers", "500", "500..500", "500", *"----"]
