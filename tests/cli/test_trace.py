# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from parmig.cli.app import app
from parmig.ram.traces.trace_file import read_trace
from tools.make_golden_trace import FILE

RECORD = [sys.executable, "-m", "parmig", "trace", "record", "--guest", "synthetic:memory=4MiB,rate=4MiB/s"]


def show(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["trace", "show", *arguments])
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_a_trace_is_shown() -> None:
    lines = {line[:12].strip(): line[12:].strip() for line in show(str(FILE)).splitlines()}
    assert lines["guest"] == "qemu, pc-q35-10.0, QEMU 10.0.0"
    assert lines["memory"] == "19.53 MiB in 2 blocks"
    assert lines["recorded"] == "2026-11-30T20:00:00Z, by pagemap, with parmig 0.5.0"
    assert lines["length"] == "500.0 ms in 5 intervals of 100.0 ms, 1 of them late"
    assert lines["an interval"] == "0 bytes / 20 KiB / 11.68 MiB written (least / median / most)"
    assert lines["again"] == "27% of what is written was written in an earlier interval"


def test_json_has_every_figure() -> None:
    shown = json.loads(show(str(FILE), "--json"))
    assert shown["written_pages"] == [5, 0, 2990, 0, 2500]
    assert (shown["different_pages"], shown["late_intervals"], shown["intervals"]) == (3997, 1, 5)
    assert shown["working_set"][0] == {"intervals": 1, "pages": 1099.0}
    assert shown["source"]["blocks"][1]["name"] == "vga"
    assert (shown["interval_ms"], shown["duration_ms"], shown["memory_bytes"]) == (100, 500, 5000 * 4096)


@pytest.mark.parametrize("content", [b"", FILE.read_bytes()[:-3]])
def test_what_is_no_trace_ends_with_1(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "damaged").write_bytes(content)
    result = CliRunner().invoke(app, ["trace", "show", str(tmp_path / "damaged")])
    assert (result.exit_code, result.stdout) == (1, "")
    assert "parmig: " in result.stderr


def test_a_guest_is_recorded_to_a_file(tmp_path: Path) -> None:
    path = tmp_path / "workload.trace"
    command = [*RECORD, str(path), "--interval", "20ms", "--duration", "90ms", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shown, trace = json.loads(done.stdout), read_trace(path)
    assert (shown["intervals"], trace.interval_ns, trace.memory_bytes) == (5, 20_000_000, 4 << 20)
    assert sum(shown["written_pages"]) > 0
    assert "recording for 0.09 s" in done.stderr
    assert list(tmp_path.iterdir()) == [path]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 3
    assert "already exists" in refused.stderr


def test_ctrl_c_leaves_no_file(tmp_path: Path) -> None:
    command = [*RECORD, str(tmp_path / "workload.trace"), "--duration", "100s"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "recording" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert "cancelled" in process.stderr.read()
    assert process.returncode == 130
    assert list(tmp_path.iterdir()) == []
