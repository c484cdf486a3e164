# SPDX-License-Identifier: Apache-2.0
"""The page tables of a worker, as the kernel counts them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from parmig.ram.bits import Index, index_of_runs
from parmig.ram.blocks import PAGE_BYTES, BlockMemory, RamBlock
from parmig.ram.place import PagePlacer
from parmig.ram.reach.mapped import BlockMapping
from parmig.ram.reach.tables import MOST_TABLES, TABLE_PAGES, TableBudget, tables_of_worker
from tests.ram.test_send import sending
from tests.support import content, mapped, shared_area

TABLES = 64
TABLE_BYTES = 4096
SLACK_BYTES = 4 * TABLE_BYTES
"""What Python itself may map meanwhile. Some files are mapped in huge pages, which need fewer tables."""


def table_bytes() -> int:
    """Page tables of this process."""
    found = re.search(r"VmPTE:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


@pytest.fixture(params=["memfd", "file"])
def mapping(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BlockMapping]:
    name = tmp_path / "ram"
    fd = os.memfd_create("ram") if request.param == "memfd" else os.open(name, os.O_RDWR | os.O_CREAT)
    block = RamBlock("ram0", TABLES * TABLE_PAGES * PAGE_BYTES)
    os.ftruncate(fd, block.size_bytes + PAGE_BYTES)
    mapping = BlockMapping(BlockMemory(block, fd, PAGE_BYTES))
    yield mapping
    mapping.close()
    os.close(fd)


def every_table(mapping: BlockMapping) -> Index:
    return np.arange(0, mapping.block.pages, TABLE_PAGES)


def test_dropped_tables_are_given_back_and_the_pages_stay(mapping: BlockMapping) -> None:
    index = every_table(mapping)
    data = content(0, len(index))
    view = mapping.buffer[:PAGE_BYTES]
    before = table_bytes()
    mapping.pages[index] = data
    assert table_bytes() > before + SLACK_BYTES
    mapping.drop_tables()
    assert table_bytes() <= before + SLACK_BYTES
    assert (mapping.pages[index] == data).all()
    assert bytes(view) == data[0].tobytes()
    del view
    mapping.pages[1] = 7
    assert os.pread(mapping.fd, 2 * PAGE_BYTES, PAGE_BYTES) == data[0].tobytes() + bytes([7]) * PAGE_BYTES


def test_absent_pages_are_placed_after_a_drop_as_before(mapping: BlockMapping) -> None:
    pages = content(0, 32)
    for first in (0, 100, 200):
        mapping.write_run(first, memoryview(pages.tobytes()))
        mapping.drop_tables()
        assert (mapping.pages[first : first + 32] == pages).all()
    assert mapping.allocated(0, 300).sum() == 96


def test_a_read_only_mapping_stays_one(mapping: BlockMapping) -> None:
    memory = BlockMemory(mapping.block, mapping.fd, mapping.file_offset_bytes)
    reader = BlockMapping(memory, writable=False)
    reader.drop_tables()
    with pytest.raises(TypeError):
        reader.buffer[0] = 1
    protections = [
        line.split()[1]
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.startswith(f"{reader.pages.ctypes.data:x}-")
    ]
    assert protections == ["r--s"]
    reader.close()


def test_a_budget_drops_tables_once_too_many_were_used(mapping: BlockMapping) -> None:
    budget = TableBudget([mapping], most_tables=TABLES // 4)
    most = 0
    before = table_bytes()
    for part in np.array_split(np.arange(0, mapping.block.pages, 16), 4 * TABLES):
        budget.use(0, part)
        mapping.pages[part] = 1
        most = max(most, table_bytes())
    assert before < most <= before + TABLES // 4 * TABLE_BYTES + SLACK_BYTES


def test_within_its_budget_nothing_is_dropped_however_often_pages_are_used(mapping: BlockMapping) -> None:
    index = every_table(mapping)
    budget = TableBudget([mapping], most_tables=TABLES)
    before = table_bytes()
    for pages in (index, index[:0], index[:1], index):
        budget.use(0, pages)
        mapping.pages[pages] = 1
        budget.relax()
    assert table_bytes() > before + SLACK_BYTES


def test_after_the_first_round_the_tables_of_a_large_guest_are_dropped(mapping: BlockMapping) -> None:
    index = every_table(mapping)
    budget = TableBudget([mapping], most_tables=TABLES // 2)
    before = table_bytes()
    budget.use(0, index[: TABLES // 2])
    mapping.pages[index[: TABLES // 2]] = 1
    assert table_bytes() > before + SLACK_BYTES
    budget.relax()
    assert table_bytes() <= before + SLACK_BYTES


@pytest.mark.parametrize(("workers", "tables"), [(1, 4096), (2, 4096), (16, 4096), (64, 1024), (256, 256)])
def test_many_workers_of_a_side_share_a_limit(workers: int, tables: int) -> None:
    assert tables_of_worker(workers) == tables


def test_a_look_at_memory_is_no_sign_that_the_host_needs_it(mapping: BlockMapping) -> None:
    for _ in range(2):
        area = Path("/proc/self/smaps").read_text().split(f"\n{mapping.pages.ctypes.data:x}-", 1)[1]
        flags = re.search(r"VmFlags: (.*)", area)
        assert flags
        assert "sr" in flags[1].split()
        mapping.drop_tables()


MANY = MOST_TABLES * 3 // 2
"""So many page tables would take 24 MiB."""
GROWN_BYTES = MOST_TABLES * TABLE_BYTES + 32 * TABLE_BYTES
"""The limit, and what the pages themselves need where the test keeps them."""


def test_a_worker_that_sends_keeps_few_tables() -> None:
    with sending(MANY * TABLE_PAGES) as source:
        index = every_table(source.mappings[0])
        for page in index.tolist():
            os.pwrite(source.mappings[0].fd, b"\1" * PAGE_BYTES, page * PAGE_BYTES)
        before = table_bytes()
        source.round(1)
        assert table_bytes() <= before + GROWN_BYTES
        assert sum(len(index_of_runs(header.data_runs)) for header in source.channel.headers) == len(index)


def test_a_worker_that_places_keeps_few_tables() -> None:
    with mapped(MANY * TABLE_PAGES) as (mapping,), shared_area([mapping], []) as shared:
        placer = PagePlacer([mapping], shared)
        before = table_bytes()
        for page in every_table(mapping).tolist():
            placer.place_run(0, page, b"\1" * PAGE_BYTES)
            placer.note_placed(0, np.array([page]))
        assert table_bytes() <= before + GROWN_BYTES
        placer.place_zero(0, np.array([[page, page + 1] for page in every_table(mapping).tolist()]))
        assert table_bytes() <= before + GROWN_BYTES
        assert not mapping.pages[every_table(mapping)].any()
