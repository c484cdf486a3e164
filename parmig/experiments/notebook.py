# SPDX-License-Identifier: Apache-2.0
"""Sweeps from a program or a notebook: see :func:`parmig.experiments.run`."""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parmig.errors import UsageError
from parmig.experiments.bench import Bench
from parmig.experiments.bench_lines import step_line
from parmig.experiments.interruption import interruptible
from parmig.experiments.results import require
from parmig.experiments.running import Step
from parmig.experiments.sweep import FACTORS, Plan, read_sweep

if TYPE_CHECKING:
    import pandas as pd


def run(sweep: Path | str | Mapping[str, Any], out: Path | str | None, *, cluster: str, progress: bool) -> pd.DataFrame:
    """See :func:`parmig.experiments.run`."""
    for package in ("pandas", "tqdm"):
        require(package)
    import pandas as pd

    text, name = sweep_text(sweep)
    bench = Bench(text, name, cluster)
    with contextlib.ExitStack() as stack:
        if out is None:
            out = stack.enter_context(tempfile.TemporaryDirectory(prefix="parmig-bench-"))
        results = stack.enter_context(bench.opened(Path(out)))
        on_step = stack.enter_context(_bar(bench.plan)) if progress else lambda _: None
        with interruptible(lambda: None) as interruption:
            bench.run(results, on_step, interruption)
        results.write_parquet()
        return pd.DataFrame(results.rows)


def sweep_text(sweep: Path | str | Mapping[str, Any]) -> tuple[str, str]:
    """The TOML of *sweep*, and what messages call it.

    Args:
        sweep: a path, TOML, or the same as a mapping. Text with an equals sign is TOML.

    Raises:
        UsageError: the file cannot be read, or a value of the mapping cannot be written as TOML.
    """
    if isinstance(sweep, Mapping):
        return _toml(sweep), "the sweep"
    if isinstance(sweep, str) and "=" in sweep:
        return sweep, "the sweep"
    return read_sweep(Path(sweep)), Path(sweep).name


def _toml(table: Mapping[str, Any]) -> str:
    """*table* as TOML: its values, and the table of factors after them."""
    factors = table.get(FACTORS, {})
    lines = [f"{key} = {_value(key, value)}" for key, value in table.items() if key != FACTORS]
    lines += [f"[{FACTORS}]", *(f"{key} = {_value(key, value)}" for key, value in factors.items())]
    return "\n".join(lines) + "\n"


def _value(key: str, value: Any) -> str:
    """*value* as TOML. Texts, integers, flags and lists of them are written as in JSON."""
    levels = list(value) if isinstance(value, list | tuple | range) else [value]
    if not all(isinstance(level, str | int) for level in levels):
        raise UsageError(f"{key!r} of the sweep is {value!r}; expected a text, an integer, True or False, or a list")
    return json.dumps(levels if levels != [value] else value)


@contextlib.contextmanager
def _bar(plan: Plan) -> Iterator[Callable[[Step], None]]:
    """A bar of progress: in a notebook a widget, where ipywidgets is installed; else a line of text."""
    from tqdm import TqdmWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TqdmWarning)  # it asks for ipywidgets, which need not be there
        from tqdm.auto import tqdm

    with tqdm(total=len(plan.runs), unit="run", file=sys.stdout) as bar:

        def show(step: Step) -> None:
            if step.row is not None:
                bar.n = step.number
            bar.set_postfix_str(step_line(step, plan.varied).partition(": ")[2])

        yield show
