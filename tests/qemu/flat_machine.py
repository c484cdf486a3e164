# SPDX-License-Identifier: Apache-2.0
"""A QEMU under KVM whose virtual CPUs write pages all the time; its memory can be compared with their registers."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from parmig.guests.kvm.program_layout import FIRST_PAGE
from parmig.guests.kvm.programs import damage
from parmig.ram.blocks import PAGE_BYTES
from tests.qemu.machines import MIB, QemuMachine, wait_until

CPUS = 2
PAGES = 8 * MIB // PAGE_BYTES
PAGES_PER_S = 20 * MIB // PAGE_BYTES


class FlatMachine(QemuMachine):
    """A QEMU under KVM that boots *disk*, or waits for a guest that booted it.

    Args:
        disk: of :func:`boot_disk`.
        incoming: start with ``-incoming defer``.
        memory: options; by default no backend: private memory.
    """

    def __init__(self, disk: Path, *, incoming: bool = False, memory: list[str] | None = None) -> None:
        super().__init__(
            memory_bytes=32 * MIB,
            memory=memory or ["-machine", "pc"],
            incoming=incoming,
            extra=("-smp", str(CPUS), "-drive", f"file={disk},format=raw,if=ide"),
            accelerator="kvm",
        )

    def wait_for_lines(self, more: int, limit_s: float = 60.0) -> None:
        """Wait until the guest wrote *more* lines from now on."""
        wanted = self.serial().count("\n") + more
        wait_until(lambda: self._alive() and self.serial().count("\n") >= wanted, f"{more} more lines", limit_s)

    def check(self) -> None:
        """Compare the memory of the paused guest with the registers of its CPUs, and with what was there first.

        Raises:
            AssertionError: pages are lost or stale.
        """
        file = self.directory / "memory"
        self.ask("pmemsave", val=0, size=(FIRST_PAGE + PAGES) * PAGE_BYTES, filename=str(file))
        memory = np.fromfile(file, np.uint8).reshape(-1, PAGE_BYTES)
        registers = self.ask("human-monitor-command", **{"command-line": "info registers -a"})
        counts = [int(value, 16) for value in re.findall(r"\bEBX=([0-9a-f]{8})", registers)]
        assert len(counts) == CPUS
        assert min(counts) > 0
        wrong = damage(lambda first, pages: memory[first : first + pages].copy(), counts)
        assert not wrong, wrong
        words = memory[FIRST_PAGE:].view("<u4")
        addresses = np.arange(FIRST_PAGE, FIRST_PAGE + PAGES, dtype=np.uint32) * PAGE_BYTES
        assert (words[:, 1:] == addresses[:, None]).all(), "a page has the content of another"
