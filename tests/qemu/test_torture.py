# SPDX-License-Identifier: Apache-2.0
"""A few migrations with faults at random times; ``python -m tools.torture`` runs as many as you like."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.integration.sides import ROOT
from tests.kvm.machines import needs_kvm
from tests.labs import needs_lab

RUNS = int(os.environ.get("PARMIG_TORTURE_RUNS", "3"))

pytestmark = [pytest.mark.qemu, *needs_kvm, pytest.mark.timeout(120 + 120 * RUNS)]


@needs_lab
@pytest.mark.parametrize("guests", ["kvm", "synthetic"])
def test_exactly_one_side_runs_the_right_guest_whatever_fails(qemu: None, guests: str) -> None:
    command = [sys.executable, "-m", "tools.torture", "--guests", guests, "--runs", str(RUNS), "--seed", "7"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{RUNS} of {RUNS} right" in done.stdout
