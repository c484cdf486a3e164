# SPDX-License-Identifier: Apache-2.0
"""The devices of a QEMU, and those among them whose writes no tracker sees. Pure functions, no I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from parmig.guests.qemu import ram_list

_DEVICE_LINE = re.compile(r' *dev: (?P<type>[^,]+), id "(?P<id>[^"]*)"')
"""One device of ``info qtree``, as system/qdev-monitor.c (qdev_print) prints it."""

_NETWORK_LINE = re.compile(r"[ \\]*(?P<id>[^ :]+): index=\d+,type=(?P<type>[^,]+)")
"""One network client of ``info network``, as net/net.c (print_net_client) prints it."""

UNTRACKED_DEVICES = re.compile(
    r"vfio-.*"  # the hardware, through the IOMMU
    r"|vhost-user-.*|vhost-scsi.*|vhost-vdpa-.*"  # another process, the kernel's target, the hardware
    r"|x-pci-proxy-dev"  # another process
    r"|ivshmem-.*"  # other guests
    r"|pvrdma"  # the hardware, into pages pinned for good
)
"""Types of devices whose writes go past QEMU's page tables.

vhost-net and vhost-vsock are not among them: the kernel's vhost threads store through QEMU's page tables
(drivers/vhost/vhost.c, vhost_attach_mm), so write tracking sees them.
"""

UNTRACKED_NETWORKS = frozenset({"vhost-user", "vhost-vdpa"})
UNTRACKED_OBJECTS = frozenset({"cryptodev-vhost-user", "x-remote-object", "x-vfio-user-server"})

UNTRACKED_DRIVERS = frozenset(
    {"nvme", "nvme-io_uring", "virtio-blk-vfio-pci", "virtio-blk-vhost-user", "virtio-blk-vhost-vdpa"}
)
"""Block drivers that map all of guest memory for their hardware or peer once (block/nvme.c, block/blkio.c)."""


class Device(NamedTuple):
    """A device, network client, object or block node: its type, and its id or an empty string."""

    type: str
    id: str

    def __str__(self) -> str:
        return f"{self.type} {self.id!r}" if self.id else self.type


class Inventory(NamedTuple):
    """What must stay as it is from the start of a dirty log to the pause: devices in order, RAM blocks with sizes."""

    devices: tuple[Device, ...]
    blocks: tuple[str, ...]


def inventory(qtree: str, ramblocks: str) -> Inventory:
    """The devices and RAM blocks that HMP ``info qtree`` and ``info ramblock`` printed."""
    matches = (_DEVICE_LINE.match(line) for line in qtree.splitlines())
    sizes = ram_list.block_sizes(ramblocks)
    return Inventory(
        tuple(Device(match["type"], match["id"]) for match in matches if match),
        tuple(f"{name} of {size_bytes} bytes" for name, size_bytes in sizes.items()),
    )


def changes(before: Inventory, now: Inventory) -> str:
    """The differences between two inventories, for people; empty: none."""
    words = []
    for what, then, after in (("device", before.devices, now.devices), ("RAM block", before.blocks, now.blocks)):
        came, went = list(after), list(then)
        for item in then:
            if item in came:
                came.remove(item)
                went.remove(item)
        words += [f"{what} {item} was added" for item in came] + [f"{what} {item} was removed" for item in went]
    return "; ".join(words)


def untracked(
    devices: Iterable[Device], network: str, objects: Iterable[Mapping[str, str]], nodes: Iterable[Mapping[str, Any]]
) -> list[Device]:
    """The devices whose writes to guest memory no tracker sees: another process or hardware makes them.

    Args:
        devices: all of them.
        network: what HMP ``info network`` printed.
        objects: the answer of ``qom-list`` on ``/objects``.
        nodes: the answer of ``query-named-block-nodes``.
    """
    result = [device for device in devices if UNTRACKED_DEVICES.fullmatch(device.type)]
    clients = (_NETWORK_LINE.match(line) for line in network.splitlines())
    result += [Device(match["type"], match["id"]) for match in clients if match and match["type"] in UNTRACKED_NETWORKS]
    kinds = [Device(item["type"].removeprefix("child<").removesuffix(">"), item["name"]) for item in objects]
    result += [item for item in kinds if item.type in UNTRACKED_OBJECTS]
    result += [Device(str(n["drv"]), str(n.get("node-name", ""))) for n in nodes if n["drv"] in UNTRACKED_DRIVERS]
    return result
