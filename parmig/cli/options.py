# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share, and how their text is read.

A value that cannot be read ends the program with usage help and exit code 2, before anything is touched.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Annotated, TypeVar

import msgspec
import typer

from parmig.config import MAX_WORKERS, Path, SendConfig, parse_path
from parmig.errors import UsageError
from parmig.units import NS_PER_MS, NS_PER_S, format_size, parse_duration_ns, parse_rate, parse_size

Value = TypeVar("Value")

_DEFAULTS = SendConfig()


def _reader(parse: Callable[[str], Value]) -> Callable[[str | Value], Value]:
    """*parse* for typer: a default is a value already, and a UsageError becomes a usage message."""

    def read(text: str | Value) -> Value:
        if not isinstance(text, str):
            return text
        try:
            return parse(text)
        except UsageError as error:
            raise typer.BadParameter(str(error)) from error

    return read


class PortRange(msgspec.Struct, frozen=True):
    """First and last port of a range."""

    first: int
    last: int


def _parse_ports(text: str) -> PortRange:
    first, separator, last = text.partition("-")
    if not (separator and first.isdecimal() and last.isdecimal()):
        raise UsageError(f"{text!r} is not a range of ports; write FIRST-LAST, like 4700-4731")
    if not 1 <= int(first) <= int(last) <= 65535:
        raise UsageError(f"ports {text} must ascend and lie between 1 and 65535")
    return PortRange(int(first), int(last))


read_size = _reader(parse_size)
read_rate = _reader(parse_rate)
read_duration = _reader(parse_duration_ns)
read_path = _reader(parse_path)
read_ports = _reader(_parse_ports)


class Transport(enum.StrEnum):
    """Data transports by name."""

    ZMQ = "zmq"


class Compress(enum.StrEnum):
    """Codecs by name."""

    NONE = "none"
    LZ4 = "lz4"


class Tracker(enum.StrEnum):
    """Dirty logs by name."""

    AUTO = "auto"
    PAGEMAP = "pagemap"
    BITMAP = "bitmap"
    DIGEST = "digest"


class Format(enum.StrEnum):
    """Formats of snapshots by name."""

    MAPPED_RAM = "mapped-ram"
    STREAM = "stream"


GuestOption = Annotated[
    str,
    typer.Option(
        "--guest", metavar="GUEST", help="qemu:QMP-SOCKET, kvm[:OPTIONS], or synthetic[:OPTIONS].", show_default=False
    ),
]
WorkersOption = Annotated[
    int, typer.Option("--workers", min=1, max=MAX_WORKERS, metavar="N", help="Worker processes on each side.")
]
TransportOption = Annotated[Transport, typer.Option("--transport", help="What carries the pages.")]
CompressOption = Annotated[Compress, typer.Option("--compress", help="How pages are packed.")]
TrackerOption = Annotated[Tracker, typer.Option("--tracker", help="How writes to memory are noticed.")]
FormatOption = Annotated[
    Format, typer.Option("--format", help="mapped-ram: pages at fixed places; stream: one after the other.")
]
BatchOption = Annotated[
    int,
    typer.Option(
        "--batch",
        parser=read_size,
        metavar="SIZE",
        show_default=format_size(_DEFAULTS.batch_bytes).replace(" ", ""),
        help="Guest bytes in one message.",
    ),
]
BandwidthOption = Annotated[
    int,
    typer.Option(
        "--max-bandwidth",
        parser=read_rate,
        metavar="RATE",
        show_default="no limit",
        help="Limit of all workers together, like 500MiB/s.",
    ),
]
DowntimeLimitOption = Annotated[
    int,
    typer.Option(
        "--downtime-limit",
        parser=read_duration,
        metavar="DURATION",
        show_default=f"{_DEFAULTS.downtime_limit_ns // NS_PER_MS}ms",
        help="Pause the guest once the rest can be carried in this time.",
    ),
]
MaxDowntimeOption = Annotated[
    int,
    typer.Option(
        "--max-downtime",
        parser=read_duration,
        metavar="DURATION",
        show_default="off",
        help="Where rounds no longer shrink, pause all the same if this suffices; off: the migration fails instead.",
    ),
]
AutoConvergeOption = Annotated[
    bool, typer.Option("--auto-converge", help="Slow a guest that outruns the network down, in steps, until the pause.")
]
ThrottleInitialOption = Annotated[
    int, typer.Option("--throttle-initial", min=1, max=99, metavar="PERCENT", help="Its first step.")
]
ThrottleIncrementOption = Annotated[
    int, typer.Option("--throttle-increment", min=1, max=99, metavar="PERCENT", help="Its further steps.")
]
ThrottleMaxOption = Annotated[
    int, typer.Option("--throttle-max", min=1, max=99, metavar="PERCENT", help="Its last step.")
]
TimeoutOption = Annotated[
    int,
    typer.Option(
        "--timeout",
        parser=read_duration,
        metavar="DURATION",
        show_default="none",
        help="Give up when the pause is not reached in this time.",
    ),
]
SwitchoverTimeoutOption = Annotated[
    int,
    typer.Option(
        "--switchover-timeout",
        parser=read_duration,
        metavar="DURATION",
        show_default="30s",
        help="Give up, and let the guest go on here, when its pause has not ended in this time.",
    ),
]
ConnectTimeoutOption = Annotated[
    int,
    typer.Option(
        "--connect-timeout",
        parser=read_duration,
        metavar="DURATION",
        show_default=f"{_DEFAULTS.connect_timeout_ns // NS_PER_S}s",
        help="How long to try to reach the receiver.",
    ),
]
SendPathsOption = Annotated[
    list[Path],
    typer.Option(
        "--path",
        parser=read_path,
        metavar="LOCAL-REMOTE",
        help="A pair of addresses to use; may be given several times.",
        show_default="the address of URI",
    ),
]
VerifyOption = Annotated[
    bool, typer.Option("--verify", help="Compare a digest of all memory on both sides while both are paused.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the report as one JSON object on standard output.")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]
