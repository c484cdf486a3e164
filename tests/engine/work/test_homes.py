# SPDX-License-Identifier: Apache-2.0
"""Regions go to workers of their NUMA node. This host may have one node: nodes are made up, and asking is real."""

from __future__ import annotations

import mmap
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parmig.engine.plan.round_work import RoundKind, RoundWork
from parmig.engine.work.homes import NOWHERE, Homes, assign_near, find_homes, first_node, nearness, node_of_cpus
from parmig.linux import numa
from parmig.ram.blocks import PAGE_BYTES, RamBlock
from parmig.ram.dirty_log import DirtyLog, Segment
from parmig.ram.regions import cut

NODES = {0: frozenset({0, 1}), 1: frozenset({2, 3})}

regions_of_nodes = st.lists(st.tuples(st.integers(1, 1000), st.integers(NOWHERE, 2)), max_size=60)
workers_of_nodes = st.lists(st.sampled_from([None, 0, 1]), min_size=1, max_size=6)


@given(regions_of_nodes, workers_of_nodes, st.booleans())
def test_every_region_has_one_owner_of_its_node_if_there_is_any(
    regions: list[tuple[int, int]], workers: list[int | None], unequal: bool
) -> None:
    weights = [pages for pages, _ in regions]
    homes = Homes(tuple(node for _, node in regions), tuple(workers))
    owned = assign_near(weights, homes, [1.0 + worker for worker in range(len(workers))] if unequal else None)
    assert sorted(number for numbers in owned for number in numbers) == list(range(len(regions)))
    for worker, numbers in enumerate(owned):
        assert list(numbers) == sorted(numbers)
        for number in numbers:
            home = homes.of_regions[number]
            assert home == workers[worker] or home not in workers
    for near in nearness(weights, homes, owned):
        assert 0 <= near.near_percent <= 100


def test_the_workers_of_a_node_share_its_regions_equally() -> None:
    homes = Homes((0,) * 8 + (1,) * 8, (0, 1, 0, 1))
    owned = assign_near([10] * 16, homes)
    assert owned == [[0, 1, 2, 3], [8, 9, 10, 11], [4, 5, 6, 7], [12, 13, 14, 15]]
    assert [near.near_percent for near in nearness([10] * 16, homes, owned)] == [100.0] * 4


def test_a_round_hands_out_regions_of_the_own_node_first() -> None:
    regions = cut([RamBlock("pc.ram", 16 * 64 * PAGE_BYTES)], 64)
    work = RoundWork(regions, 2, remembering=False)
    assert work.settle(None) == []
    near = work.settle(Homes((1,) * 8 + (0,) * 8, (0, 1)))
    assert [part.near_percent for part in near] == [100.0, 100.0]
    orders = work.begin(1, RoundKind.RUNNING, work.total_pages, 0)
    given_to = {0: set[int](), 1: set[int]()}
    for order in orders:
        given_to[order.worker] |= set(order.instruction.regions)  # type: ignore[union-attr]
    assert min(given_to[0]) >= 8
    assert max(given_to[1]) < 8


def test_a_worker_has_a_node_only_if_all_its_processors_are_there() -> None:
    assert [node_of_cpus(cpus, NODES) for cpus in ((), (0,), (2, 3), (1, 2), (9,))] == [None, 0, 1, None, None]


def test_the_first_page_that_exists_tells_the_node_of_a_region() -> None:
    told = np.array([[-2, -2, 1, 0], [0, 1, 1, 1], [-2, -14, -2, -2]], dtype=np.int32)
    assert first_node(told) == [1, 0, NOWHERE]


def test_the_kernel_tells_the_node_of_memory_that_exists_and_allocates_none() -> None:
    if not numa.node_cpus():
        pytest.skip("this kernel knows no NUMA nodes")
    with mmap.mmap(-1, 8 * PAGE_BYTES) as memory:
        memory[3 * PAGE_BYTES] = 1
        array = np.frombuffer(memory, dtype=np.uint8)
        addresses = np.arange(8, dtype=np.uint64) * PAGE_BYTES + np.uint64(array.ctypes.data)
        nodes = numa.nodes_of_pages(os.getpid(), addresses)
        assert np.flatnonzero(nodes >= 0).tolist() == [3]
        assert nodes[3] in numa.node_cpus()
        del array
    with pytest.raises(OSError, match="No such process"):
        numa.nodes_of_pages(2**22 + 1, addresses)


def test_homes_are_looked_up_where_workers_are_kept_to_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    regions = cut([RamBlock("pc.ram", 2 * 64 * PAGE_BYTES)], 64)
    log = DirtyLog("pagemap", os.getpid(), ((Segment(0, 128, 1 << 30),),))
    asked: list[int] = []

    def nodes_of_pages(pid: int, addresses: np.ndarray) -> np.ndarray:
        asked.extend(addresses.tolist())
        return np.array([1 if address >= (1 << 30) + 64 * PAGE_BYTES else -2 for address in addresses], dtype=np.int32)

    monkeypatch.setattr(numa, "nodes_of_pages", nodes_of_pages)
    assert find_homes(log, regions, [(0,), (2,)]) is None or len(numa.node_cpus()) > 1
    monkeypatch.setattr(numa, "node_cpus", lambda: NODES)
    assert find_homes(log, regions, [(), ()]) is None
    asked.clear()
    assert find_homes(log, regions, [(0,), (2,)]) == Homes((NOWHERE, 1), (0, 1))
    assert asked == [(1 << 30) + page * PAGE_BYTES for page in (0, 16, 32, 48, 64, 80, 96, 112)]
