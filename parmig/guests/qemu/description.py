# SPDX-License-Identifier: Apache-2.0
"""What a QEMU guest depends on, in words that mean the same on every host. Pure functions, no I/O."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from parmig.units import format_size

_DEVICE = re.compile(r' *dev: (?P<type>[^,]+), id "(?P<id>[^"]*)"')
_BUS = re.compile(r" *bus: (?P<name>.*)")
_PLACE = re.compile(r' *(?P<name>addr|port|scsi-id|lun|unit|nr|iobase|slot) = "?(?P<value>[^"(]*?)"?(?: \(.*\))?')
"""Lines of ``info qtree``, as system/qdev-monitor.c prints them: a device, a bus, and where a device is on its bus."""

_CPU_LEVELS = ("drawers", "books", "sockets", "dies", "clusters", "modules", "cores", "threads")
"""What ``-smp`` arranges CPUs in, from the outside in."""

_SYSTEM_BUS = "main-system-bus"


def devices(qtree: str) -> list[str]:
    """Each device with its id and its place on its bus.

    Devices on the system bus that have no id are left out: they come with the machine type, and not every version of
    QEMU shows the same of them.

    Args:
        qtree: what HMP ``info qtree`` printed.
    """
    described: list[list[str]] = []
    buses: list[tuple[int, str]] = []
    last_indent, last_words = 0, [""]
    for line in qtree.splitlines():
        indent = len(line) - len(line.lstrip())
        if bus := _BUS.fullmatch(line):
            buses = [*(above for above in buses if above[0] < indent), (indent, bus["name"])]
        elif device := _DEVICE.fullmatch(line):
            buses = [above for above in buses if above[0] < indent]
            bus_name = buses[-1][1] if buses else ""
            quoted_id = [repr(device["id"])] if device["id"] else []
            last_indent, last_words = indent, [device["type"], *quoted_id, "on", bus_name]
            if device["id"] or bus_name != _SYSTEM_BUS:
                described.append(last_words)
        elif (place := _PLACE.fullmatch(line)) and indent == last_indent + 2 and place["value"]:
            last_words += [place["name"], place["value"]]
    return [" ".join(words) for words in described]


def disks(drives: Iterable[Mapping[str, Any]]) -> list[str]:
    """Each drive that the guest has: id, format, size, and the file name of its image without the directory.

    Args:
        drives: the answer of ``query-block``.
    """
    return [_disk(drive) for drive in drives if drive.get("qdev") or drive.get("device")]


def _disk(drive: Mapping[str, Any]) -> str:
    of_user = re.match(r"(?:/machine/peripheral/)?([^/]+)", str(drive.get("qdev", "")))  # an id, or a path in QOM
    label = of_user[1] if of_user else str(drive.get("device") or "a drive without an id")
    medium = drive.get("inserted")
    if medium is None:
        return f"{label}: empty"
    image = medium["image"]  # without the filters of jobs, such as one that mirrors the disk
    words = [str(image["format"]), format_size(int(image["virtual-size"])), _image_name(str(image["filename"]))]
    words += ["read-only"] if medium["ro"] else []
    return f"{label}: {' '.join(filter(None, words))}"


def _image_name(filename: str) -> str:
    """The last part of a path or URI. Empty if it says nothing: devices in /dev have another name on each host."""
    if filename.startswith("json:"):
        node = json.loads(filename.removeprefix("json:"))
        while isinstance(node, dict) and isinstance(node.get("file"), dict):
            node = node["file"]
        filename = str(node.get("filename", "")) if isinstance(node, dict) else ""
    return "" if filename.startswith("/dev/") and not filename.startswith("/dev/shm/") else filename.rpartition("/")[2]


def virtual_cpus(count: int, smp: Mapping[str, int]) -> str:
    """The number of virtual CPUs, and how they are arranged.

    Args:
        count: how many there are now.
        smp: the machine's property ``smp``; empty before QEMU 6.1.
    """
    most = smp.get("maxcpus", count)
    arranged = ", ".join(f"{smp[level]} {level}" for level in _CPU_LEVELS if smp.get(level, 1) > 1)
    return f"{count}{f' of at most {most}' if most != count else ''}{f' ({arranged})' if arranged else ''}"


def memory_slots(memory: Mapping[str, int]) -> str:
    """The slots for memory that is plugged in later.

    Args:
        memory: the machine's property ``memory``; empty before QEMU 7.1.
    """
    slots = memory.get("slots", 0)
    return f"{slots} slots, up to {format_size(memory['max-size'])}" if slots else "none"


def cpu_model(kind: str) -> str:
    """The name for ``-cpu`` of a CPU of QOM type *kind*, such as ``Haswell-v4-x86_64-cpu``."""
    return re.sub(r"-[^-]+-cpu$", "", kind)
