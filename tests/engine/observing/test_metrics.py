# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import re
import socket
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from parmig.engine.observing.metrics import Metrics, metrics_of
from parmig.engine.reporting.report import DowntimePhases, Progress, Report
from parmig.engine.steering.desk import Desk
from parmig.engine.steering.engine_status import EngineStatus, RamStatus, WorkerStatus
from parmig.errors import HostRefusedError
from tests.ports import free_ports
from tests.support import PATIENCE_S

ROOT = Path(__file__).resolve().parents[3]
STATUS = EngineStatus(
    parmig="0",
    name="mover",
    status="active",
    round=2,
    expected_downtime_ms=20.0,
    ram=RamStatus(transferred_bytes=7, dirty_bytes_per_s=3.0),
    per_worker=[WorkerStatus(worker=0, path="a-b", wire_bytes=5)],
    rate_by_path_bytes_per_s={"a-b": 1.5},
)
ENDED = Report(
    parmig="0", side="source", status="completed", downtime_ms=9.0, downtime_phases_ms=DowntimePhases(pause=9.0)
)


def samples(text: str) -> dict[str, float]:
    """All samples, by name and labels."""
    return {
        sample.name + "".join(f" {key}={value}" for key, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def read(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE_S) as answer:
        return samples(answer.read().decode())


def test_metrics_are_those_of_the_moment(tmp_path: Path) -> None:
    port, _ = free_ports(1)
    desk = Desk(lambda: None)
    desk.post(STATUS)
    file = tmp_path / "parmig.prom"
    metrics = Metrics(desk, ("127.0.0.1", port), str(file))
    try:
        seen = read(port)
        assert (seen["parmig_round"], seen["parmig_transferred_bytes_total"]) == (2, 7)
        assert (seen["parmig_status status=active"], seen["parmig_status status=completed"]) == (1, 0)
        assert seen["parmig_worker_transferred_bytes_total path=a-b worker=0"] == 5
        assert "parmig_downtime_seconds" not in seen
        desk.post_progress(Progress(status="active", round=3))
        assert read(port)["parmig_round"] == 3
        desk.finish(ENDED)
    finally:
        metrics.close()
    left = samples(file.read_text())
    assert (left["parmig_status status=completed"], left["parmig_downtime_seconds"]) == (1, 0.009)
    assert left["parmig_downtime_phase_seconds phase=pause"] == 0.009
    assert list(tmp_path.iterdir()) == [file]


def test_an_address_or_a_file_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    desk = Desk(lambda: None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(HostRefusedError, match="cannot serve metrics"):
            Metrics(desk, ("127.0.0.1", taken.getsockname()[1]), "")
        with pytest.raises(HostRefusedError, match="cannot write metrics"):
            Metrics(desk, None, str(tmp_path / "nowhere" / "m.prom"))


def test_the_dashboard_shows_all_metrics_and_no_others() -> None:
    made = {sample.name for family in metrics_of(STATUS, ENDED) for sample in family.samples}
    dashboard = json.loads((ROOT / "docs/examples/grafana.json").read_text())
    shown = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"parmig_\w+", target["expr"])
    }
    assert shown <= made
    assert made - shown == {
        "parmig_info",
        "parmig_pages_total",
        "parmig_total_time_seconds",
        "parmig_transferred_bytes_total",
    }


def test_the_documentation_lists_all_metrics() -> None:
    made = {family.name for family in metrics_of(STATUS, ENDED)}
    documented = re.findall(r"^\| `(parmig_\w+?)(?:_total)?`", (ROOT / "docs/steering.md").read_text(), re.M)
    assert set(documented) == made
