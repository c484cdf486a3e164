# SPDX-License-Identifier: Apache-2.0
"""``parmig inspect``: describe a stream or a snapshot."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from parmig.cli import options as o
from parmig.cli.output import print_json
from parmig.cli.progress import printable
from parmig.cli.summary import PIPE_COLUMNS
from parmig.errors import UsageError
from parmig.options import option
from parmig.units import format_size

if TYPE_CHECKING:
    from parmig.inspection.inspection_report import BlockInspection, DeviceInspection, Inspection

LONGEST_VALUE = 64
"""Characters of a value on a line. JSON has the whole value."""


class InspectOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Which values are printed besides the tables."""

    fields: Annotated[bool, option("Print the values of all devices.")] = False
    device: Annotated[
        str, option("Print the values of this device only; of instance N if given.", metavar="NAME[/N]", shown="none")
    ] = ""


@o.command()
def inspect(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A stream or a snapshot; - reads standard input.")],
    options: InspectOptions,
    output: o.JsonOutput,
) -> None:
    """Show what a stream or snapshot contains, also one that QEMU wrote: sections, memory, devices and their values.

    Exit code 1 means that it is damaged, incomplete or not a stream; parmig describes the part that is readable.
    """
    from parmig.inspection import inspect_file

    try:
        found = inspect_file(file)
        shown = _chosen(found, options.device) if options.device else found.devices if options.fields else []
    except UsageError as error:
        raise typer.BadParameter(str(error)) from error
    if output.json:
        print_json(found)
    else:
        _print(found, shown)
    if found.error is not None:
        typer.echo(f"parmig: {printable(found.error.message)}", err=True)
    raise typer.Exit(0 if found.complete else 1)


def _chosen(found: Inspection, name: str) -> list[DeviceInspection]:
    chosen = [one for one in found.devices if name in (one.idstr, f"{one.idstr}/{one.instance_id}")]
    if not chosen:
        known = ", ".join(dict.fromkeys(one.idstr for one in found.devices))
        raise UsageError(f"{found.file} has no device {name!r}; its devices: {known or 'none'}")
    return chosen


def _print(found: Inspection, shown: list[DeviceInspection]) -> None:
    width = None if sys.stdout.isatty() else PIPE_COLUMNS
    console = Console(file=sys.stdout, highlight=False, markup=False, emoji=False, width=width)
    for name, value in _headline(found):
        console.print(f"{name:<12} {printable(value)}", soft_wrap=True)
    if found.blocks:
        console.print(_blocks_table(found.blocks))
    if found.devices:
        console.print(_devices_table(found))
    for one in shown:
        console.print(printable(f"{one.idstr}/{one.instance_id}"), style="bold")
        for path, value in _lines(one.fields):
            console.print(printable(f"  {path} = {value}"), soft_wrap=True)
    for note in found.notes:
        if found.error is None or note != found.error.message:  # that one goes to standard error
            console.print(f"{'note':<12} {printable(note)}", soft_wrap=True)


def _headline(found: Inspection) -> list[tuple[str, str]]:
    """Name and value of each line above the tables. Unknown values have no line."""
    kind = f"{found.format}, version {found.version}" if found.format else "not a stream"
    lines = [("file", found.file), ("format", f"{kind}, {'complete' if found.complete else 'NOT COMPLETE'}")]
    if found.machine is not None:
        lines.append(("machine", found.machine))
    if found.uuid:
        lines.append(("uuid", found.uuid))
    if found.capabilities:
        lines.append(("capabilities", ", ".join(found.capabilities)))
    lines.append(("size", format_size(found.total_bytes)))
    if found.blocks:
        total_bytes = sum(block.bytes for block in found.blocks)
        lines.append(("memory", f"{format_size(total_bytes)} in {len(found.blocks)} blocks"))
    if found.devices:
        known = found.devices[-1].bytes is not None
        lines.append(("devices", f"{len(found.devices) if known else '?'}, {format_size(found.device_state_bytes)}"))
    if found.commands:
        lines.append(("commands", ", ".join(f"{name} ({count})" for name, count in found.commands.items())))
    return lines


def _blocks_table(blocks: list[BlockInspection]) -> Table:
    """A row for each block of memory. Kinds of pages that no block has get no column."""
    kinds = ["normal", "zero", "xbzrle", "compressed", "distinct"]
    rows = [[getattr(block, f"pages_{kind}") for kind in kinds] for block in blocks]
    used = [
        place for place in range(len(kinds)) if kinds[place] in ("normal", "zero") or any(row[place] for row in rows)
    ]
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("block", overflow="fold")
    for column in ("size", *(kinds[place] for place in used)):
        table.add_column(column, justify="right")
    for block, row in zip(blocks, rows, strict=True):
        counts = ("?" if row[place] is None else str(row[place]) for place in used)
        table.add_row(printable(block.name), format_size(block.bytes), *counts)
    return table


def _devices_table(found: Inspection) -> Table:
    """A row for each device."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("device", overflow="fold")
    for column in ("instance", "version", "bytes", "fields"):
        table.add_column(column, justify="right")
    for one in found.devices:
        size = "?" if one.bytes is None else str(one.bytes)
        fields = "?" if one.fields is None else str(len(one.fields))
        table.add_row(printable(one.idstr), str(one.instance_id), str(one.version), size, fields)
    return table


def _lines(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Path and value of each plain value in *value*. A list of plain values counts as one."""
    if isinstance(value, dict):
        for name, one in value.items():
            yield from _lines(one, f"{path}.{name}" if path else name)
    elif isinstance(value, list) and any(isinstance(one, dict | list) for one in value):
        for place, one in enumerate(value):
            yield from _lines(one, f"{path}[{place}]")
    else:
        text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
        more = f"... ({len(text)} characters)" if len(text) > LONGEST_VALUE else ""
        yield path, text[:LONGEST_VALUE] + more
