# SPDX-License-Identifier: Apache-2.0
"""How ``parmig status`` shows running commands to people."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import typer

from parmig.cli.progress import figures
from parmig.cli.tables import output_console, plain_table
from parmig.engine.reporting.change import Change, ChangeReport
from parmig.engine.steering.engine_status import EngineStatus, progress_of
from parmig.logs import printable
from parmig.options import options_of
from parmig.units import format_ms, format_rate, format_size


def print_running(statuses: Sequence[EngineStatus]) -> None:
    """Print one line for each command on standard output."""
    if not statuses:
        typer.echo("no parmig command of this user runs here")
        return
    rows = [
        (one.name, one.status, str(one.round or ""), one.peer, ", ".join(figures(progress_of(one)))) for one in statuses
    ]
    columns = ("name", "status", "round", "peer", "progress")
    output_console().print(plain_table(columns, rows, folded=("peer", "progress")))


def print_details(status: EngineStatus) -> None:
    """Print all that is known of one command, a line each."""
    for name, value in _details(status):
        typer.echo(f"{name:<18} {printable(value)}")


def _details(status: EngineStatus) -> list[tuple[str, str]]:
    ram, limits = status.ram, status.limits
    lines = [
        ("name", status.name),
        ("process", f"{status.process}, parmig {status.command}"),
        ("guest", f"{status.guest.kind} {status.guest.machine}".strip()),
        ("peer", status.peer),
        ("status", f"{status.status}: {status.step}" if status.step else status.status),
    ]
    if status.round:
        lines += [
            ("round", str(status.round)),
            ("total time", format_ms(status.total_time_ms)),
            ("setup time", "" if status.setup_time_ms is None else format_ms(status.setup_time_ms)),
            ("memory", f"{format_size(ram.total_bytes)}, {format_size(ram.remaining_bytes)} remaining"),
            ("transferred", f"{format_size(ram.transferred_bytes)}: {ram.sent_pages} pages, {ram.zero_pages} zero"),
            ("rate", format_rate(ram.rate_bytes_per_s)),
            ("dirty rate", "" if ram.dirty_bytes_per_s is None else format_rate(ram.dirty_bytes_per_s)),
            ("guest writes", "" if status.guest_bytes_per_s is None else format_rate(status.guest_bytes_per_s)),
            (
                "expected downtime",
                "" if status.expected_downtime_ms is None else format_ms(status.expected_downtime_ms),
            ),
            ("throttle", f"{status.throttle_percent} %" if status.throttle_percent else ""),
            ("bandwidth limit", _rate_limit(limits.max_bandwidth_bytes_per_s)),
            ("downtime limit", format_ms(limits.downtime_limit_ms)),
            ("auto-converge", "on" if limits.auto_converge else "off"),
            ("interrupted", " ".join(status.interrupted)),
        ]
    for worker in status.per_worker:
        rate, sent = format_rate(worker.rate_bytes_per_s), format_size(worker.wire_bytes)
        lines.append((f"worker {worker.worker}", f"{rate}, {sent} sent {worker.path}".rstrip()))
    lines += [(f"at {format_ms(made.at_ms)}", describe_change(made)) for made in status.changes]
    return [line for line in lines if line[1]]


def _rate_limit(bytes_per_s: int) -> str:
    return format_rate(bytes_per_s) if bytes_per_s else "none"


def describe_change(made: ChangeReport) -> str:
    """A change in the words of ``parmig set``."""
    values = msgspec.structs.asdict(made.change)
    parts = [
        f"--{name} {declared.unit.write(values[declared.field])}"
        for name, declared in options_of(Change).items()
        if values[declared.field] not in (None, "")
    ]
    return f"changed: {' '.join(parts)}"
