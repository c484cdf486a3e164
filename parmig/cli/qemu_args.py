# SPDX-License-Identifier: Apache-2.0
"""``parmig qemu-args``: the command line of a destination QEMU."""

from __future__ import annotations

import shlex
from typing import Annotated

import msgspec
import typer

from parmig.cli import options as o
from parmig.cli.output import print_json, showing_errors
from parmig.errors import UsageError
from parmig.guests.qemu.destination_args import destination_line
from parmig.logs import printable
from parmig.options import Unit, option


class PathMap(msgspec.Struct, frozen=True):
    """A path at the source, and the path of the same file or directory at the destination."""

    source: str
    destination: str


def _read_map(text: str) -> PathMap:
    source, equals, destination = text.partition("=")
    if not (equals and source.startswith("/") and destination.startswith("/")):
        raise UsageError(f"{text!r} maps no path; write FROM=TO, two absolute paths, like /images/a=/images/b")
    return PathMap(source.rstrip("/") or "/", destination.rstrip("/") or "/")


PATH_MAP = Unit("FROM=TO", "a pair of absolute paths", _read_map)

MEMORY = ("same", "private", "shared", "hugetlb", "memfd", "in-place")


class QemuArgsOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a destination QEMU differs from its source."""

    maps: Annotated[
        tuple[PathMap, ...],
        option(
            "A file, socket or directory that has another path at the destination; repeat the option for more.",
            PATH_MAP,
            name="map",
            shown="all paths stay",
        ),
    ] = ()
    memory: Annotated[
        str,
        option(
            "What the destination's memory is made of. same: as at the source; private: memory of QEMU alone; "
            "shared: a file in /dev/shm; hugetlb: a file in /dev/hugepages; memfd: shared memory without a file; "
            "in-place: the memory of the source itself, for a destination on the same host.",
            choices=MEMORY,
        ),
    ] = "same"


@o.command()
def qemu_args(guest: o.GuestOption, options: QemuArgsOptions, output: o.JsonOutput) -> None:
    """Print the command line that starts the destination of a QEMU guest of this host.

    It is the source's own, with its machine type by version, ready to take the guest over. Nothing is started.
    """
    with showing_errors():
        line = destination_line(guest, [(path.source, path.destination) for path in options.maps], options.memory)
    if output.json:
        print_json({"arguments": line.arguments, "notes": line.notes})
    else:
        typer.echo(shlex.join(line.arguments))
        for note in line.notes:
            typer.echo(f"note: {printable(note)}", err=True)
