# SPDX-License-Identifier: Apache-2.0
"""What a KVM guest can be told: ``memory=256MiB,vcpus=2,program=random,rate=100MiB/s``."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec

from parmig.errors import UsageError
from parmig.guests.kvm.dirty_recorder import TRACKERS
from parmig.guests.kvm.programs import FIRST_PAGE, PROGRAMS, VCPUS_MAX
from parmig.ram.blocks import PAGE_BYTES
from parmig.units import MIB, parse_rate, parse_size

_PAGES_MIN = FIRST_PAGE + 64
_IRQCHIPS = ("auto", "on", "off")
_FILLS = ("random", "zero")


class KvmOptions(msgspec.Struct, frozen=True, kw_only=True):
    """A KVM guest as asked for.

    Attributes:
        memory_bytes: a multiple of 4 KiB.
        vcpus: how many.
        program: one of PROGRAMS.
        rate_bytes_per_s: pages dirtied per second by all vCPUs together, in bytes; 0: none; None: as many as they can.
        touched_bytes: how much of the memory the program writes; 0: all there is.
        fill: what the pages hold besides the program's count: ``random`` or ``zero``.
        file: the file that holds the memory; empty: a memory file without a name.
        disk: the file behind the disk; empty: no disk.
        serial: the file to which the serial port's lines are appended; empty: only the last ones are kept.
        irqchip: interrupt controllers and PIT in the kernel, one of ``auto``, ``on``, ``off``.
        tracker: the dirty log that ``auto`` stands for, one of TRACKERS.
        running: whether the guest runs from the start; not for an incoming one.
    """

    memory_bytes: int = 256 * MIB
    vcpus: int = 1
    program: str = "increment"
    rate_bytes_per_s: int | None = 20 * MIB
    touched_bytes: int = 0
    fill: str = "random"
    file: str = ""
    disk: str = ""
    serial: str = ""
    irqchip: str = "auto"
    tracker: str = "auto"
    running: bool = True


def parse_options(text: str) -> KvmOptions:
    """The options that *text* (``KEY=VALUE,...``, possibly empty) means.

    Raises:
        UsageError: an unknown or repeated key, a value that makes no sense, or values that contradict.
    """
    values: dict[str, Any] = {}
    for item in filter(None, text.split(",")):
        key, equals, value = (part.strip() for part in item.partition("="))
        if key not in _PARSERS or not equals or not value:
            raise UsageError(f"{item!r} is not an option of a KVM guest; write KEY=VALUE with {', '.join(_PARSERS)}")
        field, parser = _PARSERS[key]
        if field in values:
            raise UsageError(f"option {key!r} of a KVM guest is given twice in {text!r}")
        values[field] = parser(value)
    options = KvmOptions(**values)
    pages, rest = divmod(options.memory_bytes, PAGE_BYTES)
    if rest or pages < _PAGES_MIN:
        raise UsageError(
            f"memory={options.memory_bytes} does not fit a KVM guest; "
            f"give a multiple of {PAGE_BYTES} bytes, at least {_PAGES_MIN} pages"
        )
    return options


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise UsageError(f"{text!r} is not a value for a KVM guest; choose {', '.join(choices)}")
        return text

    return parse


def _vcpus(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,4}", text) or not 1 <= int(text) <= VCPUS_MAX:
        raise UsageError(f"vcpus={text!r} must be a number from 1 to {VCPUS_MAX}")
    return int(text)


def _rate(text: str) -> int | None:
    return None if text == "max" else parse_rate(text)


_PARSERS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "memory": ("memory_bytes", parse_size),
    "vcpus": ("vcpus", _vcpus),
    "program": ("program", _one_of(*PROGRAMS)),
    "rate": ("rate_bytes_per_s", _rate),
    "touched": ("touched_bytes", parse_size),
    "fill": ("fill", _one_of(*_FILLS)),
    "file": ("file", str),
    "disk": ("disk", str),
    "serial": ("serial", str),
    "irqchip": ("irqchip", _one_of(*_IRQCHIPS)),
    "tracker": ("tracker", _one_of(*TRACKERS)),
    "running": ("running", lambda text: _one_of("yes", "no")(text) == "yes"),
}
"""Option key to the field it sets and the function that reads its value."""
