# SPDX-License-Identifier: Apache-2.0
"""The options of the demonstration."""

from __future__ import annotations

from typing import Annotated

from parmig.config import PATTERNS, Config
from parmig.options import COUNT, RATE, SIZE, option
from parmig.units import GIB, MIB
from parmig.values import FILE


class DemoConfig(Config, frozen=True, kw_only=True):
    """What the demonstration migrates."""

    guest: Annotated[
        str,
        option(
            "What to migrate. kvm needs /dev/kvm; qemu starts two QEMUs under emulation.",
            choices=("synthetic", "kvm", "qemu"),
        ),
    ] = "synthetic"
    memory_bytes: Annotated[int, option("Memory of the guest; the host needs twice as much.", SIZE, gt=0)] = GIB
    dirty_rate_bytes_per_s: Annotated[
        int, option("(synthetic, kvm) How fast the guest writes to its memory.", RATE, ge=0)
    ] = 100 * MIB
    pattern: Annotated[
        str,
        option("(synthetic, kvm) Where the guest writes. kvm knows random and sequential only.", choices=PATTERNS),
    ] = "random"
    trace: Annotated[
        str,
        option(
            "(synthetic) A trace that the guest replays, instead of --memory, --dirty-rate and --pattern.",
            FILE,
            shown="none",
        ),
    ] = ""
    vcpus: Annotated[int, option("(kvm) Virtual CPUs of the guest.", COUNT, ge=1, le=64)] = 2
    kernel: Annotated[str, option("(qemu) Linux kernel to boot.", FILE, shown="firmware only")] = ""
    initrd: Annotated[str, option("(qemu) Initial RAM disk of the kernel.", FILE, shown="none")] = ""
