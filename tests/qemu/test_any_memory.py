# SPDX-License-Identifier: Apache-2.0
"""Guests with memory of any kind, moved by the commands: no memory was chosen with parmig in mind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.huge import HUGE_BYTES, hugetlbfs, more_huge_pages
from tests.qemu.machines import MIB, QemuMachine
from tests.qemu.test_migration import move

pytestmark = pytest.mark.qemu

MEMORY_BYTES = 128 * MIB
HOT = (1 * MIB, 5 * MIB + 4096, 77 * MIB, MEMORY_BYTES - 4096)
"""Guest physical addresses at which the test writes; below 1 MiB the BIOS would be at work."""


def backend(kind: str, options: str = "", size: int = MEMORY_BYTES) -> list[str]:
    """Options for all of the guest's memory from one backend."""
    options = options and f",{options}"
    return [
        *("-machine", "pc,memory-backend=ram0"),
        *("-object", f"memory-backend-{kind},id=ram0,size={size}{options}"),
    ]


PLAIN = ["-machine", "pc"]
FILE = "mem-path={dir}/ram"
KINDS = {
    "plain": PLAIN,
    "prealloc": [*PLAIN, "-mem-prealloc", "-mem-path", "{dir}"],
    "mem-path": [*PLAIN, "-mem-path", "{dir}"],
    "ram": backend("ram"),
    "ram shared": backend("ram", "share=on"),
    "memfd": backend("memfd", "share=off"),
    "memfd shared": backend("memfd", "share=on"),
    "file": backend("file", f"{FILE},share=off"),
    "file shared": backend("file", f"{FILE},share=on"),
    "hugetlbfs": backend("file", "mem-path={huge},share=off"),
    "hugetlbfs shared": backend("file", "mem-path={huge},share=on"),
    "huge memfd": backend("memfd", "hugetlb=on,hugetlbsize=2M,share=off"),
    "huge memfd shared": backend("memfd", "hugetlb=on,hugetlbsize=2M,share=on"),
    "nodes": [
        *PLAIN,
        *("-object", "memory-backend-ram,id=m0,size=64M", "-object", f"memory-backend-file,id=m1,size=64M,{FILE}"),
        *("-numa", "node,memdev=m0", "-numa", "node,memdev=m1"),
    ],
    "dimm": [
        *("-machine", "pc", "-m", "128M,slots=2,maxmem=1G"),
        *("-object", "memory-backend-ram,id=m1,size=128M", "-device", "pc-dimm,id=d1,memdev=m1"),
    ],
}
SHARED = [kind for kind in KINDS if kind in ("file shared", "hugetlbfs shared")]


@pytest.fixture
def huge(tmp_path: Path) -> Iterator[Path]:
    with more_huge_pages(2 * MEMORY_BYTES // HUGE_BYTES), hugetlbfs(tmp_path) as path:
        yield path


@contextmanager
def pair(here: str, there: str, huge: Path | None) -> Iterator[tuple[QemuMachine, QemuMachine]]:
    """A QEMU with memory of kind *here* that never ran, and one with *there* that waits for it."""
    with ExitStack() as stack:
        yield tuple(  # type: ignore[misc]
            stack.enter_context(
                QemuMachine(
                    memory=[part.replace("{huge}", str(huge)) for part in KINDS[kind]],
                    memory_bytes=MEMORY_BYTES,
                    incoming=incoming,
                )
            )
            for kind, incoming in ((here, False), (there, True))
        )


def write(machine: QemuMachine) -> None:
    """Fill pages of the guest as its virtual CPUs would."""
    with open(f"/proc/{machine.pid}/mem", "r+b", buffering=0) as memory:
        for number, gpa in enumerate(HOT):
            os.pwrite(memory.fileno(), bytes([number + 1]) * 4096, machine.host_address(gpa))


def arrived(machine: QemuMachine) -> bool:
    with open(f"/proc/{machine.pid}/mem", "rb", buffering=0) as memory:
        return all(
            os.pread(memory.fileno(), 4096, machine.host_address(gpa)) == bytes([number + 1]) * 4096
            for number, gpa in enumerate(HOT)
        )


def resident_bytes(machine: QemuMachine) -> int:
    lines = Path(f"/proc/{machine.pid}/status").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("VmRSS", "HugetlbPages")))


def moved(source: QemuMachine, destination: QemuMachine, state: str) -> None:
    before, table = resident_bytes(source), source.fds()
    report = move(source, destination, "--workers", "2", guest=f",state={state}")
    assert report["tracker"] == "pagemap"
    assert arrived(destination)
    assert source.tracked_mappings() == 0
    left = {number: path for number, path in source.fds().items() if number not in table}
    if source.version() < (9, 1):  # keeps a descriptor in an fdset until its guest runs again; the file is empty
        left = {number: path for number, path in left.items() if "parmig-device-state" not in path}
    else:
        assert source.ask("query-fdsets") == []
    assert left == {}
    assert resident_bytes(source) - before < 16 * MIB  # what did not exist was not read


@pytest.mark.parametrize("kind", KINDS)
def test_memory_of_every_kind_arrives(qemu: None, kind: str, request: pytest.FixtureRequest) -> None:
    directory = request.getfixturevalue("huge") if "huge" in kind else None
    with pair(kind, kind, directory) as (source, destination):
        write(source)
        moved(source, destination, "devices")
        assert source.ask("query-status")["status"] in ("paused", "prelaunch")


@pytest.mark.parametrize("kind", SHARED)
def test_shared_memory_arrives_by_qemus_own_migration_too(
    qemu: None, kind: str, request: pytest.FixtureRequest
) -> None:
    directory = request.getfixturevalue("huge") if "huge" in kind else None
    with pair(kind, kind, directory) as (source, destination):
        write(source)
        moved(source, destination, "migrate")


@pytest.mark.parametrize(
    ("here", "there"), [("plain", "huge memfd"), ("hugetlbfs shared", "plain"), ("file shared", "memfd")]
)
def test_source_and_destination_may_have_different_kinds(
    qemu: None, here: str, there: str, request: pytest.FixtureRequest
) -> None:
    with pair(here, there, request.getfixturevalue("huge")) as (source, destination):
        write(source)
        moved(source, destination, "devices")
