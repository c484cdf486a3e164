# SPDX-License-Identifier: Apache-2.0
"""Where a process maps a block, by lines of /proc/PID/maps of real QEMUs."""

from __future__ import annotations

import pytest

from parmig.errors import GuestRefusedError
from parmig.guests.qemu.maps import Extent, Place, Vma, find_place, find_segments, parse_maps
from parmig.ram.blocks import Segment

MAPS = """\
55d0c0a00000-55d0c0b00000 r-xp 00000000 fe:01 1234                       /usr/bin/qemu-system-x86_64
55d0c3565000-55d0c47fa000 rw-p 00000000 00:00 0                          [heap]
7f902bfff000-7f916bfff000 rw-s 00000000 00:1b 5                          /dev/shm/a guest (deleted)
7f916bfff000-7f916c000000 ---p 00000000 00:00 0
7fc3fbe00000-7fc3fbf00000 rw-p 00000000 00:00 0
7fc3fbf00000-7fc3fc000000 rw-p 00000000 00:00 0
7fc3fc000000-7fc3fc100000 rw-p 00200000 00:01 9                          /memfd:memory-backend-memfd (deleted)
7fc3fd000000-7fc3fd100000 r--s 00000000 00:1b 6                          /dev/shm/rom
"""

VMAS = parse_maps(MAPS)


def test_maps_are_read() -> None:
    path = "/dev/shm/a guest (deleted)"
    assert VMAS[2] == Vma(0x7F902BFFF000, 0x7F916BFFF000, True, True, 0, (0, 0x1B), 5, path)
    assert [vma.writable for vma in VMAS] == [False, True, True, False, True, True, True, False]
    assert [vma.shared for vma in VMAS] == [False, False, True, False, False, False, False, True]
    assert (VMAS[1].path, VMAS[3].path) == ("[heap]", "")
    assert VMAS[6].offset_bytes == 0x200000


@pytest.mark.parametrize(
    ("address", "size_bytes", "place"),
    [
        pytest.param(0x7F902BFFF000, 0x140000000, Place(True, Extent((0, 0x1B), 5, 0)), id="shared file"),
        pytest.param(0x7F902C000000, 0x1000, Place(True, Extent((0, 0x1B), 5, 4096)), id="part of a shared file"),
        pytest.param(0x7FC3FC001000, 0x1000, Place(False, Extent((0, 1), 9, 0x201000)), id="private file"),
        pytest.param(0x7FC3FBE00000, 0x200000, Place(False, None), id="two anonymous mappings"),
        pytest.param(0x7FC3FBE00000, 0x200001, None, id="anonymous, then a file"),
        pytest.param(0x7F902BFFF000, 0x140001000, None, id="more than is writable"),
        pytest.param(0x7FC3FD000000, 0x1000, None, id="read-only"),
        pytest.param(0x7FC3FC0FF000, 0x2000, None, id="end missing"),
        pytest.param(0x7FC3FBDFF000, 0x2000, None, id="begin missing"),
        pytest.param(0x1000, 0x1000, None, id="nothing below"),
        pytest.param(0x7FC3FE000000, 0x1000, None, id="nothing above"),
    ],
)
def test_a_block_has_one_place_that_is_writable(address: int, size_bytes: int, place: Place | None) -> None:
    assert find_place(VMAS, address, size_bytes) == place


def vma(start: int, pages: int, offset_pages: int, inode: int = 5, shared: bool = True) -> Vma:
    return Vma(start, start + pages * 4096, True, shared, offset_pages * 4096, (0, 1), inode, "x")


@pytest.mark.parametrize(
    "second",
    [vma(0x12000, 2, 3), vma(0x12000, 2, 2, inode=6), vma(0x12000, 2, 2, shared=False), vma(0x13000, 2, 3)],
    ids=["elsewhere in the file", "another file", "private", "hole"],
)
def test_mappings_that_do_not_continue_each_other_are_no_place(second: Vma) -> None:
    assert find_place([vma(0x10000, 2, 0), second], 0x10000, 3 * 4096) is None
    assert find_place([vma(0x10000, 2, 0), vma(0x12000, 2, 2)], 0x10000, 3 * 4096) == Place(True, Extent((0, 1), 5, 0))


def test_a_place_ends_where_the_block_does() -> None:
    neighbours = [vma(0xE000, 2, 0, inode=6), vma(0x10000, 2, 0), vma(0x12000, 2, 0, inode=7)]
    assert find_place(neighbours, 0x10000, 2 * 4096) == Place(True, Extent((0, 1), 5, 0))
    assert find_place(neighbours[:2], 0x10000, 2 * 4096 + 1) is None


EXTENT = Extent((0, 1), 5, 4096)


def test_neighbouring_mappings_are_joined() -> None:
    vmas = [vma(0x10000, 3, 0), vma(0x13000, 6, 3), vma(0x50000, 9, 0, inode=6)]
    assert find_segments(vmas, EXTENT, 8 * 4096) == (Segment(0, 8, 0x11000),)


def test_scattered_mappings_are_several_segments() -> None:
    vmas = [vma(0x8000, 8, 0, inode=6), vma(0x10000, 3, 6), vma(0x20000, 1, 9), vma(0x50000, 6, 0)]
    found = find_segments(vmas, EXTENT, 8 * 4096)
    assert found == (Segment(0, 5, 0x51000), Segment(5, 3, 0x10000))
    assert all(type(one.first_page) is type(one.pages) is int for one in found)


@pytest.mark.parametrize(
    ("vmas", "problem"),
    [
        pytest.param([], "not map the whole", id="nothing"),
        pytest.param([vma(0x10000, 8, 0)], "not map the whole", id="end missing"),
        pytest.param([vma(0x10000, 7, 2)], "page 0 of a RAM block nowhere,", id="start missing"),
        pytest.param([vma(0x10000, 3, 0), vma(0x50000, 5, 4)], "page 2 of a RAM block nowhere,", id="hole"),
        pytest.param([vma(0x10000, 9, 0), vma(0x50000, 2, 4)], "page 3 of a RAM block twice,", id="twice"),
    ],
)
def test_a_block_that_is_not_mapped_once_is_refused(vmas: list[Vma], problem: str) -> None:
    with pytest.raises(GuestRefusedError, match=problem):
        find_segments(vmas, EXTENT, 8 * 4096)
