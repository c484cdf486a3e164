# SPDX-License-Identifier: Apache-2.0
"""The factors of an experiment: what a run varies, what each peer makes of it, and what cannot be run at all.

This module decides only. It knows no host and starts nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import msgspec

from parmig.config import CODECS, DEFAULT_BATCH_BYTES, MAX_BATCH_BYTES, MAX_WORKERS, MIN_BATCH_BYTES, PATTERNS, TRACKERS
from parmig.guests.synthetic.options import FILLS, SHARE
from parmig.options import COUNT, DURATION, RATE, SIZE, Option, option, options_of
from parmig.units import MIB, NS_PER_MS, format_bit_rate
from parmig.values import FILE

PEERS = ("parmig", "qemu-precopy", "qemu-multifd", "iperf3", "bare")
GUESTS = ("synthetic", "kvm", "qemu")
FREE_MEMORY = ("as-it-is", "warm", "cold")
TRANSPORTS = ("auto", "tcp", "zmq")
"""Of ``parmig send``, without unix: that does not cross hosts."""

QEMU_MIN_BYTES = 64 * MIB
"""The firmware of a QEMU guest has the first 16 MiB and the last 32 MiB, and the rest is filled."""

MAX_PATHS = 16

NO_DIFFERENCE = "–"


class Factors(msgspec.Struct, frozen=True, kw_only=True):
    """What one run is like. Each field is a factor."""

    peer: Annotated[
        str,
        option(
            "What moves the memory. qemu-precopy, qemu-multifd: QEMU's own migration. iperf3: the network alone. "
            "bare: pairs of processes that only carry a file.",
            choices=PEERS,
        ),
    ] = "parmig"
    guest: Annotated[
        str,
        option("Kind of the guest. qemu: an idle machine that runs its firmware, with filled memory.", choices=GUESTS),
    ] = "synthetic"
    memory_bytes: Annotated[int, option("Memory of the guest.", SIZE, ge=8 * MIB, multiple_of=MIB)] = 256 * MIB
    dirty_rate_bytes_per_s: Annotated[
        int, option("(synthetic, kvm) How fast the guest writes, by the pages that it touches.", RATE, ge=0)
    ] = 0
    pattern: Annotated[
        str, option("(synthetic, kvm) Which pages it writes. kvm knows random and sequential only.", choices=PATTERNS)
    ] = "random"
    trace: Annotated[
        str,
        option(
            "(synthetic) A trace that the guest replays, instead of dirty-rate, pattern and touched. The guest has at "
            "least the memory of the trace. See traces.md.",
            FILE,
            shown="none",
        ),
    ] = ""
    touched: Annotated[str, option("(synthetic) How much of the memory it writes.", SHARE)] = "100%"
    fill: Annotated[
        str, option("What the memory contains at the start. kvm and qemu know random and zero only.", choices=FILLS)
    ] = "random"
    workers: Annotated[
        int,
        option("Workers of parmig, channels of multifd, streams of iperf3, bare pairs.", COUNT, ge=1, le=MAX_WORKERS),
    ] = 2
    paths: Annotated[int, option("(parmig, bare) Links between both hosts.", COUNT, ge=1, le=MAX_PATHS)] = 1
    link_rate_bytes_per_s: Annotated[
        int, option("(lab) Rate of each link, in each direction.", RATE, shown="no limit", ge=0)
    ] = 0
    link_delay_ns: Annotated[int, option("(lab) Delay of each link, in each direction.", DURATION, ge=0)] = 0
    transport: Annotated[str, option("(parmig) What carries the pages.", choices=TRANSPORTS)] = "auto"
    compress: Annotated[str, option("(parmig) How pages are compressed.", choices=CODECS)] = "none"
    tracker: Annotated[str, option("(parmig) How written pages are found.", choices=TRACKERS)] = "auto"
    batch_bytes: Annotated[
        int,
        option(
            "(parmig) Guest memory in one message.",
            SIZE,
            name="batch",
            ge=MIN_BATCH_BYTES,
            le=MAX_BATCH_BYTES,
            multiple_of=4096,
        ),
    ] = DEFAULT_BATCH_BYTES
    downtime_limit_ns: Annotated[
        int, option("(parmig, qemu-*) Pause the guest when the rest can be sent in this time.", DURATION, gt=0)
    ] = 300 * NS_PER_MS
    max_downtime_ns: Annotated[
        int, option("(parmig) Pause anyway if rounds stop getting smaller.", DURATION, shown="off", ge=0)
    ] = 0
    auto_converge: Annotated[bool, option("(parmig, qemu-*) Slow a guest down that writes too fast.")] = False
    free_memory: Annotated[
        str,
        option(
            "What free memory is like at the start. warm: touched just before. "
            "cold: the host below this virtual machine has taken it back.",
            choices=FREE_MEMORY,
        ),
    ] = "warm"


_LINKS = {"peer", "workers", "memory_bytes", "link_rate_bytes_per_s", "link_delay_ns"}
_MOVES = _LINKS | {"guest", "fill", "free_memory", "downtime_limit_ns", "auto_converge"}
_OF_WRITERS = {"dirty_rate_bytes_per_s", "pattern"}
_OF_SYNTHETIC = {"touched", "trace"}

_MATTER: dict[str, set[str]] = {
    "parmig": set(Factors.__struct_fields__),
    "qemu-precopy": _MOVES - {"workers"},
    "qemu-multifd": _MOVES,
    "iperf3": _LINKS,
    "bare": _LINKS | {"paths", "free_memory"},
}
"""Peer to the factors that it depends on."""

_DO_NOT_MATTER: dict[str, set[str]] = {
    "synthetic": set(),
    "kvm": _OF_SYNTHETIC,
    "qemu": _OF_WRITERS | _OF_SYNTHETIC,
}
"""Guest to the factors that it has not."""


def matters(factors: Factors, field: str) -> bool:
    """Whether the factor *field* makes a difference to the peer and the guest."""
    if field == "guest" and factors.peer != "parmig":
        return False
    if factors.trace and factors.guest == "synthetic" and field in _OF_WRITERS | {"touched"}:
        return False
    return field in _MATTER[factors.peer] - _DO_NOT_MATTER[factors.guest]


def varied(combinations: Iterable[Factors]) -> tuple[str, ...]:
    """The fields in which *combinations* differ, where they make a difference."""
    given = list(combinations)
    return tuple(
        field
        for field in Factors.__struct_fields__
        if len({getattr(factors, field) for factors in given if matters(factors, field)}) > 1
    )


def normalised(factors: Factors) -> Factors:
    """*factors* with all that makes no difference to the peer and the guest at its default.

    QEMU moves QEMU guests only. A grid over peers thus has each of their runs once.
    """
    guests = {"parmig": factors.guest, "qemu-precopy": "qemu", "qemu-multifd": "qemu"}
    factors = msgspec.structs.replace(factors, guest=guests.get(factors.peer, GUESTS[0]))
    defaults = {
        field.name: field.default
        for field in msgspec.structs.fields(Factors)
        if field.name != "guest" and not matters(factors, field.name)
    }
    return msgspec.structs.replace(factors, **defaults)


def impossible(factors: Factors) -> str:
    """Why a run with *factors* cannot be; empty: it can."""
    if factors.paths > factors.workers:
        return "fewer workers than paths"
    if factors.guest == "kvm" and factors.pattern not in ("random", "sequential"):
        return f"KVM guests have no pattern {factors.pattern}"
    if factors.guest != "synthetic" and factors.fill == "text":
        return "only synthetic guests are filled with text"
    if factors.guest == "qemu" and factors.memory_bytes < QEMU_MIN_BYTES:
        return "QEMU guests need 64 MiB"
    return ""


def written(factors: Factors, fields: tuple[str, ...]) -> dict[str, str]:
    """The factors *fields* as a user writes them: name to text. A dash is what makes no difference."""
    return {
        name: _text(declared, getattr(factors, declared.field)) if matters(factors, declared.field) else NO_DIFFERENCE
        for name, declared in options_of(Factors).items()
        if declared.field in fields
    }


def _text(declared: Option, value: Any) -> str:
    if declared.field == "link_rate_bytes_per_s":
        return format_bit_rate(value) if value else "no limit"
    if declared.is_flag:
        return "yes" if value else "no"
    return str(value) if declared.choices else declared.unit.write(value)
