# SPDX-License-Identifier: Apache-2.0
"""The directory of an experiment: its sweep, one line of JSON for each run, and what is made of them at the end.

=============== =========================================================================
sweep.toml      the sweep, as it was given
results.jsonl   a line for each run, written when the run has ended
results.parquet the same as columns, written at the end
=============== =========================================================================
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from parmig.errors import HostRefusedError, UsageError
from parmig.experiments.sweep import Sweep, parse_sweep

SWEEP_FILE, RESULTS_FILE, PARQUET_FILE = "sweep.toml", "results.jsonl", "results.parquet"

Row = dict[str, Any]
"""One run: its key, its factors, how it ended, what it gave, and what the host was like. Names have units."""

_MAY_CHANGE = {"description", "repeats", "run_limit_ns"}
"""What a sweep may have otherwise when it goes on: its runs so far stay the same."""


class Results:
    """The runs so far. Use :func:`open_results`.

    Attributes:
        rows: of all runs that have ended, in their order.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._path = directory / RESULTS_FILE
        self.rows = _read_rows(self._path)

    def add(self, row: Row) -> None:
        """Append a run; it is on disk when this returns."""
        with self._path.open("ab") as file:
            file.write(msgspec.json.encode(row) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.rows.append(row)

    def write_parquet(self) -> None:
        """Write all rows as columns. Lists are JSON, since the fields of their objects differ from run to run."""
        import pyarrow as pa
        from pyarrow import parquet

        names = list(dict.fromkeys(name for row in self.rows for name in row))
        table = pa.Table.from_pylist([{name: _column(row.get(name)) for name in names} for row in self.rows])
        parquet.write_table(table, self.directory / PARQUET_FILE)


def require(package: str, extra: str = "experiments") -> None:
    """Raise :class:`HostRefusedError` unless *package* of *extra* is installed."""
    if importlib.util.find_spec(package) is None:
        raise HostRefusedError(f"{package} is not installed; install parmig[{extra}]")


@contextmanager
def open_results(directory: Path, sweep: Sweep, text: str) -> Iterator[Results]:
    """The results in *directory*, which is made if it is not there, for this process alone.

    Args:
        sweep: that the runs belong to.
        text: of its file; it is kept in the directory.

    Raises:
        UsageError: there is another sweep, or another process runs it, or the directory cannot be used.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = directory / SWEEP_FILE
        lock = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise UsageError(f"cannot write to {directory}: {error.strerror}; give another directory by --out") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(f"another parmig bench writes to {directory}; wait, or give another --out") from error
        kept = file.read_text(encoding="utf-8")
        if kept and _identity(parse_sweep(kept, str(file))) != _identity(sweep):
            raise UsageError(
                f"{directory} has the results of another sweep; give another directory by --out. "
                "Only repeats, run-limit and description may change"
            )
        file.write_text(text, encoding="utf-8")
        yield Results(directory)
    finally:
        os.close(lock)


def load_results(directory: Path) -> tuple[Sweep, list[Row]]:
    """The sweep in *directory*, and its rows so far.

    Raises:
        UsageError: there are none.
    """
    try:
        text = (directory / SWEEP_FILE).read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{directory} has no results; give the directory that parmig bench has written") from error
    rows = _read_rows(directory / RESULTS_FILE)
    if not any(row["status"] == "completed" and not row["warm_up"] for row in rows):
        raise UsageError(f"{directory} has no run that completed; run parmig bench first")
    return parse_sweep(text, SWEEP_FILE), rows


def _identity(sweep: Sweep) -> dict[str, Any]:
    return {name: value for name, value in msgspec.structs.asdict(sweep).items() if name not in _MAY_CHANGE}


def _read_rows(path: Path) -> list[Row]:
    """The rows in the file. A last line that was not written to its end is cut off: its run counts as not run."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(path, len(whole))
    try:
        return [msgspec.json.decode(line, type=Row) for line in whole.splitlines()]
    except msgspec.DecodeError as error:
        raise UsageError(f"{path} is damaged: {error}; take the damaged line out, and its run is run again") from error


def _column(value: Any) -> Any:
    if isinstance(value, list):
        return msgspec.json.encode(value).decode()
    return value


def flattened(value: dict[str, Any], prefix: str) -> Row:
    """The objects inside *value* as names with dots; lists stay lists."""
    flat: Row = {}
    for name, inner in value.items():
        if isinstance(inner, dict):
            flat |= flattened(inner, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = inner
    return flat


def measured(rows: Sequence[Row]) -> list[Row]:
    """The rows that count: completed, and no warm-ups."""
    return [row for row in rows if row["status"] == "completed" and not row["warm_up"]]
