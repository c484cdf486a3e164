# SPDX-License-Identifier: Apache-2.0
"""Costs are found again in runs that were made with them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from parmig.cli.app import app
from parmig.engine.prediction.costs import Costs, read_costs
from parmig.experiments.factors import Factors
from parmig.experiments.results import RESULTS_FILE, SWEEP_FILE, Row
from parmig.experiments.simulation.calibration import fit_costs, not_negative
from parmig.experiments.simulation.measured_runs import compare, scenario_of
from parmig.experiments.simulation.simulator import simulate
from parmig.units import MIB

TRUE = Costs(
    setup_s=0.04,
    setup_worker_s=0.02,
    round_s=0.006,
    count_s=0.003,
    pause_s=0.015,
    end_s=0.02,
    end_worker_s=0.01,
)


def rows(costs: Costs, *, workers: tuple[int, ...] = (1, 2, 4), rate: int = 6 * MIB, noise_s: float = 0.0) -> list[Row]:
    """Runs as ``parmig bench`` writes them, but simulated."""
    draw = random.Random(1)
    made = []
    for number, count in enumerate(workers * 4):
        factors = Factors(
            memory_bytes=(24 + 40 * (number % 2)) * MIB,
            workers=count,
            dirty_rate_bytes_per_s=rate,
            link_rate_bytes_per_s=40_000_000 * (1 + number % 3),
        )
        (guest,) = simulate(scenario_of(factors, costs, 2))[0].guests
        late_s = abs(draw.gauss(0, noise_s))
        row: dict[str, Any] = {
            "key": f"1-{number}",
            **msgspec.structs.asdict(factors),
            "status": "completed",
            "warm_up": False,
            "setup_time_ms": (guest.setup_s + late_s) * 1000,
            "total_time_ms": (guest.total_s + late_s) * 1000,
            "downtime_ms": (guest.downtime_s or 0) * 1000,
            "report.rounds": [msgspec.to_builtins(each) for each in guest.rounds],
        }
        made.append(row)
    made[0]["setup_time_ms"] += 500 * bool(noise_s)  # a busy moment
    made[0]["total_time_ms"] += 500 * bool(noise_s)
    return made


def test_costs_are_found_again() -> None:
    calibration = fit_costs(rows(TRUE))
    fitted = msgspec.structs.asdict(calibration.costs)
    for name, value in msgspec.structs.asdict(TRUE).items():
        if name != "codecs":
            assert fitted[name] == pytest.approx(value, rel=0.1, abs=0.001), name
    assert all(fit.residual_ms < 1 for fit in calibration.fits)


def test_a_busy_moment_changes_little() -> None:
    fitted = fit_costs(rows(TRUE, noise_s=0.004)).costs
    assert (fitted.setup_s, fitted.setup_worker_s) == pytest.approx((0.04, 0.02), abs=0.008)


def test_costs_that_runs_cannot_show_are_kept() -> None:
    calibration = fit_costs(rows(TRUE, workers=(2,), rate=0))
    assert calibration.costs.setup_worker_s == Costs().setup_worker_s
    assert calibration.costs.round_s == Costs().round_s
    kept = " ".join(fit.kept for fit in calibration.fits)
    assert "setup_worker_s stays 0.036, because it is in all runs as often" in kept
    assert "round_s stays 0.011: it needs guests that write" in kept
    assert "it needs runs of one worker without link-rate" in kept


def test_no_cost_is_below_nothing() -> None:
    columns = np.array([[1.0, 1.0], [1.0, 2.0], [1.0, 3.0]])
    assert not_negative(columns, np.array([1.0, 3.0, 5.0])) == pytest.approx([0.0, 22 / 14])
    assert not_negative(columns, np.array([-1.0, -1.0, -1.0])) == pytest.approx([0.0, 0.0])


def test_runs_are_compared_with_their_simulation() -> None:
    measured = rows(TRUE)[:2]
    measured[1]["total_time_ms"] *= 2
    same, other = compare(measured, TRUE, 2, seeds=[1])
    assert (same.total_error, same.downtime_error) == (0, 0)
    assert other.total_error == -0.5


def test_the_command_writes_a_file_that_it_reads(tmp_path: Path) -> None:
    (tmp_path / SWEEP_FILE).write_text('[factors]\nlink-rate = "1Gbit"\n')
    results = tmp_path / RESULTS_FILE
    made = [{**row, "peer": "parmig"} for row in rows(TRUE)]
    results.write_text("".join(f"{json.dumps(row)}\n" for row in made))
    file = tmp_path / "costs.toml"
    run = CliRunner().invoke(app, ["simulate", str(file), "--calibrate", str(tmp_path)])
    assert run.exit_code == 0, run.stderr
    assert "set-up: setup_s 0.04, setup_worker_s 0.02 (residuals 0.0 ms" in run.stdout
    assert read_costs(file.read_bytes(), "costs").pause_s == pytest.approx(0.015, abs=0.001)
    results.write_text("".join(f"{json.dumps(row)}\n" for row in made[:2]))
    run = CliRunner().invoke(app, ["simulate", str(file), "--calibrate", str(tmp_path)])
    assert run.exit_code == 2
    assert "has 2 runs of parmig that completed; expected at least 5" in run.stderr
