# SPDX-License-Identifier: Apache-2.0
"""``parmig bench``: run a sweep of migrations, and write what they gave."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from parmig.cli import options as o
from parmig.cli.output import print_json, showing_errors
from parmig.cli.progress import print_line, say_in_signal_handler
from parmig.errors import CancelledError, ParmigError
from parmig.experiments.bench import Bench
from parmig.experiments.bench_lines import StepLines
from parmig.experiments.factors import written
from parmig.experiments.interruption import interruptible
from parmig.experiments.results import Results
from parmig.experiments.sweep import Plan, read_sweep
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
    cluster: Annotated[
        str,
        option(
            "Run on the hosts of the Dask cluster whose scheduler is there.",
            metavar="tcp://SCHEDULER:8786",
            shown="this machine",
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
    whole = Bench(read_sweep(path), path.name, options.cluster)
    if options.dry_run:
        _list(whole.plan, as_json=options.json)
        return 0
    say = partial(say_in_signal_handler, "parmig: cancelling")
    with interruptible(say) as interruption, whole.opened(Path(options.out or path.stem)) as results:
        show = StepLines(whole.plan.varied, is_terminal=sys.stderr.isatty())
        try:
            whole.run(results, (lambda _: None) if options.quiet else show, interruption)
        except KeyboardInterrupt:
            raise CancelledError(
                f"cancelled after {len(results.rows)} of {len(whole.plan.runs)} runs; the same command goes on"
            ) from None
        return _finish(results, as_json=options.json)


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
