# SPDX-License-Identifier: Apache-2.0
"""The options of ``parmig predict``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, TypeVar

from parmig.config import MAX_WORKERS, TRACKERS, Config, default_workers
from parmig.errors import UsageError
from parmig.options import COUNT, DURATION, RATE, TEXT, Unit, option
from parmig.ram.codecs.registry import names
from parmig.units import NS_PER_S, parse_duration_ns, parse_number
from parmig.values import FILE

T = TypeVar("T")

LEAST_OBSERVED_NS = NS_PER_S
"""Ten intervals: fewer say little of how much intervals differ."""


def _list(read: Callable[[str], T]) -> Callable[[str], tuple[T, ...]]:
    """Reads values with commas between them."""

    def read_all(text: str) -> tuple[T, ...]:
        return tuple(read(part.strip()) for part in text.split(","))

    return read_all


def _some(read: Callable[[str], int], least: int, most: int) -> Callable[[str], int]:
    """Reads a number within limits."""

    def read_some(text: str) -> int:
        if not least <= (value := read(text)) <= most:
            raise UsageError(f"{text} is not allowed; expected {least} to {most}")
        return value

    return read_some


def _codec(text: str) -> str:
    if text not in names():
        raise UsageError(f"{text!r} is no codec whose effect can be predicted; expected one of {', '.join(names())}")
    return text


def _limit(text: str) -> int:
    if (limit_ns := parse_duration_ns(text)) <= 0:
        raise UsageError(f"{text} is not allowed; expected more than 0")
    return limit_ns


read_workers = _list(_some(parse_number, 1, MAX_WORKERS))
read_codecs = _list(_codec)
read_limits_ns = _list(_limit)


def _checked(read: Callable[[str], object]) -> Callable[[str], str]:
    """Reads a text that *read* takes, and keeps the text."""

    def keep(text: str) -> str:
        read(text)
        return text

    return keep


_COUNTS = Unit("N[,N...]", "numbers", _checked(read_workers))
_CODECS = Unit("CODEC[,CODEC...]", "codecs", _checked(read_codecs))
_LIMITS = Unit("DURATION[,DURATION...]", "durations", _checked(read_limits_ns))


class PredictConfig(Config, frozen=True, kw_only=True):
    """For which migrations a guest is observed, and how."""

    to: Annotated[
        str,
        option(
            "The receiver's address. Nothing is sent there: the rate of each path is taken from the network device "
            "that leads to it, if that is a real one.",
            TEXT,
            metavar="URI",
            shown="none",
        ),
    ] = ""
    rate_bytes_per_s: Annotated[
        int, option("What each path carries, for example 1GiB/s or 9.4Gbit/s.", RATE, shown="by --to", ge=0)
    ] = 0
    max_bandwidth_bytes_per_s: Annotated[
        int, option("Limit for all workers together, as in parmig send.", RATE, shown="no limit", ge=0)
    ] = 0
    observe_ns: Annotated[
        int, option("Watch the guest's writes for this long.", DURATION, ge=LEAST_OBSERVED_NS, le=3600 * NS_PER_S)
    ] = 10 * NS_PER_S
    tracker: Annotated[str, option("How parmig finds out which pages the guest writes.", choices=TRACKERS)] = "auto"
    workers: Annotated[str, option("Numbers of workers.", _COUNTS, shown="as in parmig send")] = ""
    paths: Annotated[str, option("Numbers of paths, each of which carries --rate.", _COUNTS)] = "1"
    compress: Annotated[str, option("Codecs. Their effect is measured with pages of the guest.", _CODECS)] = "none"
    downtime_limit: Annotated[str, option("Limits of the pause.", _LIMITS)] = "300ms"
    auto_converge: Annotated[bool, option("The guest may be slowed down, as in parmig send.")] = False
    destination_cpus: Annotated[
        int, option("Processors of the destination.", COUNT, shown="as many as here", ge=0, le=4096)
    ] = 0
    one_host: Annotated[bool, option("Source and destination share the processors of this host.")] = False
    cold: Annotated[
        bool,
        option("The destination is a virtual machine whose host has taken free memory back; filling it takes longer."),
    ] = False
    costs: Annotated[
        str, option("What steps cost on your hosts, as a TOML file.", FILE, shown="measured on one small machine")
    ] = ""

    @property
    def worker_counts(self) -> tuple[int, ...]:
        """The numbers of workers."""
        return read_workers(self.workers) if self.workers else (default_workers(),)

    @property
    def path_counts(self) -> tuple[int, ...]:
        """The numbers of paths."""
        return read_workers(self.paths)

    @property
    def codecs(self) -> tuple[str, ...]:
        """The codecs."""
        return read_codecs(self.compress)

    @property
    def downtime_limits_ns(self) -> tuple[int, ...]:
        """The limits of the pause."""
        return read_limits_ns(self.downtime_limit)

    def check(self) -> None:
        """Raise :class:`UsageError` naming the first option whose value is not allowed."""
        super().check()
        for read, text in ((read_codecs, self.compress), (read_limits_ns, self.downtime_limit)):
            read(text)
        if not (self.to or self.rate_bytes_per_s or self.max_bandwidth_bytes_per_s):
            raise UsageError(
                "the rate of the network is not known; give --rate RATE, --max-bandwidth RATE, or --to URI"
            )
        if min(self.path_counts) > max(self.worker_counts):
            raise UsageError("each path needs a worker; give --workers as many as --paths, or more")
