# SPDX-License-Identifier: Apache-2.0
"""Memory on a tmpfs that gives huge pages: they are used where most of one arrives, and every byte is right."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from parmig.errors import MemoryFullError
from parmig.linux import files, huge_pages
from parmig.ram.bits import bits_for, runs_of_index
from parmig.ram.blocks import EXTENT_PAGES, PAGE_BYTES, BlockMemory, RamBlock
from parmig.ram.reach.huge_extents import LEAST_PAGES
from parmig.ram.reach.mapped import BlockMapping
from tests.huge import HUGE_BYTES, huge_tmpfs
from tests.support import content

PAGES = 3 * EXTENT_PAGES + 100
"""Three huge pages, and an end that is none."""


@contextmanager
def block(directory: Path) -> Iterator[BlockMapping]:
    """A block in a new file of *directory*."""
    fd = os.open(directory / "ram", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    os.ftruncate(fd, PAGES * PAGE_BYTES)
    mapping = BlockMapping(BlockMemory(RamBlock("pc.ram", PAGES * PAGE_BYTES), fd))
    try:
        yield mapping
    finally:
        mapping.close()
        os.close(fd)


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[BlockMapping]:
    with huge_tmpfs(tmp_path) as directory, block(directory) as mapping:
        yield mapping


def holds(memory: BlockMapping, first: int, pages: np.ndarray) -> bool:
    data = os.pread(memory.fd, pages.nbytes, first * PAGE_BYTES)
    return data == pages.tobytes()


def runs(*pairs: tuple[int, int]) -> np.ndarray:
    return np.array(pairs, dtype=np.int64)


def test_pages_that_fill_huge_pages_may_be_stored_in_their_places(memory: BlockMapping) -> None:
    targets = memory.targets(runs((0, 2 * EXTENT_PAGES)), exist=False)
    pages = content(1, 2 * EXTENT_PAGES)
    (target,) = targets
    target[:] = pages.data.cast("B")
    del target, targets
    assert holds(memory, 0, pages)
    assert memory.huge_bytes == 2 * HUGE_BYTES
    assert os.fstat(memory.fd).st_blocks * 512 == 2 * HUGE_BYTES


@pytest.mark.parametrize(("first", "huge"), [(0, 1), (EXTENT_PAGES, 1), (EXTENT_PAGES - 30, 1), (EXTENT_PAGES // 2, 0)])
def test_a_run_is_placed_whether_it_fills_huge_pages_or_not(memory: BlockMapping, first: int, huge: int) -> None:
    pages = content(2, EXTENT_PAGES)
    memory.write_run(first, pages.data.cast("B"))
    assert holds(memory, first, pages)
    assert memory.huge_bytes == huge * HUGE_BYTES


def test_most_of_a_huge_page_is_enough_and_the_rest_of_it_is_zero(memory: BlockMapping) -> None:
    index = np.delete(np.arange(EXTENT_PAGES), [7, 100, 101])
    pages = content(3, len(index))
    memory.write(runs_of_index(index), pages.data.cast("B"), np.zeros(bits_for(PAGES), dtype=np.uint8))
    assert memory.huge_bytes == HUGE_BYTES
    assert np.array_equal(memory.look(index), pages)
    assert not memory.look(np.array([7, 100, 101])).any()


def test_too_few_pages_take_no_huge_page(memory: BlockMapping) -> None:
    pages = content(4, LEAST_PAGES - 1)
    assert memory.targets(runs((0, LEAST_PAGES - 1)), exist=False) == []
    memory.write_run(0, pages.data.cast("B"))
    assert holds(memory, 0, pages)
    assert memory.huge_bytes == 0
    assert os.fstat(memory.fd).st_blocks * 512 == (LEAST_PAGES - 1) * PAGE_BYTES


def test_pages_that_exist_in_the_place_of_a_huge_page_stay(memory: BlockMapping) -> None:
    before = content(5)
    os.pwrite(memory.fd, before, 40 * PAGE_BYTES)
    index = np.delete(np.arange(EXTENT_PAGES), [40])
    pages = content(6, len(index))
    memory.write(runs_of_index(index), pages.data.cast("B"), np.zeros(bits_for(PAGES), dtype=np.uint8))
    assert holds(memory, 40, before)
    assert np.array_equal(memory.look(index), pages)


def test_the_end_that_is_no_whole_huge_page_is_placed_in_small_ones(memory: BlockMapping) -> None:
    pages = content(7, 100)
    assert memory.targets(runs((PAGES - 100, PAGES)), exist=False) == []
    memory.write_run(PAGES - 100, pages.data.cast("B"))
    assert holds(memory, PAGES - 100, pages)


def test_a_huge_page_that_was_given_back_is_not_taken_for_memory_that_exists(memory: BlockMapping) -> None:
    memory.write_run(0, content(8, EXTENT_PAGES).data.cast("B"))
    files.punch_hole(memory.fd, 0, HUGE_BYTES)
    assert memory.targets(runs((0, EXTENT_PAGES)), exist=False) == []
    pages = content(9, EXTENT_PAGES)
    memory.write_run(0, pages.data.cast("B"))
    assert holds(memory, 0, pages)


def test_huge_pages_are_asked_for_again_after_page_tables_were_dropped(memory: BlockMapping) -> None:
    memory.drop_tables()
    memory.write_run(0, content(8, EXTENT_PAGES).data.cast("B"))
    assert memory.huge_bytes == HUGE_BYTES


def test_a_full_file_system_is_an_error_and_no_signal(tmp_path: Path) -> None:
    with huge_tmpfs(tmp_path, "size=3m") as directory, block(directory) as memory:
        memory.write_run(0, content(1, EXTENT_PAGES).data.cast("B"))
        with pytest.raises(MemoryFullError, match="no space left"):
            memory.write_run(EXTENT_PAGES, content(2, EXTENT_PAGES).data.cast("B"))


def test_a_host_that_gives_none_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    with huge_tmpfs(tmp_path) as directory, block(directory) as memory:
        populate = huge_pages.populate

        def populate_small(address: int, size_bytes: int) -> None:
            asked.append(address)
            files.map_again(
                memory.fd, 0, address - len(asked) * HUGE_BYTES + HUGE_BYTES, PAGES * PAGE_BYTES, writable=True
            )
            populate(address, size_bytes)

        monkeypatch.setattr(huge_pages, "populate", populate_small)  # without the advice there are small pages
        pages = content(1, 3 * EXTENT_PAGES)
        memory.write_run(0, pages.data.cast("B"))
        assert holds(memory, 0, pages)
        memory.write_run(0, pages.data.cast("B"))
    assert len(asked) == 1
