# SPDX-License-Identifier: Apache-2.0
"""A small sweep over loopback: interrupted, continued, and read again."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import psutil
import pytest
from typer.testing import CliRunner

from parmig.cli.app import app
from parmig.errors import UsageError
from parmig.experiments import run
from parmig.experiments.factors import Factors
from parmig.experiments.interruption import Interruption
from parmig.experiments.notebook import sweep_text
from parmig.experiments.results import Results, load_results, open_results
from parmig.experiments.running import run_once
from parmig.experiments.sweep import Run, Sweep, parse_sweep
from parmig.experiments.table import cells, interval, text_table, varied
from parmig.units import MIB, NS_PER_MS

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 200
"""For a whole sweep, on a busy machine."""
SWEEP = """
description = "A small one."
hosts = "loopback"
repeats = 1
warm-up = 0
[factors]
memory = "16MiB"
free-memory = "as-it-is"
workers = [1, 2]
dirty-rate = ["0", "20MiB/s"]
"""
SMALL = Factors(memory_bytes=16 * MIB, free_memory="as-it-is")


def swept_in(directory: Path) -> Path:
    """The results of a sweep in *directory*, which was interrupted after its first run and then continued."""
    (directory / "small.toml").write_text(SWEEP)
    argv = [sys.executable, "-m", "parmig", "bench", "small.toml", "--out", "out", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        argv, cwd=directory, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as bench:
        assert bench.stderr is not None
        first = bench.stderr.readline().decode()
        assert first.startswith("run 1 of 4"), first
        children = psutil.Process(bench.pid).children(recursive=True)
        bench.send_signal(signal.SIGINT)
        output, errors = bench.communicate(timeout=LIMIT_S)
    assert bench.returncode == 130, errors
    # On a busy machine another run or two may have ended before the signal came.
    interrupted = re.search(rb"cancelled after ([123]) of 4 runs; the same command goes on", errors)
    assert interrupted, errors
    assert output == b""
    psutil.wait_procs(children, timeout=LIMIT_S)
    assert not [child for child in children if child.is_running()]
    result = subprocess.run(argv, cwd=directory, env=environment, capture_output=True, timeout=LIMIT_S)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count(b" of 4") == 4 - int(interrupted[1])
    assert len(json.loads(result.stdout)["cells"]) == 4
    return directory / "out"


def check_rows(swept: Path) -> None:
    sweep, rows = load_results(swept)
    assert sweep.description == "A small one."
    assert sorted(row["key"] for row in rows) == ["1-1", "1-2", "1-3", "1-4"]
    for row in rows:
        assert row["status"] == "completed", row["reason"]
        assert row["report.status"] == "completed"
        assert row["processor_s"] > 0
        assert row["host.kernel"] == os.uname().release
    assert varied(rows) == ("dirty_rate_bytes_per_s", "workers")
    assert len(text_table(cells(rows, varied(rows))).splitlines()) == 5


def check_columns(swept: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(swept / "results.parquet")
    assert table.num_rows == 4
    assert table["workers"].to_pylist() == [row["workers"] for row in load_results(swept)[1]]


def check_pictures(swept: Path) -> None:
    pytest.importorskip("matplotlib")
    argv = [sys.executable, "-m", "parmig", "plot", str(swept)]  # matplotlib keeps the files of its fonts open
    result = subprocess.run(argv, cwd=ROOT, capture_output=True, timeout=LIMIT_S)
    assert result.returncode == 0, result.stderr
    assert result.stdout.decode().strip() == str(swept / "index.html")
    pictures = {path.name for path in swept.glob("*.png")}
    assert pictures == {
        "time-workers.png",
        "downtime-distribution.png",
        "convergence.png",
        "waterfall.png",
        "guest-speed.png",
        "processor.png",
    }
    assert {path.stem for path in swept.glob("*.svg")} == {name.removesuffix(".png") for name in pictures}
    page = (swept / "index.html").read_text()
    assert page.count("data:image/svg+xml;base64,") == len(pictures)
    assert "A small one." in page
    assert not re.search(r'(src|href)="(?!data:|#)', page), "it needs no other file"


def check_runs(swept: Path) -> None:
    pytest.importorskip("pandas")
    runs = run(SWEEP, swept, progress=False)  # all of them have ended
    assert sorted(runs["key"]) == ["1-1", "1-2", "1-3", "1-4"]
    assert set(runs["status"]) == {"completed"}
    assert isinstance(runs["report.rounds"][0], list)


def test_an_interrupted_sweep_goes_on_and_its_results_are_read_and_drawn(tmp_path: Path) -> None:
    """One test, so that the processes of pytest-xdist make one sweep in all."""
    swept = swept_in(tmp_path)
    check_rows(swept)
    check_columns(swept)
    check_pictures(swept)
    check_runs(swept)


def test_a_failed_run_is_kept_with_its_reason() -> None:
    row = run_once(Sweep(hosts="loopback", run_limit_ns=NS_PER_MS), Run(1, 1, SMALL), Interruption())
    assert row["status"] == "failed"
    assert "LimitExceededError: the run did not end within its limit" in row["reason"]
    (cell,) = cells([row], ())
    assert (cell.runs, cell.failed, len(cell.reasons)) == (0, 1, 1)


def test_a_directory_has_one_sweep_and_one_writer(tmp_path: Path) -> None:
    sweep = parse_sweep(SWEEP, "x")
    once = open_results(tmp_path, sweep, SWEEP)
    again = open_results(tmp_path, sweep, SWEEP)
    with once, pytest.raises(UsageError, match="another parmig bench"), again:
        pass
    with pytest.raises(UsageError, match="another sweep"), open_results(tmp_path, Sweep(), ""):
        pass
    with open_results(tmp_path, msgspec.structs.replace(sweep, repeats=5), SWEEP):
        pass
    with pytest.raises(UsageError, match="no run that completed"):
        load_results(tmp_path)


def test_a_line_that_was_cut_short_is_dropped(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.add({"key": "1-1"})
    with (tmp_path / "results.jsonl").open("ab") as file:
        file.write(b'{"key": "1-')
    again = Results(tmp_path)
    again.add({"key": "1-2"})
    assert [row["key"] for row in Results(tmp_path).rows] == ["1-1", "1-2"]


def test_a_dry_run_lists_the_runs_and_runs_none(tmp_path: Path) -> None:
    path = tmp_path / "small.toml"
    path.write_text(SWEEP + "paths = [1, 2]\n")
    result = CliRunner().invoke(app, ["bench", str(path), "--dry-run"])
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0].startswith("1: dirty-rate ")
    assert len(json.loads(CliRunner().invoke(app, ["bench", str(path), "--dry-run", "--json"]).stdout)["runs"]) == 6
    assert CliRunner().invoke(app, ["bench", str(tmp_path / "none.toml")]).exit_code == 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["small.toml"]


def test_an_interval_contains_its_median() -> None:
    figure = interval([1.0, 2.0, 9.0, 4.0])
    assert figure.low is not None
    assert figure.high is not None
    assert 1.0 <= figure.low <= figure.median == 3.0 <= figure.high <= 9.0
    assert interval([5.0]).low is None


def test_nothing_is_drawn_without_results(tmp_path: Path) -> None:
    assert CliRunner().invoke(app, ["plot", str(tmp_path)]).exit_code == 2


def test_a_missing_program_ends_the_sweep_before_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "network.toml"
    path.write_text('hosts = "loopback"\n[factors]\npeer = "iperf3"\n')
    monkeypatch.setenv("PATH", str(tmp_path))
    result = CliRunner().invoke(app, ["bench", str(path), "--out", str(tmp_path / "out")])
    assert result.exit_code == 3
    assert "iperf3 is not installed" in result.stderr
    assert not (tmp_path / "out" / "results.jsonl").exists()


def test_a_sweep_for_a_notebook_is_a_path_a_text_or_a_mapping(tmp_path: Path) -> None:
    path = tmp_path / "small.toml"
    path.write_text(SWEEP)
    mapping = {"description": 'A "small" one.', "repeats": 1, "factors": {"workers": [1, 2], "auto-converge": True}}
    assert sweep_text(path) == sweep_text(str(path)) == (SWEEP, "small.toml")
    assert sweep_text(SWEEP)[0] == SWEEP
    sweep = parse_sweep(*sweep_text(mapping))
    assert sweep.description == 'A "small" one.'
    assert sweep.factors == {"workers": (1, 2), "auto_converge": (True,)}
    with pytest.raises(UsageError, match=r"'workers' of the sweep is 1\.5"):
        sweep_text({"factors": {"workers": 1.5}})
