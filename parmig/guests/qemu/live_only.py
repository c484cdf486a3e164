# SPDX-License-Identifier: Apache-2.0
"""What ``xen-save-devices-state`` leaves out without an error: state that only live sections have. Pure functions.

The command skips everything with a live part (qemu_save_device_state in migration/savevm.c).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from parmig.guests.qemu.device_list import Device

LIVE_DEVICES = re.compile(r"vfio-.*")
"""Types of devices whose state has a live part (hw/vfio/migration.c)."""

LIVE_TARGETS = frozenset({"s390x", "ppc64"})
"""Names of ``query-target`` whose storage keys or page tables have one (hw/s390x, hw/ppc/spapr.c)."""


def left_out(
    target: str, devices: Iterable[Device], nodes: Iterable[Mapping[str, Any]], *, moves_bitmaps: bool
) -> list[str]:
    """State that would be lost, for people; empty: none.

    Args:
        target: ``arch`` of ``query-target``.
        devices: all of them.
        nodes: the answer of ``query-named-block-nodes``.
        moves_bitmaps: whether the capability ``dirty-bitmaps`` is on. Without it, a persistent bitmap travels within
            its image.
    """
    lost = [f"the storage tables of a {target} machine"] if target in LIVE_TARGETS else []
    lost += [f"the state of device {device}" for device in devices if LIVE_DEVICES.fullmatch(device.type)]
    bitmaps = {
        (str(bitmap.get("name", "")), str(node.get("node-name", "")))
        for node in nodes
        for bitmap in node.get("dirty-bitmaps", ())
        if moves_bitmaps or not bitmap.get("persistent")
    }
    lost += [f"dirty bitmap {name!r} of block node {node!r}" for name, node in sorted(bitmaps)]
    return lost


def disks_given_away(nodes: Iterable[Mapping[str, Any]], graph: Mapping[str, Any]) -> bool:
    """Whether QEMU has handed a disk over, to another QEMU that may write to it now.

    Args:
        nodes: the answer of ``query-named-block-nodes``; it says so itself from QEMU 10.0 on.
        graph: the answer of ``x-debug-query-block-graph``; a disk that was handed over is used with no permission.
    """
    if any(node.get("active") is False for node in nodes):
        return True
    owners = {node["id"] for node in graph["nodes"] if node["type"] == "block-backend"}
    return any(edge["parent"] in owners and not edge["perm"] for edge in graph["edges"])
