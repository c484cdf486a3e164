# SPDX-License-Identifier: Apache-2.0
"""Which processors a worker gets, for hosts that this one need not be like."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from parmig.config import ReceiveConfig, SendConfig
from parmig.engine.work.pinning import Pinning, cpus_of_worker
from parmig.errors import UsageError
from parmig.linux import numa
from parmig.units import format_cpus

TWO_NODES = {0: frozenset({0, 1, 4, 5}), 1: frozenset({2, 3, 6, 7})}
ALL = frozenset(range(8))
NONE = frozenset[int]()


def test_chosen_processors_go_round_and_come_before_the_node() -> None:
    chosen = [cpus_of_worker(worker, (5, 2, 7), 0, TWO_NODES, ALL) for worker in range(5)]
    assert chosen == [(5,), (2,), (7,), (5,), (2,)]


def test_on_a_host_with_nodes_a_worker_is_kept_to_that_of_its_network_device() -> None:
    assert cpus_of_worker(0, (), 1, TWO_NODES, ALL) == (2, 3, 6, 7)
    assert cpus_of_worker(0, (), 1, TWO_NODES, frozenset({0, 3, 7})) == (3, 7)


@pytest.mark.parametrize(
    ("node", "nodes", "allowed"),
    [
        (None, TWO_NODES, ALL),  # no device, as for loopback
        (0, {0: ALL}, ALL),
        (0, {}, ALL),
        (2, TWO_NODES, ALL),  # a node that has memory only
        (1, TWO_NODES, frozenset({0, 1})),  # none of the node's processors is allowed
    ],
)
def test_otherwise_a_worker_may_use_every_processor(
    node: int | None, nodes: dict[int, frozenset[int]], allowed: frozenset[int]
) -> None:
    assert cpus_of_worker(0, (), node, nodes, allowed) == ()


def test_a_processor_that_is_not_allowed_is_refused_by_name() -> None:
    allowed = os.sched_getaffinity(0)
    for config in (SendConfig(cpus="8190"), ReceiveConfig(cpus="8190")):
        with pytest.raises(UsageError) as caught:
            config.check()
        assert str(caught.value) == (
            f"--cpus has 8190, but parmig may use {format_cpus(allowed)} only; name some of these"
        )
    SendConfig(cpus=format_cpus(allowed)).check()


def test_this_hosts_nodes_have_its_processors() -> None:
    nodes = numa.node_cpus()
    assert not nodes or os.sched_getaffinity(0) <= frozenset[int]().union(*nodes.values())


def test_nodes_are_read_as_the_kernel_writes_them(tmp_path: Path) -> None:
    for node, text in enumerate(("0-1,4-5\n", "2-3,6-7\n", "\n")):
        (tmp_path / f"node{node}").mkdir()
        (tmp_path / f"node{node}" / "cpulist").write_text(text)
    (tmp_path / "has_cpu").write_text("0-1\n")
    assert numa.node_cpus(tmp_path) == TWO_NODES


@pytest.mark.parametrize(("text", "node"), [("1\n", 1), ("-1\n", None), ("", None)])
def test_the_node_of_an_address_is_that_of_its_device(tmp_path: Path, text: str, node: int | None) -> None:
    device = tmp_path / "lo" / "device"
    device.mkdir(parents=True)
    (device / "numa_node").write_text(text)
    assert numa.node_of_address("127.0.0.1", tmp_path) == node
    assert numa.node_of_address("192.0.2.1", tmp_path) is None


def test_loopback_has_no_device_and_a_connection_to_it_begins_there() -> None:
    assert numa.node_of_address("127.0.0.1") is None
    assert numa.local_address("127.0.0.1") == "127.0.0.1"
    assert numa.local_address("[::1]") in ("::1", "")
    assert numa.local_address("no.such.host.invalid") == ""


def test_no_worker_is_pinned_to_the_node_of_loopback() -> None:
    assert Pinning("").cpus(0, remote="127.0.0.1") == ()
    assert Pinning("1,0").cpus(2) == (1,)
