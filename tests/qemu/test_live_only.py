# SPDX-License-Identifier: Apache-2.0
"""What would be lost without a word is named."""

from __future__ import annotations

from typing import Any

import pytest

from parmig.guests.qemu.device_list import Device
from parmig.guests.qemu.live_only import disks_given_away, left_out

TRANSIENT, PERSISTENT = {"name": "backup", "persistent": False}, {"name": "kept", "persistent": True}


def nodes(*bitmaps: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"node-name": "file", "drv": "file"}, {"node-name": "disk", "drv": "raw", "dirty-bitmaps": list(bitmaps)}]


def test_plain_devices_and_disks_are_saved_whole() -> None:
    devices = [Device("virtio-blk-pci", "disk"), Device("VGA", "")]
    assert left_out("x86_64", devices, nodes(), moves_bitmaps=False) == []


@pytest.mark.parametrize("target", ["s390x", "ppc64"])
def test_tables_of_a_target_are_named(target: str) -> None:
    assert left_out(target, [], [], moves_bitmaps=False) == [f"the storage tables of a {target} machine"]


def test_hardware_is_named() -> None:
    devices = [Device("vfio-pci", "gpu"), Device("vfio-pci-nohotplug", "")]
    assert left_out("x86_64", devices, [], moves_bitmaps=False) == [
        "the state of device vfio-pci 'gpu'",
        "the state of device vfio-pci-nohotplug",
    ]


@pytest.mark.parametrize(
    ("moves_bitmaps", "names"), [(False, ["backup"]), (True, ["backup", "kept"])], ids=["within images", "by QEMU"]
)
def test_bitmaps_that_do_not_travel_within_their_image_are_named(moves_bitmaps: bool, names: list[str]) -> None:
    assert left_out("x86_64", [], nodes(TRANSIENT, PERSISTENT, TRANSIENT), moves_bitmaps=moves_bitmaps) == [
        f"dirty bitmap {name!r} of block node 'disk'" for name in names
    ]


def graph(*permissions: str) -> dict[str, Any]:
    edges = [
        {"name": "root", "parent": 1, "child": 2, "perm": list(permissions), "shared-perm": []},
        {"name": "file", "parent": 2, "child": 3, "perm": [], "shared-perm": []},
    ]
    kinds = ("block-backend", "block-driver", "block-driver")
    return {"nodes": [{"id": at + 1, "type": kind, "name": ""} for at, kind in enumerate(kinds)], "edges": edges}


def test_a_disk_that_was_handed_over_is_seen_by_either_sign() -> None:
    assert not disks_given_away(nodes(), graph("consistent-read"))
    assert disks_given_away(nodes(), graph())
    assert disks_given_away([{"node-name": "disk", "active": False}], graph("consistent-read"))
    assert not disks_given_away([{"node-name": "disk", "active": True}], graph("consistent-read"))
    assert not disks_given_away([], {"nodes": [], "edges": []})
