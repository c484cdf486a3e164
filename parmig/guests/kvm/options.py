# SPDX-License-Identifier: Apache-2.0
"""The options of a KVM guest: ``memory=256MiB,vcpus=2,program=random,rate=100MiB/s``."""

from __future__ import annotations

from typing import Annotated

import msgspec

from parmig.guests.kvm.dirty_recorder import TRACKERS
from parmig.guests.kvm.program_layout import FIRST_PAGE, PROGRAMS, VCPUS_MAX
from parmig.guests.options import read_options
from parmig.options import COUNT, DURATION, RATE, SIZE, Unit, option
from parmig.ram.blocks import PAGE_BYTES
from parmig.units import MIB, NS_PER_S, parse_rate

_PAGES_MIN = FIRST_PAGE + 64


def _read_rate(text: str) -> int | None:
    return None if text == "max" else parse_rate(text)


RATE_OR_MAX = Unit("RATE|max", "a rate or max", _read_rate, RATE.write)
PATH = Unit("PATH", "a path", str)


class KvmOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What KVM guest to make."""

    memory_bytes: Annotated[
        int,
        option(
            "Memory, at least 1.25MiB. The part above 3GiB starts at the guest address 4GiB.",
            SIZE,
            ge=_PAGES_MIN * PAGE_BYTES,
            multiple_of=PAGE_BYTES,
        ),
    ] = 256 * MIB
    vcpus: Annotated[int, option("Virtual CPUs.", COUNT, ge=1, le=VCPUS_MAX)] = 1
    program: Annotated[
        str,
        option(
            "Which pages it writes. increment: one page after the other, all virtual CPUs together under a lock.",
            choices=tuple(PROGRAMS),
        ),
    ] = "increment"
    rate_bytes_per_s: Annotated[
        int | None,
        option(
            "How fast all virtual CPUs together write, by the pages that they touch. 0: not at all; max: no limit.",
            RATE_OR_MAX,
        ),
    ] = 20 * MIB
    touched_bytes: Annotated[
        int, option("How much of the memory the program writes.", SIZE, shown="all below 3GiB", ge=0)
    ] = 0
    fill: Annotated[
        str, option("What its pages contain besides the words that it counts in.", choices=("random", "zero"))
    ] = "random"
    file: Annotated[
        str,
        option(
            "The file that holds the memory. Each side needs its own, but over unix:///PATH.",
            PATH,
            shown="a memory file without a name",
        ),
    ] = ""
    disk: Annotated[str, option("The file behind the disk, the same on both sides.", PATH, shown="no disk")] = ""
    serial: Annotated[
        str,
        option("A file to append the lines of the serial port to.", PATH, shown="keep only the last 16KiB"),
    ] = ""
    irqchip: Annotated[
        str,
        option(
            "Interrupt controllers and interval timer in the kernel. auto: if the kernel has them.",
            choices=("auto", "on", "off"),
        ),
    ] = "auto"
    tracker: Annotated[
        str,
        option(
            "The dirty log that --tracker auto selects. ring: the machine has dirty rings, which are a bitmap to "
            "--tracker.",
            choices=tuple(TRACKERS),
        ),
    ] = "auto"
    head_start_ns: Annotated[
        int,
        option("How long it runs before the command goes on, so that it is warm.", DURATION, ge=0, le=60 * NS_PER_S),
    ] = 0
    running: Annotated[bool, option("Whether it runs from the start. The destination ignores it.")] = True


def parse_options(text: str) -> KvmOptions:
    """The options that *text* (``KEY=VALUE,...``, possibly empty) means.

    Raises:
        UsageError: as :func:`read_options`.
    """
    return read_options(text, KvmOptions, "kvm")
