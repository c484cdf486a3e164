# SPDX-License-Identifier: Apache-2.0
"""``parmig trace record`` and ``parmig trace show``: which pages a guest writes, and when."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.table import Table

from parmig.cli import options as o
from parmig.cli.output import print_json, showing_errors
from parmig.cli.progress import print_line
from parmig.cli.running import watching
from parmig.cli.signals import cancelling
from parmig.cli.tables import output_console, plain_table
from parmig.engine.tracing.trace_config import TraceConfig
from parmig.engine.tracing.write_watch import WriteWatch
from parmig.errors import TraceError
from parmig.guests.registry import open_guest
from parmig.logs import printable
from parmig.ram.blocks import PAGE_BYTES
from parmig.ram.traces import trace_figures
from parmig.ram.traces.trace import Trace, TraceSource
from parmig.ram.traces.trace_file import TraceWriter, read_trace
from parmig.ram.traces.trace_format import TraceHeader
from parmig.snapshot.pending_file import PendingFile
from parmig.units import NS_PER_MS, NS_PER_S, format_ms, format_rate, format_size

TraceFile = Annotated[Path, typer.Argument(metavar="FILE", help="The trace.")]


def trace() -> None:
    """Record which pages a guest of this host writes, without moving it, or show a recording."""


class TraceSummary(msgspec.Struct, kw_only=True):
    """What a trace holds, as ``--json`` prints it; ``docs/traces.md`` has the fields."""

    file: str
    source: TraceSource
    memory_bytes: int
    page_size_bytes: int
    interval_ms: float
    duration_ms: float
    intervals: int
    late_intervals: int
    written_pages: list[int]
    different_pages: int
    rewritten_share: float
    written_bytes_per_s: float
    working_set: list[trace_figures.WorkingSet]


@o.command()
def record(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The trace to write. It appears when it is complete.")],
    guest: o.GuestOption,
    config: TraceConfig,
    output: o.Output,
) -> None:
    """Record which pages a guest of this host writes, without moving it.

    The guest runs on, and nothing stays behind in it. Ctrl-C ends the recording and keeps nothing. A synthetic or KVM
    guest is started for the recording, and ends with it.
    """
    with watching(guest, output):
        _record(guest, file, config, quiet=output.quiet)
        summary = summarised(file, read_trace(file))
    _show(summary, as_json=output.json)


def _record(guest_text: str, file: Path, config: TraceConfig, *, quiet: bool) -> None:
    config.check()
    with PendingFile(file, replace=config.replace) as pending, open_guest(guest_text, incoming=False) as guest:
        watch = WriteWatch(guest, config.tracker)
        with cancelling(watch.cancel), watch:
            if not quiet:
                print_line(
                    f"recording for {config.duration_ns / NS_PER_S:g} s, by {watch.log.kind} ({watch.log.reason})"
                )
            header = TraceHeader(
                interval_ns=config.interval_ns,
                page_size_bytes=PAGE_BYTES,
                memory_pages=watch.memory_pages,
                source=watch.source,
            )
            try:
                with open(pending.fd, "wb", closefd=False) as target:
                    writer = TraceWriter(target, header)
                    for pages, at_ns in watch.intervals(config.interval_ns, config.intervals):
                        writer.add(pages, at_ns)
                    writer.end()
            except OSError as error:
                raise TraceError(f"trace {file} cannot be written: {error.strerror}") from error
        pending.sync()
        pending.commit()


@o.command()
def show(file: TraceFile, output: o.JsonOutput) -> None:
    """Show what a trace holds: the guest, how much it writes, its working set, and what it writes again."""
    with showing_errors():
        summary = summarised(file, read_trace(file))
    _show(summary, as_json=output.json)


COMMANDS: dict[str, Callable[..., None]] = {"record": record, "show": show}
"""What follows ``parmig trace``."""


def summarised(file: Path, trace: Trace) -> TraceSummary:
    """The figures of *trace*, which is in *file*."""
    counts = trace_figures.pages_per_interval(trace)
    seconds = trace.duration_ns / NS_PER_S
    return TraceSummary(
        file=str(file),
        source=trace.source,
        memory_bytes=trace.memory_bytes,
        page_size_bytes=trace.page_size_bytes,
        interval_ms=trace.interval_ns / NS_PER_MS,
        duration_ms=trace.duration_ns / NS_PER_MS,
        intervals=len(counts),
        late_intervals=trace.late_intervals,
        written_pages=counts,
        different_pages=trace_figures.different_pages(trace),
        rewritten_share=trace_figures.rewritten_share(trace),
        written_bytes_per_s=sum(counts) * trace.page_size_bytes / seconds if seconds else 0.0,
        working_set=trace_figures.working_set_curve(trace),
    )


def _show(summary: TraceSummary, *, as_json: bool) -> None:
    if as_json:
        print_json(summary)
        return
    console = output_console()
    for name, value in _headline(summary):
        console.print(f"{name:<12} {printable(value)}", soft_wrap=True)
    if any(summary.written_pages):
        console.print(_working_set(summary))


def _headline(summary: TraceSummary) -> list[tuple[str, str]]:
    """Name and value of each line above the table. Unknown values have no line."""
    source, page_bytes, counts = summary.source, summary.page_size_bytes, summary.written_pages
    lines = [("file", summary.file)]
    if source.kind:
        lines.append(("guest", ", ".join(filter(None, (source.kind, source.machine, source.monitor)))))
    lines.append(("memory", f"{format_size(summary.memory_bytes)} in {max(1, len(source.blocks))} blocks"))
    if source.recorded:
        lines.append(("recorded", f"{source.recorded}, by {source.tracker}, with parmig {source.parmig}"))
    late = f", {summary.late_intervals} of them late" if summary.late_intervals else ""
    length = f"{format_ms(summary.duration_ms)} in {summary.intervals} intervals of {format_ms(summary.interval_ms)}"
    lines.append(("length", length + late))
    if counts:
        least, middle, most = min(counts), sorted(counts)[len(counts) // 2], max(counts)
        per_interval = " / ".join(format_size(pages * page_bytes) for pages in (least, middle, most))
        lines.append(("an interval", f"{per_interval} written (least / median / most)"))
        lines.append(("rate", f"{format_rate(summary.written_bytes_per_s)} of pages that differ within an interval"))
        lines.append(("written", f"{format_size(summary.different_pages * page_bytes)} of different pages"))
        lines.append(("again", f"{summary.rewritten_share:.0%} of what is written was written in an earlier interval"))
    return lines


def _working_set(summary: TraceSummary) -> Table:
    rows = []
    for point in summary.working_set:
        size_bytes = point.pages * summary.page_size_bytes
        within = format_ms(point.intervals * summary.interval_ms)
        rows.append((within, format_size(size_bytes), f"{size_bytes / summary.memory_bytes:.1%}"))
    columns = ("within", "different pages", "of memory")
    return plain_table(columns, rows, right=columns)
