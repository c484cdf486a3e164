# SPDX-License-Identifier: Apache-2.0
"""Sizes, rates, durations and lists of processors as people write and read them: IEC units in, IEC units out."""

from __future__ import annotations

import re
from collections.abc import Iterable

import humanfriendly

from parmig.errors import UsageError

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000

_BIT_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
"""Rates of networks are counted in powers of 1000."""


def parse_number(text: str) -> int:
    """The whole number in *text*.

    Raises:
        UsageError: *text* is not a number.
    """
    if not re.fullmatch(r"[0-9]{1,20}", text.strip()):
        raise UsageError(f"{text!r} is not a whole number; write digits only, like 4")
    return int(text)


def parse_size(text: str) -> int:
    """Bytes meant by *text*: ``512MiB``, ``1.5GiB``, ``4096``; ``M`` and ``MB`` are read as MiB.

    Raises:
        UsageError: *text* is not a size.
    """
    try:
        return int(humanfriendly.parse_size(text, binary=True))
    except (humanfriendly.InvalidSize, ValueError) as error:  # ValueError: of what only looks like a digit, as ³
        raise UsageError(f"{text!r} is not a size; write it like 512MiB or 1.5GiB") from error


def parse_rate(text: str) -> int:
    """Bytes per second meant by *text*: ``100MiB/s`` or ``100MiB``, or in bits ``10Gbit/s``; 0 means no limit.

    Raises:
        UsageError: *text* is not a rate.
    """
    amount = text.strip().removesuffix("/s")
    if bits := re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([kMGT]?)bit", amount):
        return int(float(bits[1]) * _BIT_UNITS[bits[2]]) // 8
    try:
        return parse_size(amount)
    except UsageError as error:
        raise UsageError(f"{text!r} is not a rate; write it like 100MiB/s or 10Gbit/s") from error


def parse_duration_ns(text: str) -> int:
    """Nanoseconds meant by *text*: ``300ms``, ``1.5s``, ``10m``; a bare number is seconds.

    Raises:
        UsageError: *text* is not a duration.
    """
    try:
        return round(float(humanfriendly.parse_timespan(text)) * NS_PER_S)
    except (humanfriendly.InvalidTimespan, ValueError) as error:  # ValueError: of what only looks like a digit, as ³
        raise UsageError(f"{text!r} is not a duration; write it like 300ms, 10s or 5m") from error


def write_size(size_bytes: int) -> str:
    """*size_bytes* as :func:`parse_size` reads it, without loss: ``4MiB``, ``4097 bytes``."""
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size_bytes and size_bytes % unit == 0:
            return f"{size_bytes // unit}{name}"
    return f"{size_bytes} bytes" if size_bytes else "0"


def write_duration_ns(duration_ns: int) -> str:
    """*duration_ns* as :func:`parse_duration_ns` reads it: ``300ms``, ``30s``."""
    if duration_ns % NS_PER_S == 0:
        return f"{duration_ns // NS_PER_S}s" if duration_ns else "0"
    if duration_ns % NS_PER_MS == 0:
        return f"{duration_ns // NS_PER_MS}ms"
    return f"{duration_ns / NS_PER_MS:.6f}".rstrip("0") + "ms"


def format_size(size_bytes: float) -> str:
    """*size_bytes* for people: ``1.5 GiB``."""
    return str(humanfriendly.format_size(size_bytes, binary=True))


def format_rate(bytes_per_s: float) -> str:
    """*bytes_per_s* for people: ``1.5 GiB/s``."""
    return f"{format_size(bytes_per_s)}/s"


def format_bit_rate(bytes_per_s: float) -> str:
    """*bytes_per_s* as rates of networks are written: ``1 Gbit/s``."""
    bits_per_s = 8 * bytes_per_s
    unit = next((unit for unit in "TGMk" if bits_per_s >= _BIT_UNITS[unit]), "")
    return f"{bits_per_s / _BIT_UNITS[unit]:.4g} {unit}bit/s"


def format_ms(milliseconds: float) -> str:
    """*milliseconds* for people: ``12.3 ms``, from ten seconds on ``12.3 s``."""
    return f"{milliseconds:.1f} ms" if milliseconds < 10_000 else f"{milliseconds / 1000:.1f} s"


MAX_CPU = 8191
"""The highest number of a processor that Linux can be built for."""


def parse_cpus(text: str) -> tuple[int, ...]:
    """The processors in a list such as ``0-3,8``, in its order, as taskset(1) and the kernel's cpulist files write it.

    Raises:
        UsageError: *text* is no such list, or it names a processor twice.
    """
    cpus: list[int] = []
    for part in text.strip().split(","):
        numbers = re.fullmatch(r"([0-9]{1,4})(?:-([0-9]{1,4}))?", part)
        first, last = (int(numbers[1]), int(numbers[2] or numbers[1])) if numbers else (1, 0)
        if not first <= last <= MAX_CPU:
            raise UsageError(f"{text!r} is not a list of processors; write numbers and ranges, like 0-3,8")
        cpus += range(first, last + 1)
    if len(set(cpus)) < len(cpus):
        raise UsageError(f"{text!r} names a processor twice; name each once")
    return tuple(cpus)


def format_cpus(cpus: Iterable[int]) -> str:
    """*cpus* in ascending order, as :func:`parse_cpus` takes them."""
    parts: list[list[int]] = []
    for cpu in sorted(cpus):
        if parts and parts[-1][1] == cpu - 1:
            parts[-1][1] = cpu
        else:
            parts.append([cpu, cpu])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)
