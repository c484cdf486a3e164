# SPDX-License-Identifier: Apache-2.0
"""All RAM blocks of real QEMUs: what is written where parmig finds them, QEMU's own migration sends."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from parmig.errors import GuestRefusedError
from parmig.guests.qemu.maps import parse_maps
from parmig.guests.qemu.memory_files import MappedBlock, close_memory, open_memory
from parmig.guests.qemu.qmp import Qmp
from parmig.guests.qemu.ram_list import block_sizes, parse_ram_list
from parmig.guests.qemu.ram_structs import find_addresses
from tests.huge import HUGE_BYTES, hugetlbfs, more_huge_pages
from tests.qemu.machines import MIB, QemuMachine
from tests.qemu.test_stream_qemu import migrate, read

pytestmark = [pytest.mark.qemu, pytest.mark.usefixtures("qemu")]

MEMORY_BYTES = 64 * MIB

ANONYMOUS, SHARED, PRIVATE_FILE = "anonymous", "shared", "private file"


def backend(options: str) -> list[str]:
    return ["-machine", "pc,memory-backend=ram0", "-object", f"{options},id=ram0,size={MEMORY_BYTES}"]


BACKENDS = {
    "plain -m": (["-machine", "pc"], "pc.ram", ANONYMOUS),
    "q35": (["-machine", "q35"], "pc.ram", ANONYMOUS),
    "an old machine type": (["-machine", "pc-i440fx-4.0"], "pc.ram", ANONYMOUS),
    "-mem-path": (["-machine", "pc", "-mem-path", "{dir}"], "pc.ram", PRIVATE_FILE),
    "-mem-path -mem-prealloc": (["-machine", "pc", "-mem-path", "{dir}", "-mem-prealloc"], "pc.ram", PRIVATE_FILE),
    "-mem-prealloc": (["-machine", "pc", "-mem-prealloc"], "pc.ram", ANONYMOUS),
    "ram": (backend("memory-backend-ram,share=off"), "ram0", ANONYMOUS),
    "ram,share=on": (backend("memory-backend-ram,share=on"), "ram0", SHARED),
    "memfd": (backend("memory-backend-memfd,share=off"), "ram0", PRIVATE_FILE),
    "memfd,share=on": (backend("memory-backend-memfd,share=on"), "ram0", SHARED),
    "file": (backend("memory-backend-file,mem-path={dir}/ram,share=off"), "ram0", PRIVATE_FILE),
    "file,share=on": (backend("memory-backend-file,mem-path={dir}/ram,share=on"), "ram0", SHARED),
}


@contextlib.contextmanager
def opened(machine: QemuMachine, state: str = "devices", pid: int = 0) -> Iterator[dict[str, MappedBlock]]:
    """The blocks of a machine, by name."""
    blocks: list[MappedBlock] = []
    with contextlib.closing(Qmp(machine.socket)) as qmp:
        try:
            blocks = open_memory(qmp, pid or machine.pid, state)
            assert [item.memory.block.name for item in blocks] == sorted(item.memory.block.name for item in blocks)
            yield {item.memory.block.name: item for item in blocks}
        finally:
            close_memory(blocks)


def named_sizes(machine: QemuMachine) -> dict[str, int]:
    """All blocks that QEMU has, by its own list."""
    return block_sizes(machine.ask("human-monitor-command", **{"command-line": "info ramblock"}))


def kind(item: MappedBlock) -> str:
    """What a block is reached by."""
    if item.memory.pid:
        assert item.memory.segments == item.segments
        return PRIVATE_FILE if item.memory.fd >= 0 else ANONYMOUS
    assert item.memory.fd >= 0
    return SHARED


def mark(name: str, page: int) -> bytes:
    return f"page {page} of {name}".encode()


def check_addresses(machine: QemuMachine, blocks: dict[str, MappedBlock]) -> None:
    """Write a mark into pages of every block, at the addresses found, and see them in QEMU's own migration stream."""
    assert {name: item.memory.block.size_bytes for name, item in blocks.items()} == named_sizes(machine)
    marked = []
    with open(f"/proc/{machine.pid}/mem", "r+b", buffering=0) as process:
        for name, item in blocks.items():
            for page in {0, item.memory.block.pages // 2, item.memory.block.pages - 1}:
                segment = next(one for one in item.segments if 0 <= page - one.first_page < one.pages)
                assert os.pwrite(
                    process.fileno(), mark(name, page), segment.address + (page - segment.first_page) * 4096
                )
                marked.append((name, page))
                if item.memory.pid == 0:
                    at = item.memory.file_offset_bytes + page * 4096
                    assert os.pread(item.memory.fd, len(mark(name, page)), at) == mark(name, page)
    migrate(machine, "migrate", f"exec:cat > {machine.directory}/stream")
    memory = read(machine.directory / "stream").memory
    assert memory.keys() == blocks.keys()
    for name, page in marked:
        assert memory[name][page].tobytes().startswith(mark(name, page)), f"page {page} of {name}"


@pytest.mark.parametrize("chosen", BACKENDS)
def test_every_block_of_every_backend_is_found(chosen: str) -> None:
    options, name, reached = BACKENDS[chosen]
    with QemuMachine(memory=options, memory_bytes=MEMORY_BYTES) as machine, opened(machine) as blocks:
        assert kind(blocks[name]) == reached
        assert {kind(item) for other, item in blocks.items() if other != name} == {ANONYMOUS}
        assert {item.memory.block.page_size_bytes for item in blocks.values()} == {4096}
        ranges = {other: item.memory.block.ranges for other, item in blocks.items() if item.memory.block.ranges}
        assert [(one.gpa, one.size_bytes) for one in ranges.pop(name)] == [(0, MEMORY_BYTES)]
        assert ranges == {}
        check_addresses(machine, blocks)


@pytest.fixture
def huge_directory() -> Iterator[Path]:
    """A hugetlbfs with room for one guest."""
    with (
        tempfile.TemporaryDirectory(prefix="parmig-huge-", dir="/dev/shm") as directory,
        more_huge_pages(MEMORY_BYTES // HUGE_BYTES + 2),
        hugetlbfs(Path(directory)) as path,
    ):
        yield path


@pytest.mark.parametrize("share", ["on", "off"])
@pytest.mark.parametrize("where", ["file", "memfd"])
def test_huge_pages_are_found(huge_directory: Path, where: str, share: str) -> None:
    # A QEMU in a chroot sees the mount only by way of this process.
    options = f"memory-backend-file,mem-path=/proc/{os.getpid()}/root{huge_directory}/ram"
    if where == "memfd":
        options = "memory-backend-memfd,hugetlb=on,hugetlbsize=2M"
    memory = backend(f"{options},share={share}")
    with QemuMachine(memory=memory, memory_bytes=MEMORY_BYTES) as machine, opened(machine) as blocks:
        assert kind(blocks["ram0"]) == (SHARED if share == "on" else PRIVATE_FILE)
        assert blocks["ram0"].memory.block.page_size_bytes == HUGE_BYTES
        assert os.fstatvfs(blocks["ram0"].memory.fd).f_bsize == HUGE_BYTES
        check_addresses(machine, blocks)


def test_nodes_dimms_and_devices_of_one_size_are_told_apart() -> None:
    half = MEMORY_BYTES // 2
    memory = ["-machine", "pc,nvdimm=on", "-m", "slots=4,maxmem=1G"]
    for name, options in {
        "m0": f"memory-backend-ram,size={half}",
        "m1": f"memory-backend-memfd,share=off,size={half}",
        "d0": f"memory-backend-ram,size={half}",
        "d1": f"memory-backend-file,share=on,mem-path={{dir}}/d1,size={half}",
        "n0": f"memory-backend-file,share=off,mem-path={{dir}}/n0,size={half}",
        "idle": f"memory-backend-ram,size={half}",
    }.items():
        memory += ["-object", f"{options},id={name}"]
    memory += ["-numa", "node,memdev=m0", "-numa", "node,memdev=m1"]
    memory += ["-device", "pc-dimm,memdev=d0", "-device", "nvdimm,memdev=n0", "-device", f"VGA,vgamem_mb={half // MIB}"]
    with QemuMachine(memory=memory, memory_bytes=MEMORY_BYTES) as machine:
        machine.ask("device_add", driver="pc-dimm", memdev="d1", id="late")
        with opened(machine) as blocks:
            assert {name: kind(blocks[name]) for name in ("m0", "m1", "d0", "d1", "n0")} == {
                "m0": ANONYMOUS,
                "m1": PRIVATE_FILE,
                "d0": ANONYMOUS,
                "d1": SHARED,
                "n0": PRIVATE_FILE,
            }
            assert "idle" not in blocks
            gpas = {name: item.memory.block.ranges[0].gpa for name, item in blocks.items() if item.memory.block.ranges}
            high = 1 << 32
            assert gpas == {"m0": 0, "m1": half, "d0": high, "n0": high + half, "d1": high + 2 * half}
            check_addresses(machine, blocks)


def test_blocks_that_qemu_has_freed_are_not_found() -> None:
    with QemuMachine(memory=["-machine", "pc"], memory_bytes=MEMORY_BYTES) as machine:
        for _ in range(20):
            for name in ("a", "b"):
                options = {"qom-type": "memory-backend-ram", "id": name, "size": 2 * MEMORY_BYTES}
                machine.ask("object-add", **options)
                machine.ask("qom-get", path=f"/objects/{name}", property="size")
            machine.ask("object-del", id="a")
            machine.ask("object-del", id="b")
        machine.ask("object-add", **options)
        with opened(machine) as blocks:
            check_addresses(machine, blocks)


def test_the_bios_is_that_of_the_guest() -> None:
    with QemuMachine(memory=["-machine", "pc"], memory_bytes=MEMORY_BYTES) as machine, opened(machine) as blocks:
        bios = blocks["pc.bios"]
        size = bios.memory.block.size_bytes
        with open(f"/proc/{machine.pid}/mem", "rb", buffering=0) as process:
            found = os.pread(process.fileno(), size, bios.segments[0].address)
        machine.ask("pmemsave", val=(1 << 32) - size, size=size, filename=f"{machine.directory}/bios")
        assert found == (machine.directory / "bios").read_bytes()
        assert b"SeaBIOS" in found


def test_the_old_way_takes_the_shared_backends_only() -> None:
    options, name, _ = BACKENDS["file,share=on"]
    with QemuMachine(memory=options, memory_bytes=MEMORY_BYTES) as machine:
        with opened(machine, "migrate") as blocks:
            assert blocks.keys() == {name}
            old = blocks[name].memory.block, blocks[name].segments
        with opened(machine) as blocks:
            assert (blocks[name].memory.block, blocks[name].segments) == old


def test_a_flash_with_the_firmware_is_found() -> None:
    extra = ("-drive", "if=pflash,format=raw,file={dir}/flash")
    machine = QemuMachine(memory=["-machine", "pc"], memory_bytes=MEMORY_BYTES, extra=extra)
    (machine.directory / "flash").write_bytes(bytes(4 * MIB))
    with machine, opened(machine) as blocks:
        assert blocks["system.flash0"].memory.block.size_bytes == 4 * MIB
        check_addresses(machine, blocks)


@pytest.mark.parametrize(
    ("options", "name", "since"),
    [
        pytest.param(backend("memory-backend-shm,share=on"), "ram0", (9, 1), id="shm"),
        pytest.param(["-machine", "pc,aux-ram-share=on"], "0000:00:02.0/vga.vram", (10, 0), id="aux-ram-share"),
    ],
)
def test_what_newer_qemus_share_is_found(options: list[str], name: str, since: tuple[int, int]) -> None:
    with QemuMachine(memory=["-machine", "pc"]) as machine:
        if machine.version() < since:
            pytest.skip(f"QEMU has this since {'.'.join(map(str, since))}")
    with QemuMachine(memory=options, memory_bytes=MEMORY_BYTES) as machine, opened(machine) as blocks:
        assert kind(blocks[name]) == SHARED
        check_addresses(machine, blocks)


def test_two_private_backends_may_have_one_file() -> None:
    half = MEMORY_BYTES // 2
    file = f"memory-backend-file,share=off,mem-path={{dir}}/ram,size={half}"
    memory = ["-machine", "pc", "-object", f"{file},id=m0", "-object", f"{file},id=m1"]
    memory += ["-numa", "node,memdev=m0", "-numa", "node,memdev=m1"]
    with QemuMachine(memory=memory, memory_bytes=MEMORY_BYTES) as machine, opened(machine) as blocks:
        assert kind(blocks["m0"]) == kind(blocks["m1"]) == PRIVATE_FILE
        check_addresses(machine, blocks)


def test_descriptors_are_closed() -> None:
    options, _, _ = BACKENDS["memfd"]
    with QemuMachine(memory=options, memory_bytes=MEMORY_BYTES) as machine:
        before = os.listdir("/proc/self/fd"), sorted(machine.fds())
        with opened(machine):
            assert len(os.listdir("/proc/self/fd")) > len(before[0])
        assert len(os.listdir("/proc/self/fd")) == len(before[0])


@pytest.mark.parametrize("state", ["devices", "migrate"])
def test_another_process_is_refused(state: str) -> None:
    options, _, _ = BACKENDS["file,share=on"]
    with (
        QemuMachine(memory=options, memory_bytes=MEMORY_BYTES) as machine,
        pytest.raises(GuestRefusedError, match="add ,pid=NUMBER"),
        opened(machine, state, os.getpid()),
    ):
        pass


def refused(memory: list[str], match: str) -> None:
    with (
        QemuMachine(memory=memory, memory_bytes=MEMORY_BYTES) as machine,
        pytest.raises(GuestRefusedError, match=match),
        opened(machine),
    ):
        pass


def test_virtio_mem_is_refused_by_name() -> None:
    memory = ["-machine", "pc", "-m", "slots=1,maxmem=1G", "-object", "memory-backend-ram,id=more,size=128M"]
    refused([*memory, "-device", "virtio-mem-pci,memdev=more,requested-size=0,id=vm0"], "virtio-mem 'vm0'")


def test_memory_that_qemu_may_not_write_is_refused_by_name() -> None:
    memory = ["-machine", "pc,nvdimm=on", "-m", "slots=1,maxmem=1G", "-device", "nvdimm,memdev=n0,unarmed=on"]
    options = "memory-backend-file,id=n0,size=64M,share=on,readonly=on"
    with tempfile.NamedTemporaryFile(prefix="parmig-", dir="/dev/shm") as file:
        file.truncate(64 * MIB)
        refused([*memory, "-object", f"{options},mem-path={file.name}"], "'n0'.*readonly=on")


def test_the_list_in_qemus_memory_agrees_with_what_it_prints() -> None:
    with QemuMachine(memory=["-machine", "q35"], memory_bytes=MEMORY_BYTES) as machine:
        entries = parse_ram_list(machine.ask("human-monitor-command", **{"command-line": "info ramblock"}))
        with open(f"/proc/{machine.pid}/mem", "rb", buffering=0) as process:

            def read_process(address: int, size_bytes: int) -> bytes:
                return os.pread(process.fileno(), size_bytes, address)

            addresses = find_addresses(entries, parse_maps(machine.maps()), read_process)
        prints_addresses = machine.version() >= (8, 0)
    if prints_addresses:
        assert addresses == [entry.address for entry in entries]
    assert len(set(addresses)) == len(entries)
