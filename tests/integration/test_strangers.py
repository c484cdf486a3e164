# SPDX-License-Identifier: Apache-2.0
"""Strangers on every port, as processes: they neither end, hold, fill nor starve a receiver, before or during."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from parmig.units import MIB
from tests.integration.sides import LISTEN, ROOT, Command, until
from tests.ports import free_ports
from tools.strangers import WORDS

GUEST = "synthetic:memory=64MiB"
SEND = ("--guest", f"{GUEST},rate=10MiB/s", "--workers", "2", "--verify", "--connect-timeout", "60s", "--json")
MORE_BYTES = 100 * MIB
"""What a receiver may grow by, whatever comes: 64 strangers of 256 KiB, and room for the interpreter."""


@contextmanager
def strangers(kind: str, count: int, *ports: int) -> Iterator[None]:
    """A process of them, until leaving."""
    command = [sys.executable, "-m", "tools.strangers", kind, str(count), *map(str, ports)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"there\n"
            yield
        finally:
            process.kill()


@contextmanager
def receiving(*options: str) -> Iterator[tuple[Command, int]]:
    """A receiver that waits, and its port."""
    with Command("receive", "--listen", LISTEN, "--guest", GUEST, *options, "--json") as there:
        yield there, int(there.uri().rpartition(":")[2])


def resident_bytes(command: Command) -> int:
    return int(psutil.Process(command.process.pid).memory_info().rss)


@pytest.mark.parametrize(("kind", "count"), [("zmtp", 16), ("endless", 16), *((kind, 400) for kind in WORDS)])
def test_a_receiver_that_waits_takes_the_real_sender_beside_them(kind: str, count: int) -> None:
    with receiving() as (there, port):
        before = resident_bytes(there)
        with strangers(kind, count, port):
            most, end = 0, time.monotonic() + 2
            while time.monotonic() < end:
                assert there.process.poll() is None, there.errors
                most = max(most, resident_bytes(there))
                time.sleep(0.05)
            assert most - before < MORE_BYTES
            with Command("send", f"tcp://127.0.0.1:{port}", *SEND) as here:
                code, report = here.end()
                assert (code, report["verified"]) == (0, True), here.errors + there.errors
        assert there.end()[0] == 0, there.errors
        assert "Traceback" not in there.errors


@pytest.mark.parametrize(("kind", "number"), [("zmtp", signal.SIGTERM), *((kind, signal.SIGINT) for kind in WORDS)])
def test_a_receiver_hears_its_user_beside_them(kind: str, number: signal.Signals) -> None:
    with receiving() as (there, port), strangers(kind, 64, port):
        there.process.send_signal(number)
        assert there.end()[0] == 130


def test_a_receiver_survives_without_descriptors_for_them() -> None:
    with receiving() as (there, port):
        process = psutil.Process(there.process.pid)
        process.rlimit(psutil.RLIMIT_NOFILE, (process.num_fds() + 5, process.rlimit(psutil.RLIMIT_NOFILE)[1]))
        with strangers("idle", 64, port):
            used, began = process.cpu_times(), time.monotonic()
            time.sleep(1.0)
            now = process.cpu_times()
            assert now.user + now.system - used.user - used.system < 0.8 * (time.monotonic() - began)
            assert there.process.poll() is None, there.errors
        process.rlimit(psutil.RLIMIT_NOFILE, (1024, process.rlimit(psutil.RLIMIT_NOFILE)[1]))
        with Command("send", f"tcp://127.0.0.1:{port}", *SEND) as here:
            assert here.end()[0] == 0, here.errors
        assert there.end()[0] == 0
        assert "Traceback" not in there.errors


@pytest.mark.parametrize(("kind", "count"), [("zmtp", 16), ("idle", 50), ("frames", 50), ("zmtp", 50)])
def test_a_migration_beside_them_completes_with_a_short_pause(kind: str, count: int) -> None:
    """On all of its four ports, from before the workers listen to the end: 64 and 200 of them."""
    first, last = free_ports(3)
    with receiving("--data-ports", f"{first}-{last}") as (there, port):
        family = psutil.Process(there.process.pid)
        with (
            strangers(kind, count, port, *range(first, last + 1)),
            Command("send", f"tcp://127.0.0.1:{port}", *SEND, "--max-bandwidth", "40MiB/s") as here,
        ):
            here.wait_for("active, round 1")
            most = max(one.memory_info().rss for one in [family, *family.children(recursive=True)])
            code, report = here.end()
            assert (code, report["verified"]) == (0, True), here.errors + there.errors
            # Whoever waited for a stranger would wait for seconds; the machine may be busy.
            assert report["downtime_ms"] - report["downtime_phases_ms"]["verify"] < 5000
        assert most < 400 * MIB
        assert there.end()[0] == 0, there.errors
        until(lambda: not family.is_running() or not family.children(), "the end of its workers")
