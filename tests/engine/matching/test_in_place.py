# SPDX-License-Identifier: Apache-2.0
"""Which blocks stay in place."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from parmig.engine.matching import in_place
from parmig.engine.matching.in_place import OfferedFile, Placed, Staying, decide
from parmig.linux.files import create_memory_file
from parmig.ram.blocks import BlockMemory, RamBlock
from parmig.ram.file_facts import FileFacts, facts_of
from parmig.units import MIB


@dataclass
class Side:
    """Places of blocks in files. Files have numbers."""

    placed: list[Placed]

    @staticmethod
    def of(*files: int | tuple[int, int], lasting: bool = True, size: int = MIB, **facts: bool) -> Side:
        """A side whose blocks are in *files*, each a number, or a number and an offset."""
        return Side(
            [
                Placed(
                    number,
                    RamBlock(f"ram{number}", size),
                    0 if isinstance(file, int) else file[1],
                    FileFacts(1, file if isinstance(file, int) else file[0], 8 * MIB, facts.get("usable", True)),
                    lasting,
                )
                for number, file in enumerate(files)
            ]
        )

    def blocks(self, private: int = 0) -> list[RamBlock]:
        """All blocks, of which the last *private* are in no file."""
        return [one.block for one in self.placed] + [RamBlock(f"rom{number}", MIB) for number in range(private)]


def staying(source: Side, here: Side, *, private: int = 0, adopts: bool = False) -> Staying:
    return decide(source.placed, here.placed, here.blocks(private), adopts=adopts)


def test_a_block_of_the_same_file_stays() -> None:
    assert staying(Side.of(5, 6), Side.of(5, 7), private=2) == Staying((0,))


def test_all_blocks_are_adopted_or_none() -> None:
    assert staying(Side.of(1, 2), Side.of(3, 4), adopts=True) == Staying((0, 1), (0, 1))
    assert staying(Side.of(1, 2), Side.of(3, 4)) == Staying()
    assert staying(Side.of(1, 2), Side.of(3, 4), private=1, adopts=True) == Staying()
    assert staying(Side.of(1, 2), Side.of(1, 4), adopts=True) == Staying((0, 1), (1,))


@pytest.mark.parametrize(
    "source",
    [
        Side.of(1, lasting=False),
        Side.of(1, usable=False),
        Side.of((1, 4096)),
        Side.of(1, size=9 * MIB),
        Side([msgspec.structs.replace(Side.of(1).placed[0], block=RamBlock("ram0", MIB, 2 * MIB))]),
    ],
    ids=["does not last", "not usable", "offset", "short", "other pages"],
)
def test_a_file_that_cannot_be_adopted_is_copied(source: Side) -> None:
    assert staying(source, Side.of(3), adopts=True) == Staying()


@pytest.mark.parametrize(
    ("source", "here"),
    [
        (Side.of(1, lasting=False), Side.of(1)),
        (Side.of(1), Side.of(1, lasting=False)),
        (Side.of(1), Side.of((1, 4096))),
        (Side.of(1, 2), Side.of(2, 1)),
    ],
)
@pytest.mark.parametrize("adopts", [False, True])
def test_a_block_is_never_copied_onto_itself(source: Side, here: Side, adopts: bool) -> None:
    mismatches = staying(source, here, adopts=adopts).mismatches
    assert mismatches
    assert "same file" in mismatches[0].destination
    assert "a memory file of its own" in mismatches[0].advice


def test_other_parts_of_the_same_file_are_copied() -> None:
    assert staying(Side.of((1, 0)), Side.of((1, MIB))) == Staying()


def test_one_channel_is_enough_for_what_little_does_not_stay() -> None:
    large = [RamBlock("ram0", 1 << 30), RamBlock("ram1", 1 << 30), RamBlock("rom", MIB)]
    assert [in_place.channels(4, large, numbers) for numbers in ((), (1,), (0, 1), (0, 1, 2))] == [4, 4, 1, 1]
    assert in_place.channels(4, large[2:], ()) == 4
    assert in_place.copied(3, (1,)) == [0, 2]


# -- files ----------------------------------------------------------------------------------------------


def usable(fd: int) -> bool:
    try:
        return facts_of(fd).usable
    finally:
        os.close(fd)


def test_a_memory_file_of_parmig_is_sealed_and_usable() -> None:
    fd = create_memory_file("x", MIB)
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 4096)
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 2 * MIB)
    assert facts_of(fd) == FileFacts(os.fstat(fd).st_dev, os.fstat(fd).st_ino, MIB, usable=True)
    assert usable(fd)


def test_files_that_can_be_cut_or_not_written_are_not_usable(tmp_path: Path) -> None:
    named = tmp_path / "named"
    named.write_bytes(bytes(4096))
    assert usable(os.open(named, os.O_RDWR))
    assert not usable(os.open(named, os.O_RDONLY))
    assert not usable(os.open(tmp_path, os.O_RDONLY))
    assert not usable(os.memfd_create("no seals", os.MFD_ALLOW_SEALING))
    assert not usable(os.eventfd(0))


def offered(blocks: Sequence[int]) -> tuple[OfferedFile, ...]:
    return tuple(OfferedFile(block, 0, lasting=True) for block in blocks)


def test_what_the_source_names_must_have_come() -> None:
    from parmig.engine.one_host.memory_files import compare_files
    from tests.engine.agreement.test_agreement import WISH

    block = RamBlock("ram0", MIB)
    fd = create_memory_file("x", MIB)
    try:
        for files, fds in ((offered([0]), []), (offered([]), [fd]), (offered([1]), [fd]), (offered([0, 0]), [fd, fd])):
            asked = msgspec.structs.replace(WISH, blocks=(block,), files=files)
            found = compare_files(asked, fds, [BlockMemory(block, fd)], [], adopts=True)
            assert [one.what for one in found.mismatches] == ["memory files"]
            assert not found.numbers
    finally:
        os.close(fd)
