# SPDX-License-Identifier: Apache-2.0
"""``parmig inspect``: describe a stream or a snapshot."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
import typer
from rich.table import Table

from parmig.cli import options as o
from parmig.cli.output import print_json
from parmig.cli.tables import output_console, plain_table
from parmig.errors import UsageError
from parmig.inspection import inspect_file
from parmig.inspection.inspection_report import BlockInspection, DeviceInspection, Inspection
from parmig.logs import printable
from parmig.options import option
from parmig.units import format_size

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
    try:
        inspection = inspect_file(file)
        shown = _chosen(inspection, options.device) if options.device else inspection.devices if options.fields else []
    except UsageError as error:
        raise typer.BadParameter(str(error)) from error
    if output.json:
        print_json(inspection)
    else:
        _print(inspection, shown)
    if inspection.error is not None:
        typer.echo(f"parmig: {printable(inspection.error.message)}", err=True)
    raise typer.Exit(0 if inspection.complete else 1)


def _chosen(inspection: Inspection, name: str) -> list[DeviceInspection]:
    chosen = [device for device in inspection.devices if name in (device.idstr, f"{device.idstr}/{device.instance_id}")]
    if not chosen:
        known = ", ".join(dict.fromkeys(device.idstr for device in inspection.devices))
        raise UsageError(f"{inspection.file} has no device {name!r}; its devices: {known or 'none'}")
    return chosen


def _print(inspection: Inspection, shown: list[DeviceInspection]) -> None:
    console = output_console()
    for name, value in _headline(inspection):
        console.print(f"{name:<12} {printable(value)}", soft_wrap=True)
    if inspection.blocks:
        console.print(_blocks_table(inspection.blocks))
    if inspection.devices:
        console.print(_devices_table(inspection))
    for device in shown:
        console.print(printable(f"{device.idstr}/{device.instance_id}"), style="bold")
        for path, value in _lines(device.fields):
            console.print(printable(f"  {path} = {value}"), soft_wrap=True)
    for note in inspection.notes:
        if inspection.error is None or note != inspection.error.message:  # the error itself goes to standard error
            console.print(f"{'note':<12} {printable(note)}", soft_wrap=True)


def _headline(inspection: Inspection) -> list[tuple[str, str]]:
    """Name and value of each line above the tables. Unknown values have no line."""
    kind = f"{inspection.format}, version {inspection.version}" if inspection.format else "not a stream"
    lines = [("file", inspection.file), ("format", f"{kind}, {'complete' if inspection.complete else 'NOT COMPLETE'}")]
    if inspection.machine is not None:
        lines.append(("machine", inspection.machine))
    if inspection.uuid:
        lines.append(("uuid", inspection.uuid))
    if inspection.capabilities:
        lines.append(("capabilities", ", ".join(inspection.capabilities)))
    lines.append(("size", format_size(inspection.total_bytes)))
    if inspection.blocks:
        total_bytes = sum(block.bytes for block in inspection.blocks)
        lines.append(("memory", f"{format_size(total_bytes)} in {len(inspection.blocks)} blocks"))
    if inspection.devices:
        known = inspection.devices[-1].bytes is not None
        lines.append(
            ("devices", f"{len(inspection.devices) if known else '?'}, {format_size(inspection.device_state_bytes)}")
        )
    if inspection.commands:
        lines.append(("commands", ", ".join(f"{name} ({count})" for name, count in inspection.commands.items())))
    return lines


def _blocks_table(blocks: list[BlockInspection]) -> Table:
    """A row for each block of memory. Kinds of pages that no block has get no column."""
    kinds = ["normal", "zero", "xbzrle", "compressed", "distinct"]
    rows = [[getattr(block, f"pages_{kind}") for kind in kinds] for block in blocks]
    used = [
        place for place in range(len(kinds)) if kinds[place] in ("normal", "zero") or any(row[place] for row in rows)
    ]
    columns = ["block", "size", *(kinds[place] for place in used)]
    lines = [
        [block.name, format_size(block.bytes), *("?" if row[place] is None else str(row[place]) for place in used)]
        for block, row in zip(blocks, rows, strict=True)
    ]
    return plain_table(columns, lines, right=columns[1:])


def _devices_table(inspection: Inspection) -> Table:
    """A row for each device."""
    columns = ("device", "instance", "version", "bytes", "fields")
    rows = []
    for device in inspection.devices:
        size = "?" if device.bytes is None else str(device.bytes)
        fields = "?" if device.fields is None else str(len(device.fields))
        rows.append((device.idstr, str(device.instance_id), str(device.version), size, fields))
    return plain_table(columns, rows, right=columns[1:])


def _lines(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Path and value of each plain value in *value*. A list of plain values counts as one."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _lines(item, f"{path}.{name}" if path else name)
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        for place, item in enumerate(value):
            yield from _lines(item, f"{path}[{place}]")
    else:
        text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
        more = f"... ({len(text)} characters)" if len(text) > LONGEST_VALUE else ""
        yield path, text[:LONGEST_VALUE] + more
