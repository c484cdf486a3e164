# SPDX-License-Identifier: Apache-2.0
"""One run of each kind: between hosts of the lab, by QEMU, and by bare pairs."""

from __future__ import annotations

import os
import shutil
from typing import Any

import pytest

from parmig.experiments.factors import Factors
from parmig.experiments.interruption import Interruption
from parmig.experiments.qemu_machines import QEMU
from parmig.experiments.running import run_once
from parmig.experiments.sweep import Run, Sweep
from parmig.units import MIB
from tests.labs import needs_lab

if shutil.which(QEMU) is None and os.environ.get("CI") != "true":
    with_qemu = pytest.mark.skip(reason=f"{QEMU} is not installed")
else:
    with_qemu = pytest.mark.qemu


def run(hosts: str, **factors: Any) -> dict[str, Any]:
    """The row of one run, which must complete."""
    given = Factors(memory_bytes=64 * MIB, free_memory="as-it-is", **factors)
    row = run_once(Sweep(hosts=hosts), Run(1, 1, given), Interruption())
    assert row["status"] == "completed", row["reason"]
    return row


@needs_lab
def test_parmig_moves_a_guest_over_the_links_of_the_lab() -> None:
    row = run("lab", paths=2, link_rate_bytes_per_s=50 * MIB)
    assert len(row["report.per_path"]) == 2
    assert row["total_time_ms"] > 64 / 100 * 1000 * 0.8, "the links have their rate"


@with_qemu
@pytest.mark.parametrize("peer", ["qemu-multifd", "parmig"])
def test_a_qemu_guest_is_moved(peer: str) -> None:
    row = run("loopback", peer=peer, guest="qemu")
    assert row["downtime_ms"] > 0
    assert row["wire_bytes"] >= 16 * MIB


@needs_lab
def test_bare_pairs_carry_a_file_over_the_links_of_the_lab() -> None:
    row = run("lab", peer="bare", paths=2, link_rate_bytes_per_s=50 * MIB)
    assert row["moved_bytes"] == 64 * MIB
    assert row["total_time_ms"] > 64 / 100 * 1000 * 0.8, "each pair has a link"
