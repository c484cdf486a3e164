# SPDX-License-Identifier: Apache-2.0
"""NUMA nodes: of processors and network devices, as sysfs shows them, and of memory, by move_pages(2)."""

from __future__ import annotations

import socket
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil

from parmig.linux.syscalls import MACHINE, syscall
from parmig.units import parse_cpus

_SYS_MOVE_PAGES = {"x86_64": 279, "aarch64": 239}

_NODES = Path("/sys/devices/system/node")
_NETWORKS = Path("/sys/class/net")


def node_cpus(nodes: Path = _NODES) -> dict[int, frozenset[int]]:
    """The processors of each node that has any; empty: the kernel knows no nodes."""
    lists = {int(path.parent.name[4:]): path.read_text().strip() for path in nodes.glob("node[0-9]*/cpulist")}
    return {node: frozenset(parse_cpus(text)) for node, text in lists.items() if text}


def local_address(remote: str) -> str:
    """The address of this host from which a connection to *remote* begins; empty: there is no route. Sends nothing."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(remote.strip("[]"), 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as udp:
            udp.connect(address)
            return str(udp.getsockname()[0])
    except (OSError, UnicodeError):  # also for a name that is no host name, as the path of a socket
        return ""


def node_of_address(address: str, networks: Path = _NETWORKS) -> int | None:
    """The node of the network device that has *address*; None: no device has it, or the device is of no node."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address.partition("%")[0] == address for entry in addresses):
            try:
                node = int((networks / name / "device" / "numa_node").read_text())
            except (OSError, ValueError):  # loopback, bridges and tunnels have no device
                return None
            return node if node >= 0 else None
    return None


def nodes_of_pages(pid: int, addresses: npt.NDArray[np.uint64]) -> npt.NDArray[np.int32]:
    """The node of the page at each address of process *pid*; negative: there is none (an errno), or it is not told.

    Nothing is moved and nothing is allocated. It takes about 0.2 µs an address.

    Raises:
        OSError: the process is gone or may not be looked at, or the kernel knows no nodes.
    """
    number = _SYS_MOVE_PAGES.get(MACHINE)
    if number is None:
        raise OSError(38, f"move_pages: parmig does not know its number on {MACHINE}")
    pages = np.ascontiguousarray(addresses)
    nodes = np.full(len(pages), -1, dtype=np.int32)
    syscall(number, pid, len(pages), pages.ctypes.data, 0, nodes.ctypes.data, 0)
    return nodes
