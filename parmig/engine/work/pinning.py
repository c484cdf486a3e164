# SPDX-License-Identifier: Apache-2.0
"""Which processors a worker may use."""

from __future__ import annotations

import os
from collections.abc import Mapping, Set

from parmig.linux import numa
from parmig.units import parse_cpus


def cpus_of_worker(
    worker: int, chosen: tuple[int, ...], node: int | None, nodes: Mapping[int, Set[int]], allowed: Set[int]
) -> tuple[int, ...]:
    """The processors to which a worker is kept; empty: it may use all. Pure.

    Args:
        chosen: by the user, in their order.
        node: of the network device of the worker's channel, if it has one.
        nodes: the processors of each NUMA node.
        allowed: the processors that this process may use.
    """
    if chosen:
        return (chosen[worker % len(chosen)],)
    if len(nodes) < 2 or node is None:
        return ()
    return tuple(sorted(nodes.get(node, frozenset()) & allowed))


class Pinning:
    """Looks up the processors of each worker of one side.

    Args:
        chosen: the list of ``--cpus``, or empty.
    """

    def __init__(self, chosen: str) -> None:
        self._chosen = parse_cpus(chosen) if chosen else ()
        self._nodes = numa.node_cpus()
        self._allowed = os.sched_getaffinity(0)

    def cpus(self, worker: int, *, local: str = "", remote: str = "") -> tuple[int, ...]:
        """As :func:`cpus_of_worker`, for a channel from address *local*, or from any to *remote*."""
        node = None
        if not self._chosen and len(self._nodes) > 1:
            # A local address may be a name. The way to an address of this host begins at this address.
            node = numa.node_of_address(numa.local_address(local or remote))
        return cpus_of_worker(worker, self._chosen, node, self._nodes, self._allowed)
