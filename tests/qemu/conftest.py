# SPDX-License-Identifier: Apache-2.0
"""What the tests with a real QEMU share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.qemu import disks, machines
from tests.qemu.machines import QemuMachine


@pytest.fixture(scope="session")
def qemu() -> None:
    """Skip where QEMU cannot be run, but never on CI."""
    if reason := machines.missing():
        if os.environ.get("CI"):
            pytest.fail(f"{reason}; tests with QEMU are mandatory where CI is set")
        pytest.skip(reason)


@pytest.fixture(scope="session")
def disk_module(qemu: None) -> None:
    """Skip where the kernel's modules for a disk cannot be had, but never on CI."""
    if reason := disks.missing_module(disks.MODULES[-1]):
        if os.environ.get("CI"):
            pytest.fail(f"{reason}; tests with a disk are mandatory where CI is set")
        pytest.skip(reason)


@pytest.fixture(scope="session")
def initrd(qemu: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An initrd, built once for each test process."""
    return machines.build_initrd(tmp_path_factory.mktemp("initrd"))


@pytest.fixture
def linux_guest(initrd: Path) -> Iterator[QemuMachine]:
    """A booted Linux that ticks."""
    with QemuMachine(initrd) as machine:
        machine.wait_for_serial("TICK 2 ")
        yield machine


@pytest.fixture
def bare_guest(qemu: None) -> Iterator[QemuMachine]:
    """A QEMU that never ran (-S)."""
    with QemuMachine() as machine:
        yield machine
