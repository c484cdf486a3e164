# SPDX-License-Identifier: Apache-2.0
"""``parmig bench``: run a sweep of migrations, and write what they gave."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import msgspec
import typer

from parmig.cli import options as o
from parmig.cli.output import print_json, showing_errors
from parmig.cli.progress import print_line, say_in_signal_handler
from parmig.cli.signals import SIGNALS
from parmig.errors import CancelledError, ParmigError
from parmig.experiments.bench_lines import StepLines
from parmig.experiments.factors import written
from parmig.experiments.interruption import Interruption
from parmig.experiments.results import Results, open_results, require
from parmig.experiments.running import run_sweep
from parmig.experiments.sweep import Plan, plan_of, read_sweep
from parmig.experiments.table import cells, text_table, varied
from parmig.options import option


class BenchOptions(o.JsonOutput, frozen=True, kw_only=True):
    """The options of the command."""

    out: Annotated[
        str,
        option(
            "Directory for the results. A sweep that was interrupted goes on there.",
            metavar="DIR",
            shown="the name of SWEEP without .toml",
        ),
    ] = ""
    dry_run: Annotated[bool, option("List the runs, and run none.")] = False
    quiet: Annotated[bool, option("Show no progress.")] = False


@o.command()
def bench(
    sweep: Annotated[Path, typer.Argument(metavar="SWEEP", help="A TOML file; see experiments.md.")],
    options: BenchOptions,
) -> None:
    """Run the migrations of a sweep, and write what each of them gave.

    Ctrl-C ends it. The same command goes on where it was.
    """
    with showing_errors():
        code = _bench(sweep, options)
    raise typer.Exit(code)


def _bench(path: Path, options: BenchOptions) -> int:
    sweep, text = read_sweep(path)
    plan = plan_of(sweep)
    if options.dry_run:
        _list(plan, as_json=options.json)
        return 0
    require("pyarrow")
    directory = Path(options.out or path.stem)
    with _interruptible() as interruption, open_results(directory, sweep, text) as results:
        show = StepLines(plan.varied, is_terminal=sys.stderr.isatty())
        try:
            run_sweep(sweep, plan, results, lambda step: None if options.quiet else show(step), interruption)
        except KeyboardInterrupt:
            raise CancelledError(
                f"cancelled after {len(results.rows)} of {len(plan.runs)} runs; the same command goes on"
            ) from None
        return _finish(results, as_json=options.json)


@contextmanager
def _interruptible() -> Iterator[Interruption]:
    """What the first SIGINT or SIGTERM asks to end in order, in the context; the second one ends at once."""
    interruption = Interruption()

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        for number in SIGNALS:
            signal.signal(number, signal.default_int_handler)
        say_in_signal_handler("parmig: cancelling")
        interruption.ask()

    previous = {number: signal.signal(number, interrupt) for number in SIGNALS}
    try:
        yield interruption
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _list(plan: Plan, *, as_json: bool) -> None:
    if as_json:
        runs = [{"key": run.key, **msgspec.structs.asdict(run.factors)} for run in plan.runs]
        print_json({"runs": runs, "left_out": dict(plan.left_out)})
        return
    for number, run in enumerate(plan.runs, 1):
        shown = ", ".join(f"{name} {text}" for name, text in written(run.factors, plan.varied).items())
        typer.echo(f"{number}: {shown or 'the defaults'}{' (warm-up)' if run.repeat == 0 else ''}")
    for reason, count in plan.left_out.items():
        print_line(f"left out: {count} combinations ({reason})")


def _finish(results: Results, *, as_json: bool) -> int:
    """Write what is made at the end, print the table, and say how it ended."""
    rows = [row for row in results.rows if not row["warm_up"]]
    table = cells(rows, varied(rows))
    if as_json:
        print_json({"directory": str(results.directory), "cells": table})
    else:
        typer.echo(text_table(table))
    for reason in dict.fromkeys(reason for cell in table for reason in cell.reasons):
        print_line(f"failed: {reason}")
    results.write_parquet()
    print_line(f"{len(results.rows)} runs are in {results.directory}; draw them by: parmig plot {results.directory}")
    return 0 if any(cell.runs for cell in table) else ParmigError.exit_code
