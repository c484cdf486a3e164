# SPDX-License-Identifier: Apache-2.0
"""What ``info ramblock`` of real QEMUs says (7.2.22 and 10.0.13, Debian)."""

from __future__ import annotations

from parmig.guests.qemu.ram_list import RamEntry, backend_name, block_sizes, parse_ram_list

MIB = 1 << 20

TEXT_72 = """\
              Block Name    PSize              Offset               Used              Total
                    ram0    2 MiB  0x0000000000000000 0x0000000140000000 0x0000000140000000
           /objects/ram1    1 GiB  0x0000000140000000 0x0000000140000000 0x0000000140000000
   0000:00:02.0/vga.vram    4 KiB  0x0000000140080000 0x0000000001000000 0x0000000001000000
                            4 KiB  0x00000001410c0000 0x0000000000020000 0x0000000000200000
    /rom@etc/acpi/tables    4 KiB  0x0000000011100000 0x0000000000020000 0x0000000000200000
0000:00:03.0/virtio-net-pci.rom    4 KiB  0x00000000110c0000 0x0000000000040000 0x0000000000040000
"""

TEXT_100 = """\
              Block Name    PSize              Offset               Used              Total                HVA  RO
                  pc.ram    4 KiB  0x0000000000000000 0x0000000010000000 0x0000000010000000 0x00007fb75fe00000  rw
                            4 KiB  0x000000001c000000 0x0000000000200000 0x0000000000200000 0x00007fc5c7000000  rw
    /rom@etc/acpi/tables    4 KiB  0x0000000011100000 0x0000000000020000 0x0000000000200000 0x00007fb775800000  ro
0000:00:03.0/virtio-net-pci.rom    4 KiB  0x00000000110c0000 0x0000000000040000 0x0000000000040000 0x00007fb776e00000  ro
"""  # noqa: E501


def test_blocks_of_7_2_have_no_address() -> None:
    assert parse_ram_list(TEXT_72) == [
        RamEntry("ram0", 2 * MIB, 0, 0x140000000, 0x140000000, None),
        RamEntry("/objects/ram1", 1024 * MIB, 0x140000000, 0x140000000, 0x140000000, None),
        RamEntry("0000:00:02.0/vga.vram", 4096, 0x140080000, 16 * MIB, 16 * MIB, None),
        RamEntry("", 4096, 0x1410C0000, 0x20000, 2 * MIB, None),
        RamEntry("/rom@etc/acpi/tables", 4096, 0x11100000, 0x20000, 2 * MIB, None),
        RamEntry("0000:00:03.0/virtio-net-pci.rom", 4096, 0x110C0000, 0x40000, 0x40000, None),
    ]


def test_blocks_of_10_0_have_an_address() -> None:
    assert parse_ram_list(TEXT_100) == [
        RamEntry("pc.ram", 4096, 0, 256 * MIB, 256 * MIB, 0x7FB75FE00000),
        RamEntry("", 4096, 0x1C000000, 2 * MIB, 2 * MIB, 0x7FC5C7000000),
        RamEntry("/rom@etc/acpi/tables", 4096, 0x11100000, 0x20000, 2 * MIB, 0x7FB775800000),
        RamEntry("0000:00:03.0/virtio-net-pci.rom", 4096, 0x110C0000, 0x40000, 0x40000, 0x7FB776E00000),
    ]


def test_lines_of_the_monitor_may_end_with_a_carriage_return() -> None:
    assert parse_ram_list(TEXT_100.replace("\n", "\r\n")) == parse_ram_list(TEXT_100)


def test_the_blocks_of_the_stream_are_those_with_a_name_in_the_size_they_have_now() -> None:
    assert block_sizes(TEXT_100) == {
        "pc.ram": 256 * MIB,
        "/rom@etc/acpi/tables": 0x20000,
        "0000:00:03.0/virtio-net-pci.rom": 0x40000,
    }


def test_a_backend_is_found_by_its_block_but_not_by_that_of_a_pci_device() -> None:
    assert backend_name("ram0") == backend_name("/objects/ram0") == "ram0"
    assert backend_name("0000:00:03.0/ram0") != "ram0"
