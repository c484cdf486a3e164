# SPDX-License-Identifier: Apache-2.0
"""Sweeps on a Dask cluster: a scheduler and four workers, each in a host of the lab."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from parmig.errors import HostRefusedError, UsageError
from parmig.experiments.bench import Bench
from parmig.experiments.cluster.side_messages import pairs_between
from parmig.experiments.interruption import Interruption
from parmig.experiments.results import load_results
from parmig.experiments.sweep import parse_sweep, text_for_cluster
from tests.labs import needs_lab

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 60.0

SWEEP = """
repeats = 1
warm-up = 0
[factors]
memory = "24MiB"
free-memory = "as-it-is"
workers = [1, 2, 3]
"""


class Cluster:
    """The hosts of a lab, a scheduler in the first one and a Dask worker in each other."""

    def __init__(self, lab: Any, directory: Path, opened: contextlib.ExitStack) -> None:
        self.lab, self.directory, self.opened = lab, directory, opened
        self.address = f"tcp://{lab.links[0].address(lab.hosts[0])}:8786"
        host, port = self.address.removeprefix("tcp://").split(":")
        self.start(0, "Scheduler at", "scheduler", "--host", host, "--port", port, "--no-dashboard")
        words = [
            "--local-directory",
            str(directory),
            "--no-nanny",
            "--no-dashboard",
            "--memory-limit",
            "0",
            "--resources",
            "parmig-host=1",
        ]
        logs = []
        for number in range(1, len(lab.hosts)):
            here = lab.links[0].address(lab.hosts[number])
            logs.append(self.start(number, "", "worker", self.address, "--host", here, "--nthreads", "1", *words))
        for log in logs:
            wait_for(log, "Registered to")

    def start(self, number: int, word: str, *argv: str) -> Path:
        """Start a program of Dask in a host; when this returns, *word* is in its log."""
        log = self.directory / f"dask-{number}.log"
        command = self.lab.hosts[number].command(sys.executable, "-m", "distributed.cli.dask_" + argv[0], *argv[1:])
        with log.open("wb") as file:
            process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file)
        self.opened.callback(process.wait, LIMIT_S)
        self.opened.callback(process.terminate)
        wait_for(log, word)
        return log

    def wait_for_command(self, name: str, number: int) -> None:
        """Wait until a command of parmig runs in a host."""
        deadline = time.monotonic() + LIMIT_S
        while not any(name in _arguments(one) for one in self.inside(number)):
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def inside(self, *numbers: int) -> list[psutil.Process]:
        """All processes of hosts."""
        pids = [pid for number in numbers for pid in self.lab.hosts[number].processes()]
        inside = []
        for pid in pids:
            with contextlib.suppress(psutil.NoSuchProcess):
                inside.append(psutil.Process(pid))
        return inside

    def bench(self) -> subprocess.Popen[str]:
        """Start ``parmig bench`` beside the scheduler."""
        sweep = self.directory / "out.toml"
        sweep.write_text(SWEEP)
        argv = [sys.executable, "-m", "parmig", "bench", str(sweep), "--cluster", self.address]
        argv += ["--out", str(self.directory / "out")]
        command = self.lab.hosts[0].command(*argv)
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _arguments(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.cmdline()
    return []


def wait_for(log: Path, word: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while word not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    from parmig.experiments.netlab import Line, open_lab
    from parmig.units import MIB

    pytest.importorskip("distributed")
    with contextlib.ExitStack() as opened:
        lab = opened.enter_context(open_lab([Line(12 * MIB)], hosts=5))
        yield Cluster(lab, tmp_path_factory.mktemp("cluster"), opened)


@needs_lab
def test_a_sweep_goes_on_after_an_interruption_and_without_a_host_that_died(cluster: Cluster) -> None:
    idle = set(cluster.inside(1, 2, 3, 4))
    with cluster.bench() as bench:
        cluster.wait_for_command("send", 1)
        cluster.wait_for_command("send", 3)  # two pairs at the same time
        started = set(cluster.inside(1, 2, 3, 4)) - idle
        bench.send_signal(signal.SIGINT)
        _, errors = bench.communicate(timeout=LIMIT_S)
    assert bench.returncode == 130, errors
    assert "the same command goes on" in errors
    started |= set(cluster.inside(1, 2, 3, 4)) - idle
    assert not psutil.wait_procs(started, timeout=LIMIT_S)[1]

    with cluster.bench() as bench:
        cluster.wait_for_command("receive", 2)
        there = cluster.inside(2)
        next(one for one in there if one in idle).kill()
        _, errors = bench.communicate(timeout=2 * LIMIT_S)
    assert bench.returncode == 0, errors
    assert not psutil.wait_procs(there, timeout=LIMIT_S)[1], "what the Dask worker had started ends with it"
    sweep, rows = load_results(cluster.directory / "out")
    assert sweep.hosts == "cluster"
    assert sorted(row["key"] for row in rows) == ["1-1", "1-2", "1-3"]
    (failed,) = [row for row in rows if row["status"] == "failed"]
    assert failed["reason"] == f"ParmigError: {failed['host.destination.address']}: its Dask worker is gone"
    assert cluster.lab.links[0].address(cluster.lab.hosts[2]) in failed["reason"]
    for row in rows:
        if row is not failed:
            assert row["host.source.kernel"] == row["host.destination.kernel"] == os.uname().release
            assert row["host.source.address"] != row["host.destination.address"]
            assert row["source_processor_s"] > 0
            assert row["destination_processor_s"] > 0


def test_hosts_meet_by_their_first_addresses_and_by_networks_that_they_share() -> None:
    source = ["10.0.0.1/32", "192.168.7.1/24", "fd00::1/64", "10.9.0.1/16"]
    destination = ["10.0.3.9/32", "fd00::2/64", "192.168.7.2/24"]
    pairs = pairs_between(source, destination, 3)
    assert pairs == (("10.0.0.1", "10.0.3.9"), ("192.168.7.1", "192.168.7.2"), ("[fd00::1]", "[fd00::2]"))
    with pytest.raises(HostRefusedError, match="share 3 networks, and the run needs 4"):
        pairs_between(source, destination, 4)


def test_a_cluster_is_implied_by_its_address() -> None:
    text = text_for_cluster("repeats = 2\n[factors]\nworkers = [1]\n", "x.toml")
    assert parse_sweep(text, "x.toml").hosts == "cluster"
    assert text_for_cluster(text, "x.toml") == text
    with pytest.raises(UsageError, match="leave out the key 'hosts', or --cluster"):
        text_for_cluster('hosts = "lab"', "x.toml")
    with pytest.raises(UsageError, match="name its scheduler by --cluster"):
        Bench('hosts = "cluster"', "x.toml")
    with pytest.raises(UsageError, match="needs links"):
        Bench('hosts = "cluster"\n[factors]\nlink-rate = "1Gbit/s"', "x.toml", "tcp://127.0.0.1:9")


def test_peers_that_share_files_do_not_run_in_a_cluster(tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    bench = Bench('[factors]\npeer = ["bare", "parmig"]', "x.toml", "tcp://127.0.0.1:9")
    with bench.opened(tmp_path) as results, pytest.raises(UsageError, match="bare cannot run in a cluster"):
        bench.run(results, lambda _: None, Interruption())
