# SPDX-License-Identifier: Apache-2.0
"""Workers die or are stopped under a running migration, and others take their places."""

from __future__ import annotations

import os
import signal

import pytest

from parmig.config import SendConfig
from parmig.engine.plan.plan import MAX_DEATHS
from parmig.units import MIB, NS_PER_S
from tests.integration.sides import Discard, Migration, guests, kill, never_ran, runs_on, until
from tests.integration.test_outages import all_arrived, outages

SLOW = {"max_bandwidth_bytes_per_s": 40 * MIB, "switchover": "manual"}
"""Runs until the test lets it pause; so what it does happens while the guest runs."""
GUEST = "memory=64MiB,rate=10MiB/s"

both_transports = pytest.mark.parametrize("transport", ["tcp", "zmq"])


@both_transports
@pytest.mark.parametrize("end", ["killed", "stopped"])
def test_a_receive_worker_is_replaced_and_its_channel_goes_on(transport: str, end: str) -> None:
    config = SendConfig(workers=2, verify=True, transport=transport, **SLOW)
    with guests(GUEST) as (source, destination), Migration(source, destination, config) as at:
        at.at_round(1)
        victim = at.receive_workers()[1]
        if end == "killed":
            kill(victim)
        else:
            os.kill(victim, signal.SIGSTOP)
        until(lambda: at.receive_workers()[1] != victim, "another worker")
        at.switch_over("worker 1")
        sent, received = at.sent(), at.received()
        all_arrived(sent, received)
        outages(sent, "worker 1")
        outages(received, "worker 1")


@both_transports
@pytest.mark.parametrize("end", ["killed", "stopped"])
@pytest.mark.parametrize("number", [1, 2])
def test_a_send_worker_is_replaced_and_its_regions_are_sent_again(transport: str, end: str, number: int) -> None:
    guest = "memory=64MiB,rate=60MiB/s"  # several rounds
    config = SendConfig(workers=2, verify=True, transport=transport, **SLOW)
    with guests(guest) as (source, destination), Migration(source, destination, config) as at:
        at.at_round(number)
        victim = at.send_workers()[1]
        if end == "killed":
            kill(victim)
        else:
            os.kill(victim, signal.SIGSTOP)
        until(lambda: at.send_workers()[1] != victim, "another worker")
        at.switch_over("worker 1")
        sent, received = at.sent(), at.received()
        assert (sent.status, sent.error, sent.verified) == ("completed", None, True)
        assert received.status == "completed"
        outages(sent, "worker 1")
        destination.pause(Discard())
        destination.check()


@pytest.mark.parametrize("compress", ["delta", "zstd"])
def test_a_send_worker_that_remembers_what_it_sent_is_replaced(compress: str) -> None:
    config = SendConfig(workers=2, verify=True, compress=compress, **SLOW)
    with guests(GUEST) as (source, destination), Migration(source, destination, config) as at:
        at.at_round(1)
        victim = at.send_workers()[0]
        kill(victim)
        until(lambda: at.send_workers()[0] != victim, "another worker")
        at.switch_over("worker 0")
        sent = at.sent()
        assert (sent.status, sent.error, sent.verified) == ("completed", None, True)


def test_the_only_send_worker_is_replaced() -> None:
    config = SendConfig(workers=1, verify=True, **SLOW)
    with guests(GUEST) as (source, destination), Migration(source, destination, config) as at:
        at.at_round(1)
        victim = at.send_workers()[0]
        kill(victim)
        at.switch_over("worker 0")
        sent = at.sent()
        assert (sent.status, sent.error, sent.verified) == ("completed", None, True)


@pytest.mark.parametrize("step", ["pause", "save_state"])
def test_a_receive_worker_is_replaced_in_the_pause(step: str) -> None:
    config = SendConfig(workers=2, verify=True)
    with guests(GUEST, hold_source=[step]) as (source, destination), Migration(source, destination, config) as at:
        source.gates[step].wait()
        victim = at.receive_workers()[0]
        kill(victim)
        until(lambda: at.receive_workers()[0] != victim, "another worker")
        source.open_gates()
        all_arrived(at.sent(), at.received())


@pytest.mark.parametrize("step", ["pause", "save_state"])
def test_a_send_worker_that_dies_in_the_pause_is_not_replaced_and_the_guest_runs_on(step: str) -> None:
    config = SendConfig(workers=2)
    with guests(GUEST, hold_source=[step]) as (source, destination), Migration(source, destination, config) as at:
        source.gates[step].wait()
        kill(at.send_workers()[0])
        source.open_gates()
        report = at.sent()
        assert (report.status, report.error and report.error.type) == ("failed", "WorkerError")
        assert report.source_guest == "running"
        runs_on(source)
        assert at.received().status == "failed"
        never_ran(destination)


def test_too_many_deaths_end_the_migration_and_the_guest_runs_on() -> None:
    config = SendConfig(workers=1, max_bandwidth_bytes_per_s=4 * MIB, timeout_ns=60 * NS_PER_S)
    with guests(GUEST) as (source, destination), Migration(source, destination, config) as at:
        at.at_round(1)
        for _ in range(MAX_DEATHS):
            victim = at.receive_workers()[0]
            kill(victim)
            until(lambda victim=victim: at.receive_workers()[0] != victim, "another worker")
        kill(at.receive_workers()[0])
        report = at.received()
        assert report.error is not None
        assert report.error.type == "WorkerError"
        assert at.sent().error is not None
        assert source.is_running()
