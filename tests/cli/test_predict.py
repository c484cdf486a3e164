# SPDX-License-Identifier: Apache-2.0
"""``parmig predict``."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

from parmig.cli.predict import headline, table
from parmig.engine.predicting.prediction_report import PredictedCell, PredictionReport, WorkingSetPoint
from parmig.engine.prediction.model import Estimate, Prediction
from parmig.units import MIB

PREDICT = [sys.executable, "-m", "parmig", "predict", "--guest", "synthetic:memory=16MiB,rate=200MiB/s"]


def test_a_guest_that_does_not_converge_gets_advice() -> None:
    command = [*PREDICT, "--rate", "20MiB/s", "--observe", "1s", "--workers", "1", "--downtime-limit", "50ms"]

    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    (cell,) = json.loads(done.stdout)["predictions"]
    assert not cell["prediction"]["converges"]
    assert any("--downtime-limit" in line for line in cell["advice"])
    assert "watching for 1 s" in done.stderr


def test_ctrl_c_ends_the_observation() -> None:
    command = [*PREDICT, "--rate", "1MiB/s", "--observe", "100s"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as run:
        assert run.stderr is not None
        assert "watching" in run.stderr.readline()
        run.send_signal(signal.SIGINT)
        assert "cancelled" in run.stderr.read()
    assert run.returncode == 130


def test_a_report_is_shown_with_its_intervals() -> None:
    exact, wide = Estimate(2.0, 2.0, 2.01), Estimate(0.1, 0.05, 0.2)
    prediction = Prediction(
        converges=True,
        probability=0.8,
        reason="",
        rounds=Estimate(4, 4, 5),
        total_s=exact,
        downtime_s=wide,
        wire_bytes=Estimate(MIB, MIB, MIB),
    )
    cell = PredictedCell(
        workers=2, paths=1, compress="none", downtime_limit_ms=300, rate_bytes_per_s=MIB, prediction=prediction
    )
    report = PredictionReport(
        parmig="1",
        guest="synthetic",
        tracker="pagemap",
        observed_s=10.0,
        interval_ms=100.0,
        memory_bytes=16 * MIB,
        data_bytes=8 * MIB,
        zero_bytes=0,
        working_set=[WorkingSetPoint(within_s=1.0, written_bytes=4 * MIB, spread=0.1)],
        predictions=[cell],
    )

    cells = [next(iter(column.cells)) for column in table(report).columns]

    assert cells[4:9] == ["300ms", "80%", "2.0 s", "100 ms (50 to 200)", "4"]
    assert ("network", "1 MiB/s") in headline(report)
    assert ("written", "4 MiB within 1000.0 ms") in headline(report)
