# SPDX-License-Identifier: Apache-2.0
"""What figures were measured on."""

from __future__ import annotations

import functools
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import psutil

from parmig.experiments.qemu_machines import QEMU
from parmig.version import __version__


def describe_host() -> dict[str, Any]:
    """What the figures were measured on, with its load now."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / (1 << 30), 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def fingerprint() -> dict[str, Any]:
    """:func:`describe_host` with the versions of the programs that runs use."""
    return describe_host() | _versions()


@functools.cache
def _versions() -> dict[str, str]:
    versions = {"parmig": __version__}
    for program in (QEMU, "iperf3"):
        if shutil.which(program):
            answer = subprocess.run([program, "--version"], stdout=subprocess.PIPE, text=True, check=False)
            versions[program.partition("-")[0]] = answer.stdout.partition("\n")[0]
    return versions
