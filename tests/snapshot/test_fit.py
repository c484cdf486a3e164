# SPDX-License-Identifier: Apache-2.0
"""What a snapshot and a guest must have in common."""

from __future__ import annotations

from parmig.guests.guest import GuestInfo
from parmig.ram.blocks import RamBlock
from parmig.snapshot.fit import mismatches
from parmig.stream.ram_blocks import BlockEntry

INFO = GuestInfo("qemu", "pc-1", "QEMU")
MEMORY = [RamBlock("ram0", 8192)]
IN_FILE = [BlockEntry("vga", 4096), BlockEntry("ram0", 8192)]


def test_the_same_guest_fits_in_any_order_of_blocks() -> None:
    assert mismatches("qemu", "pc-1", IN_FILE, INFO, MEMORY, {"vga"}) == []


def test_the_guest_judges_the_sizes_of_its_small_blocks_itself() -> None:
    assert mismatches("qemu", "pc-1", [BlockEntry("vga", 1 << 20), IN_FILE[1]], INFO, MEMORY, {"vga"}) == []


def test_every_mismatch_is_told_at_once() -> None:
    found = mismatches("qemu", "pc-2", [BlockEntry("ram0", 4096), BlockEntry("x", 4096)], INFO, MEMORY, {"vga"})
    assert [one.partition(":")[0] for one in found] == [
        "machine type",
        "RAM block 'vga'",
        "RAM block 'x'",
        "RAM block 'ram0'",
    ]
    assert "only here" in found[1]
    assert "only in the file" in found[2]


def test_of_another_kind_of_guest_nothing_else_is_compared() -> None:
    (found,) = mismatches("kvm", "pc-2", [], INFO, MEMORY, ())
    assert found == "guest kind: 'kvm' in the file, 'qemu' here"
