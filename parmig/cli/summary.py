# SPDX-License-Identifier: Apache-2.0
"""The summary of a report for people: a few lines and two tables on standard output."""

from __future__ import annotations

import textwrap

import msgspec
from rich.table import Table

from parmig.cli.tables import output_console, plain_table
from parmig.engine.reporting.report import CodecReport, DowntimePhases, Report, SnapshotReport
from parmig.logs import printable
from parmig.units import MIB, format_ms, format_rate, format_size

PHASES_COLUMNS = 80
"""Width of a line of downtime phases: with its name it fits the width of a document."""


NO_BREAK = "\N{NO-BREAK SPACE}"


def print_summary(report: Report) -> None:
    """Print *report* on standard output."""
    console = output_console()
    for name, value in headline(report):
        console.print(f"{name:<12} {printable(value)}", soft_wrap=True)
    if report.rounds:
        console.print(rounds_table(report))
    if len(report.per_worker) > 1:
        console.print(workers_table(report))
    for mismatch in report.mismatches:
        console.print(f"{'to mend':<12} {printable(str(mismatch))}", soft_wrap=True)


def headline(report: Report) -> list[tuple[str, str]]:
    """Name and value of each line above the tables. Unknown values have no line."""
    lines = [("status", report.status)]
    if report.guest.memory_bytes:
        lines.append(("guest", f"{report.guest.kind}, {format_size(report.guest.memory_bytes)} of memory"))
    if report.tracker not in ("", "none"):
        lines.append(("dirty log", f"{report.tracker} ({report.tracker_reason or 'as requested'})"))
    if report.encryption is not None:
        encryption = report.encryption
        lines.append(("encrypted", f"{encryption.version}, {encryption.cipher}, with {' '.join(encryption.peer)}"))
    if report.insecure:
        lines.append(("INSECURE", "the guest travelled between hosts unencrypted; see --keys"))
    if report.total_time_ms:
        lines.append(("total time", format_ms(report.total_time_ms)))
    if report.downtime_ms is not None:
        lines += _downtime(report.downtime_ms, report.downtime_phases_ms)
    if report.max_throttle_percent:
        lines.append(("throttle", f"the guest was slowed down by up to {report.max_throttle_percent} %"))
    if report.throughput_mib_per_s:
        rate = format_rate(report.throughput_mib_per_s * MIB)
        when = "in round 1" if report.rounds else "placed"
        lines.append(("throughput", f"{rate} of guest memory {when}, {report.workers} workers"))
    if report.ram.total_bytes:
        lines.append(("memory", _traffic(report)))
    if report.ram.in_place_bytes:
        names = ", ".join(report.ram.in_place_blocks)
        lines.append(("in place", f"{format_size(report.ram.in_place_bytes)} were not copied: {names}"))
        if report.source_guest == "moved":
            lines.append(("note", "the old monitor has the same memory: end it, and never continue the guest there"))
    if report.ram.huge_page_bytes:
        lines.append(("huge pages", f"{format_size(report.ram.huge_page_bytes)} of the memory placed in huge pages"))
    if any(done.codec != "none" for done in report.codecs):
        lines.append(("codecs", "; ".join(map(_codec, report.codecs))))
    if report.snapshot is not None:
        lines += _snapshot(report.snapshot)
    elif report.verified is not None:
        lines.append(("verified", _verified(report)))
    return lines


def _snapshot(snapshot: SnapshotReport) -> list[tuple[str, str]]:
    lines = []
    if snapshot.file_bytes:
        lines.append(("file", f"{snapshot.file}: {snapshot.format}, {format_size(snapshot.file_bytes)}"))
    if snapshot.digest is not None:
        lines.append(("digest", snapshot.digest))
    return lines + [("note", note) for note in snapshot.notes]


def _downtime(downtime_ms: float, phases: DowntimePhases) -> list[tuple[str, str]]:
    """The pause as it is without --verify comes first: a comparison of all memory takes longer than the rest."""
    more = f" (and {format_ms(phases.verify)} more to compare both memories)" if phases.verify else ""
    parts = [(name, value) for name, value in msgspec.structs.asdict(phases).items() if value and name != "verify"]
    sums = " + ".join(f"{name} {value:.1f}".replace("_", " ").replace(" ", NO_BREAK) for name, value in parts)
    rows = [row.replace(NO_BREAK, " ") for row in textwrap.wrap(f"{sums} ms", PHASES_COLUMNS)] if parts else []
    names = ["of which", *[""] * len(rows)]
    return [("downtime", f"{format_ms(downtime_ms - phases.verify)}{more}"), *zip(names, rows, strict=False)]


def _codec(done: CodecReport) -> str:
    if done.codec == "none":
        return f"{format_size(done.raw_bytes)} as it is"
    sizes = f"{format_size(done.raw_bytes)} to {format_size(done.encoded_bytes)}"
    return f"{done.codec} {sizes} in {format_ms(done.busy_ms)}"


def _traffic(report: Report) -> str:
    ram, where = report.ram, "of pages" if report.snapshot else "on the wire"
    if ram.direct:
        where = "copied from memory to memory"
    return (
        f"{format_size(ram.wire_bytes)} {where} for {format_size(ram.total_bytes)}: "
        f"{ram.sent_pages} pages sent, {ram.zero_pages} zero, {ram.skipped_pages} skipped"
    )


def _verified(report: Report) -> str:
    source, destination = report.digest.source, report.digest.destination
    if report.verified:
        return f"yes, both memories are the same ({source})"
    return f"NO, the memories differ: source {source}, destination {destination}"


def rounds_table(report: Report) -> Table:
    """A row for each round."""
    throttled = bool(report.max_throttle_percent)
    columns = ["round", "dirty pages", "sent", "zero", "skipped", "wire", "scan", "duration"]
    columns += ["throttle"] * throttled
    rows = [
        [
            f"{round_.round}{' (paused)' if round_.paused else ''}",
            *(str(pages) for pages in (round_.dirty_pages, round_.sent_pages, round_.zero_pages, round_.skipped_pages)),
            format_size(round_.wire_bytes),
            format_ms(round_.scan_ms),
            format_ms(round_.duration_ms),
            *[f"{round_.throttle_percent} %"] * throttled,
        ]
        for round_ in report.rounds
    ]
    return plain_table(columns, rows, right=columns)


def workers_table(report: Report) -> Table:
    """A row for each worker."""
    columns = ("worker", "path", "sent pages", "wire", "busy", "waiting", "regions taken over")
    rows = [
        [
            str(worker.worker),
            worker.path,
            str(worker.sent_pages),
            format_size(worker.wire_bytes),
            format_ms(worker.busy_ms),
            format_ms(worker.waiting_ms),
            str(worker.stolen_regions),
        ]
        for worker in report.per_worker
    ]
    return plain_table(columns, rows, right=set(columns) - {"path"})
