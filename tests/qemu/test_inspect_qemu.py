# SPDX-License-Identifier: Apache-2.0
"""What is told of files that QEMU wrote, compared with what QEMU tells of its own writing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from parmig.inspection import Inspection, inspect_file
from tests.qemu.machines import MIB, QemuMachine, wait_until

pytestmark = pytest.mark.qemu

# Adds 1 to a byte of each page from 64 KiB to 576 KiB, for ever: start: mov eax, cr0; xor eax, 0x10000; mov cr0, eax;
# mov ax, 0x1000; next: mov ds, ax; inc byte [0]; add ax, 0x100; cmp ax, 0x9000; jb next; jmp start. Turning CR0.WP
# empties the TLB; without that, emulation in QEMU 7.2 does not notice all of these writes.
BOOT_SECTOR = bytes.fromhex("0f20c0 663500000100 0f22c0 b80010 8ed8 fe060000 050001 3d0090 72f2 ebe1").ljust(510, b"\0")
BOOT_SECTOR += b"\x55\xaa"
PRIVATE = ["-machine", "pc"]


@pytest.fixture
def small_guest(qemu: None) -> Iterator[QemuMachine]:
    """A QEMU with memory of its own, paused before its first instruction."""
    machine = QemuMachine(
        memory=PRIVATE, memory_bytes=32 * MIB, extra=("-drive", "if=floppy,format=raw,file={dir}/boot")
    )
    (machine.directory / "boot").write_bytes(BOOT_SECTOR)
    with machine:
        yield machine


def begin(machine: QemuMachine, capabilities: Sequence[str] = (), **parameters: int) -> Path:
    """Have QEMU write a stream; skips the test where it has not all of *capabilities*."""
    if missing := set(capabilities) - {one["capability"] for one in machine.ask("query-migrate-capabilities")}:
        pytest.skip(f"this QEMU has no {', '.join(missing)}")
    machine.ask("migrate-set-capabilities", capabilities=[{"capability": one, "state": True} for one in capabilities])
    machine.ask("migrate-set-parameters", **{"max_bandwidth": 1 << 34, **parameters})
    path = machine.directory / "stream"
    machine.ask("migrate", uri=f"file:{path}" if "mapped-ram" in capabilities else f"exec:cat > {path}")
    return path


def finish(machine: QemuMachine) -> dict[str, Any]:
    """What QEMU tells of a stream once it is written."""
    wait_until(lambda: machine.ask("query-migrate")["status"] in ("completed", "failed"), "QEMU's stream")
    told: dict[str, Any] = machine.ask("query-migrate")
    assert told["status"] == "completed"
    return told


def pages(found: Inspection, kind: str) -> int:
    return sum(getattr(block, f"pages_{kind}") for block in found.blocks)


def test_pages_and_devices_are_those_that_qemu_wrote(small_guest: QemuMachine) -> None:
    path = begin(small_guest)
    ram = finish(small_guest)["ram"]
    found = inspect_file(str(path))
    assert (found.complete, found.format, found.notes) == (True, "qemu-stream", [])
    assert found.total_bytes == path.stat().st_size
    assert (pages(found, "normal"), pages(found, "zero")) == (ram["normal"], ram["duplicate"])
    assert sum(block.bytes for block in found.blocks) == ram["total"] == pages(found, "distinct") * 4096
    assert found.machine.startswith("pc-i440fx-")
    assert {"timer", "cpu", "apic", "fw_cfg", "globalstate"} <= {one.idstr for one in found.devices}
    assert not [one.idstr for one in found.devices if one.fields is None]


def test_values_are_those_of_the_guest(small_guest: QemuMachine) -> None:
    path = begin(small_guest)
    finish(small_guest)
    registers = small_guest.ask("human-monitor-command", command_line="info registers")
    fields = next(one.fields for one in inspect_file(str(path)).devices if one.idstr == "cpu")
    base, limit = (int(value, 16) for value in re.search(r"CS =f000 (\w+) (\w+)", registers).groups())
    assert fields["env.eip"] == int(re.search(r"[ER]IP=(\w+)", registers)[1], 16) == 0xFFF0
    code_segment = fields["env.segs"][1]
    assert (code_segment["selector"], code_segment["base"], code_segment["limit"]) == (0xF000, base, limit)


def test_differences_of_pages_are_counted(small_guest: QemuMachine) -> None:
    small_guest.ask("cont")
    last_page = "xp /1bx 0x8f000"
    wait_until(lambda: "0x00" not in small_guest.ask("human-monitor-command", command_line=last_page), "the guest")
    # So slow that the guest writes all its pages again while a round lasts.
    path = begin(small_guest, ["xbzrle"], max_bandwidth=2 * MIB, downtime_limit=1)
    wait_until(lambda: small_guest.ask("query-migrate").get("xbzrle-cache", {}).get("pages", 0) > 100, "differences")
    small_guest.ask("stop")
    told = finish(small_guest)
    found = inspect_file(str(path))
    assert found.complete
    # QEMU also counts pages that turned out to be as before, of which it wrote nothing.
    assert 50 < pages(found, "xbzrle") <= told["xbzrle-cache"]["pages"]
    assert pages(found, "normal") == told["ram"]["normal"]
    assert pages(found, "distinct") * 4096 == told["ram"]["total"]


def test_shared_memory_is_not_in_the_stream(bare_guest: QemuMachine) -> None:
    path = begin(bare_guest, ["x-ignore-shared"])
    finish(bare_guest)
    found = inspect_file(str(path))
    assert (found.complete, found.capabilities) == (True, ["x-ignore-shared"])
    ram = next(block for block in found.blocks if block.name == "ram0")
    assert (ram.bytes, ram.gpa, ram.pages_distinct) == (256 * MIB, 0, 0)
    assert any("ram0" in note for note in found.notes)


def test_a_stream_without_a_description_is_whole_but_not_split(qemu: None) -> None:
    with QemuMachine(memory=["-machine", "pc,suppress-vmdesc=on"], memory_bytes=32 * MIB) as machine:
        path = begin(machine)
        finish(machine)
        found = inspect_file(str(path))
    assert (found.complete, found.vmdescription_bytes) == (True, 0)
    assert [(one.idstr, one.fields) for one in found.devices] == [("timer", None)]
    assert found.device_state_bytes > 10_000


@pytest.mark.parametrize("capabilities", [["mapped-ram"], ["mapped-ram", "multifd"]], ids="+".join)
def test_a_mapped_file_has_each_page_that_is_not_zero(small_guest: QemuMachine, capabilities: list[str]) -> None:
    path = begin(small_guest, capabilities)
    ram = finish(small_guest)["ram"]
    found = inspect_file(str(path))
    assert (found.complete, found.format) == (True, "mapped-ram")
    assert (pages(found, "normal"), pages(found, "zero")) == (ram["normal"], ram["total"] // 4096 - ram["normal"])
    assert not [one.idstr for one in found.devices if one.fields is None]
