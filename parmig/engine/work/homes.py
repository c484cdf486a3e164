# SPDX-License-Identifier: Apache-2.0
"""NUMA nodes of regions and workers, so that a worker gets regions of its own node first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from parmig.engine.work.shares import assign
from parmig.linux import numa
from parmig.ram.blocks import PAGE_BYTES
from parmig.ram.dirty_log import DirtyLog, Segment
from parmig.ram.regions import Region

PROBES = 4
"""Pages of a region that the kernel is asked about; the first that exists tells the node of the region. A region has at
most 64 MiB, and QEMU and the kernel place memory in far larger pieces, unless it is interleaved."""

NOWHERE = -1
"""The node of a region without memory, or of memory that the kernel does not tell the node of."""


class Homes(msgspec.Struct, frozen=True):
    """Where regions and workers are.

    Attributes:
        of_regions: the node of each region, or NOWHERE.
        of_workers: the node of each worker; None: it may use processors of several nodes.
    """

    of_regions: tuple[int, ...]
    of_workers: tuple[int | None, ...]


class Nearness(NamedTuple):
    """What a worker owns: its node, and the percentage of its pages that are there."""

    node: int | None
    near_percent: float


def node_of_cpus(cpus: Sequence[int], nodes: Mapping[int, Set[int]]) -> int | None:
    """The node that has all of *cpus*; None: none has, or there are none."""
    return next((node for node, its in sorted(nodes.items()) if cpus and its >= set(cpus)), None)


def find_homes(log: DirtyLog, regions: Sequence[Region], cpus: Sequence[Sequence[int]]) -> Homes | None:
    """Where the regions of a guest are, and the workers that are kept to *cpus*.

    None if that does not matter or is not known: one node, no worker that is kept to a node, a dirty log without
    addresses of the guest's memory, or a kernel that does not tell.
    """
    nodes = numa.node_cpus()
    workers = tuple(node_of_cpus(each, nodes) for each in cpus)
    if len(nodes) < 2 or not any(node is not None for node in workers) or not log.segments or not regions:
        return None
    addresses = [probe_addresses(region, log.segments[region.block]) for region in regions]
    try:
        probed = numa.nodes_of_pages(log.pid, np.array(addresses, dtype=np.uint64).ravel())
    except OSError:
        return None
    return Homes(tuple(first_node(probed.reshape(-1, PROBES))), workers)


def probe_addresses(region: Region, segments: Sequence[Segment]) -> list[int]:
    """PROBES addresses in *region*, evenly spread; 0 where the process has nothing mapped."""
    pages = [region.first_page + number * region.pages // PROBES for number in range(PROBES)]
    return [
        next(
            (
                part.address + (page - part.first_page) * PAGE_BYTES
                for part in segments
                if part.first_page <= page < part.first_page + part.pages
            ),
            0,
        )
        for page in pages
    ]


def first_node(probed: npt.NDArray[np.int32]) -> list[int]:
    """The first node in each row, shape (regions, PROBES); NOWHERE: there is none, only errors, which are negative."""
    exists = probed >= 0
    first = np.argmax(exists, axis=1)
    nodes = probed[np.arange(len(probed)), first]
    return [int(node) for node in np.where(exists.any(axis=1), nodes, NOWHERE)]


def assign_near(weights: Sequence[int], homes: Homes, speeds: Sequence[float] | None = None) -> list[Sequence[int]]:
    """Give each worker regions of its own node, and its part of those that are on no worker's node.

    Args:
        weights: one a region (its pages).
        speeds: as for :func:`parmig.engine.work.shares.assign`, which divides each part.

    Returns:
        region numbers by worker, ascending; every region exactly once.
    """
    where = np.array(homes.of_regions, dtype=np.int64)
    nodes = sorted({node for node in homes.of_workers if node is not None})
    everyone = range(len(homes.of_workers))
    groups = [(where == node, [worker for worker in everyone if homes.of_workers[worker] == node]) for node in nodes]
    groups.append((~np.isin(where, nodes), list(everyone)))
    owned: list[list[int]] = [[] for _ in everyone]
    for mask, members in groups:
        numbers = np.flatnonzero(mask).tolist()
        rates = None if speeds is None else [speeds[worker] for worker in members]
        parts = assign([weights[number] for number in numbers], len(members), rates)
        for worker, part in zip(members, parts, strict=True):
            owned[worker] += [numbers[place] for place in part]
    return [sorted(numbers) for numbers in owned]


def nearness(weights: Sequence[int], homes: Homes, owned: Sequence[Sequence[int]]) -> list[Nearness]:
    """How much of what each worker owns is on its node."""
    result = []
    for node, numbers in zip(homes.of_workers, owned, strict=True):
        pages = sum(weights[number] for number in numbers)
        near = sum(weights[number] for number in numbers if node is not None and homes.of_regions[number] == node)
        result.append(Nearness(node, 100 * near / pages if pages else 0.0))
    return result
