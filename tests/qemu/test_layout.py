# SPDX-License-Identifier: Apache-2.0
"""Memory backends and what the guest sees of them, from answers that real QEMUs gave (7.2.22 and 10.0.13, Debian)."""

from __future__ import annotations

import pytest

from parmig.errors import GuestRefusedError
from parmig.guests.qemu import layout
from parmig.guests.qemu.layout import Backend, Piece
from parmig.guests.qemu.ram_list import parse_ram_list
from parmig.ram.blocks import GuestRange

MIB, GIB = 1 << 20, 1 << 30

MTREE_5G = """\
FlatView #0
 AS "I/O", root: io
 Root memory region: io
  0000000000000000-0000000000000007 (prio 0, i/o): dma-chan

FlatView #1
 AS "memory", root: system
 AS "cpu-memory-0", root: system
 Root memory region: system
  0000000000000000-000000000009ffff (prio 0, ram): ram0 KVM
  00000000000a0000-00000000000bffff (prio 1, i/o): vga-lowmem
  00000000000c0000-00000000000dffff (prio 1, rom): pc.rom
  00000000000e0000-00000000000fffff (prio 0, rom): pc.bios @0000000000020000
  0000000000100000-00000000bfffffff (prio 0, ram): ram0 @0000000000100000 KVM
  00000000fd000000-00000000fdffffff (prio 1, ram): vga.vram
  00000000fec00000-00000000fec00fff (prio 0, i/o): ioapic
  0000000100000000-000000017fffffff (prio 0, ram): ram0 @00000000c0000000 KVM

FlatView #2
 AS "cpu-smm-0", root: memory
 Root memory region: memory
  0000000000000000-00000000bfffffff (prio 0, ram): ram0
"""

MTREE_BOOTED_NUMA = """\
FlatView #0
 AS "memory", root: system
 Root memory region: system
  0000000000000000-000000000009ffff (prio 0, ram): m0
  00000000000c0000-00000000000cafff (prio 0, rom): m0 @00000000000c0000
  00000000000cb000-00000000000cdfff (prio 0, ram): m0 @00000000000cb000
  00000000000e0000-00000000000effff (prio 0, rom): m0 @00000000000e0000
  0000000000100000-0000000007ffffff (prio 0, ram): m0 @0000000000100000
  0000000008000000-000000000effffff (prio 0, ram): m1
  000000000f000000-000000000fffffff (prio 1, i/o): tseg-blackhole
"""


def test_pieces_come_from_the_guests_memory_only() -> None:
    assert layout.parse_mtree(MTREE_5G)["ram0"] == [
        Piece(0, 0, 0xA0000),
        Piece(0x100000, 0x100000, 0xBFF00000),
        Piece(4 * GIB, 3 * GIB, 2 * GIB),
    ]


def test_a_guest_above_the_hole_has_two_ranges() -> None:
    ranges = layout.guest_ranges(layout.parse_mtree(MTREE_5G)["ram0"], 5 * GIB)
    assert ranges == (GuestRange(0, 0, 3 * GIB), GuestRange(4 * GIB, 3 * GIB, 2 * GIB))


def test_shadow_ram_and_smram_do_not_change_the_ranges() -> None:
    pieces = layout.parse_mtree(MTREE_BOOTED_NUMA)
    assert layout.guest_ranges(pieces["m0"], 128 * MIB) == (GuestRange(0, 0, 128 * MIB),)
    assert layout.guest_ranges(pieces["m1"], 128 * MIB) == (GuestRange(128 * MIB, 0, 128 * MIB),)


def test_backends_join_two_answers() -> None:
    memdevs = [
        {"share": True, "size": 128, "id": "m1"},
        {"share": False, "size": 64, "id": "m0"},
        {"share": False, "size": 1},
    ]
    objects = [{"name": "type", "type": "string"}, {"name": "m1", "type": "child<memory-backend-file>"}]
    assert layout.backends(memdevs, objects) == [
        Backend("m0", "", 64, False),
        Backend("m1", "memory-backend-file", 128, True),
    ]


@pytest.mark.parametrize(
    ("kind", "share", "version", "refused"),
    [
        ("memory-backend-file", True, (7, 2, 22), False),
        ("memory-backend-file", True, (10, 0, 13), False),
        ("memory-backend-memfd", True, (7, 2, 22), False),
        ("memory-backend-memfd", True, (8, 1, 0), True),
        ("memory-backend-shm", True, (10, 0, 13), True),
        ("memory-backend-ram", True, (7, 2, 22), True),
        ("memory-backend-file", False, (7, 2, 22), True),
    ],
)
def test_refusals_name_the_option(kind: str, share: bool, version: tuple[int, int, int], refused: bool) -> None:
    backends = [Backend("ram0", kind, MIB, share)]
    if not refused:
        layout.check_backends(backends, version)
        return
    with pytest.raises(GuestRefusedError, match=r"memory-backend-file.*share=on.*memory-backend=ram0"):
        layout.check_backends(backends, version)


def test_no_backend_is_refused() -> None:
    with pytest.raises(GuestRefusedError, match="memory-backend-file"):
        layout.check_backends([], (7, 2, 22))


def test_host_addresses_are_read() -> None:
    assert layout.parse_host_address("Host virtual address for 0x0 (ram0) is 0x7f380bfff000\r\n") == 0x7F380BFFF000
    assert layout.parse_host_address("Memory at address 0xa0000 is not RAM\r\n") is None


def test_memory_that_can_be_moved_is_not_refused() -> None:
    layout.check_moved("", [{"type": "dimm", "data": {"id": "d0"}}, {"type": "nvdimm", "data": {}}])


@pytest.mark.parametrize("kind", ["virtio-mem", "hv-balloon", "sgx-epc"])
def test_memory_devices_that_change_by_themselves_are_refused_by_name(kind: str) -> None:
    with pytest.raises(GuestRefusedError, match=f"{kind} 'vm0'.*remove it"):
        layout.check_moved("", [{"type": "dimm", "data": {"id": "d0"}}, {"type": kind, "data": {"id": "vm0"}}])


def test_a_confidential_guest_is_refused_by_name() -> None:
    with pytest.raises(GuestRefusedError, match=r"confidential \(/objects/sev0\)"):
        layout.check_moved("/objects/sev0", [])


def test_a_line_without_end_takes_no_time() -> None:
    """The patterns need a time that grows with the square of what they look at; QEMU may be anybody's."""
    endless = "x" + " " * 1_000_000 + "x"
    assert parse_ram_list(endless) == []
    assert layout.parse_mtree(f' AS "memory"\n{endless}') == {}
