# SPDX-License-Identifier: Apache-2.0
"""Whole simulations: small ones by hand, what always holds, and the command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from parmig.cli.app import app
from parmig.config import SendConfig
from parmig.engine.prediction.costs import Costs
from parmig.experiments.simulation.results import FENCES, SCANS, SETUP
from parmig.experiments.simulation.scenario import Evacuation, Guests, Host, Nic, Scenario
from parmig.experiments.simulation.simulator import simulate
from parmig.ram.traces.trace import Trace
from parmig.ram.traces.trace_file import write_trace
from parmig.units import GIB, MIB, NS_PER_MS, NS_PER_S

ROOT = Path(__file__).resolve().parents[3]

FREE = Costs(
    setup_s=0.0,
    setup_worker_s=0.0,
    round_s=0.0,
    count_s=0.0,
    scan_s_per_gib=0.0,
    pause_s=0.0,
    end_s=0.0,
    end_worker_s=0.0,
)
"""Nothing costs time but pages, of which a worker places a GiB in 1.05 s."""

GIGABIT = Nic(rate_bytes_per_s=125_000_000)
PAYLOAD = 125_000_000 * 1448 / 1538


def scenario(
    *guests: Guests,
    costs: Costs = FREE,
    nics: int = 1,
    nic: Nic = GIGABIT,
    processors: int = 8,
    at_once: int = 0,
    **send: int,
) -> Scenario:
    hosts = tuple(Host(name=name, processors=processors, nics=(nic,) * nics) for name in ("old", "new"))
    config = SendConfig(**{"workers": 1, **send})
    evacuation = Evacuation(at_once=at_once)
    return Scenario(hosts=hosts, guests=guests, send=config, loaded_costs=costs, evacuation=evacuation)


def guests(memory_bytes: int = GIB, rate_bytes_per_s: int = 0, **more: object) -> Guests:
    sizes = {"memory_bytes": (memory_bytes,) * 2, "dirty_rate_bytes_per_s": (rate_bytes_per_s,) * 2}
    return msgspec.structs.replace(Guests(), **sizes, **more)


def total_s(given_: Scenario) -> float:
    return simulate(given_)[0].total_s


def test_an_idle_guest_takes_its_memory_over_the_rate() -> None:
    result, _ = simulate(scenario(guests()))
    (guest,) = result.guests
    assert result.total_s == guest.total_s == pytest.approx(GIB / PAYLOAD, rel=1e-6)
    assert (guest.sent_bytes, guest.wire_bytes, guest.error) == (GIB, GIB, None)
    assert guest.downtime_s == pytest.approx(0, abs=1e-9)
    assert [each.dirty_pages for each in guest.rounds] == [GIB // 4096, 0, 0]
    assert (result.bottleneck, result.moved, result.failed) == ("NICs of old, out", 1, 0)
    use = {each.name: each.mean for each in result.use}
    assert use["old: NIC 0 out"] == pytest.approx(1.0, rel=1e-4)
    assert use["new: processors"] == pytest.approx(1.05 * PAYLOAD / GIB / 8, rel=1e-3)


def test_fixed_costs_are_added_and_named() -> None:
    costs = msgspec.structs.replace(
        FREE, setup_s=1.0, setup_worker_s=0.5, round_s=0.25, count_s=0.1, pause_s=2.0, end_s=3.0
    )
    (guest,) = simulate(scenario(guests(), costs=costs))[0].guests
    assert guest.setup_s == 1.5
    assert guest.downtime_s == pytest.approx(2.0)
    assert guest.total_s == pytest.approx(1.5 + GIB / PAYLOAD + 0.25 + 0.1 + 2.0 + 3.0, rel=1e-4)
    assert guest.limited_s[SETUP] == pytest.approx(4.5)
    assert guest.limited_s[FENCES] == pytest.approx(2.35, abs=0.01)
    assert guest.limited_s[SCANS] == 0


def test_rounds_shrink_by_what_is_written_meanwhile() -> None:
    rate = 20 * MIB
    (guest,) = simulate(scenario(guests(rate_bytes_per_s=rate, pattern="sequential")))[0].guests
    first, second, third, *_ = (each.dirty_pages * 4096 for each in guest.rounds)
    # A region is scanned at the same part of each round, so half of both rounds lie between two scans of a page.
    assert second == pytest.approx((first + second) / 2 * rate / PAYLOAD, rel=0.08)
    assert third == pytest.approx((second + third) / 2 * rate / PAYLOAD, rel=0.2)
    assert guest.sent_bytes == sum(each.sent_pages for each in guest.rounds) * 4096


def test_a_guest_that_outruns_the_link_fails_as_a_real_one_unless_it_is_slowed_down() -> None:
    fast = guests(rate_bytes_per_s=400 * MIB)
    result, _ = simulate(scenario(fast, guests(name="idle")))
    writer, idle = result.guests
    assert writer.error is not None
    assert writer.error.startswith("the guest dirties memory as fast as it can be sent")
    assert (writer.downtime_s, idle.error, result.failed) == (None, None, 1)
    (slowed,) = simulate(scenario(fast, auto_converge=True))[0].guests
    assert slowed.error is None
    assert slowed.max_throttle_percent > 20


def test_a_guest_that_takes_too_long_fails_in_the_middle_of_a_round() -> None:
    result, _ = simulate(scenario(guests(), guests(), timeout_ns=3 * NS_PER_S, at_once=1))
    first, second = result.guests
    assert first.error is not None
    assert first.error.startswith("not ready to pause after 3000.0 ms and 0 rounds")
    # What is under way at its end is sent: what a channel holds.
    assert 3 < first.ended_s < 5
    assert second.began_s == first.ended_s
    assert (result.failed, first.downtime_s) == (2, None)


@pytest.mark.parametrize(
    ("given_", "bottleneck", "rate_bytes_per_s"),
    [
        (
            scenario(guests(), nic=Nic(rate_bytes_per_s=10**11), workers=2),
            "one processor of new a worker",
            2 * GIB / 1.05,
        ),
        (
            scenario(guests(), nic=Nic(rate_bytes_per_s=10**11), workers=8, processors=3),
            "processors of new",
            3 * GIB / 1.05,
        ),
        (scenario(guests(), max_bandwidth_bytes_per_s=50 * MIB), "max-bandwidth", 50 * MIB),
        (
            scenario(guests(), nic=Nic(rate_bytes_per_s=10**10, delay_ns=100 * NS_PER_MS)),
            "credit of a channel",
            120.5 * MIB,
        ),
    ],
)
def test_the_bottleneck_is_named(given_: Scenario, bottleneck: str, rate_bytes_per_s: float) -> None:
    result, _ = simulate(given_)
    assert result.bottleneck == bottleneck
    assert result.advice
    assert result.total_s == pytest.approx(GIB / rate_bytes_per_s, rel=0.01)


def test_guests_leave_as_many_at_once_as_allowed() -> None:
    some = guests(256 * MIB, count=4)
    began = [
        sorted(round(guest.began_s, 1) for guest in simulate(scenario(some, at_once=at_once))[0].guests)
        for at_once in (0, 1, 2)
    ]
    each_s = 256 * MIB / PAYLOAD
    assert began[0] == [0.0] * 4
    assert began[1] == pytest.approx([0.0, each_s, 2 * each_s, 3 * each_s], abs=0.1)
    assert began[2] == pytest.approx([0.0, 0.0, 2 * each_s, 2 * each_s], abs=0.1)


moved = st.builds(
    lambda memory, rate, zero, pattern: guests(memory * MIB, rate * MIB, zero=f"{zero}%", pattern=pattern),
    st.integers(8, 600),
    st.integers(0, 60),
    st.integers(0, 100),
    st.sampled_from(["random", "hot", "sequential", "burst"]),
)


@settings(max_examples=25, deadline=None)
@given(st.lists(moved, min_size=1, max_size=3), st.integers(1, 4), st.integers(1, 3))
def test_what_always_holds(some: list[Guests], workers: int, at_once: int) -> None:
    given_ = scenario(*some, costs=Costs(), nics=2, workers=workers, at_once=at_once)
    result, timeline = simulate(given_)
    for guest in result.guests:
        # Bytes: each page of the first round once, and what the rounds say after it. Each worker rounds both counts.
        first = guest.rounds[0]
        rounded = (workers + 1) * 4096
        assert (first.sent_pages + first.zero_pages) * 4096 == pytest.approx(guest.memory_bytes, abs=rounded)
        assert guest.wire_bytes == pytest.approx(guest.sent_bytes, abs=8 * 4096 * len(guest.rounds))
        assert sum(guest.limited_s.values()) == pytest.approx(guest.total_s, rel=1e-6)
    # What the guests sent is what went through the devices.
    sent = sum(each.mean for each in result.use if " out" in each.name) * result.total_s * PAYLOAD
    assert sent == pytest.approx(sum(guest.wire_bytes for guest in result.guests), rel=1e-3, abs=MIB)
    assert all(0 <= used <= 1 for sample in timeline.samples for used in sample.used.values())
    assert simulate(given_)[0] == result


@settings(max_examples=15, deadline=None)
@given(moved, st.integers(2, 4))
def test_more_links_are_never_slower(guest: Guests, workers: int) -> None:
    one, two = (total_s(scenario(guest, costs=Costs(), nics=nics, workers=workers)) for nics in (1, 2))
    assert two <= one * 1.01 + 0.05


def test_a_trace_says_what_is_written(tmp_path: Path) -> None:
    interval_pages = [np.arange(number * 500, number * 500 + 500) for number in range(4)]
    with (tmp_path / "x.trace").open("wb") as file:
        write_trace(file, Trace(interval_ns=100 * NS_PER_MS, memory_pages=8192, written=interval_pages))
    traced = guests(32 * MIB, trace="x.trace")
    (guest,) = simulate(msgspec.structs.replace(scenario(traced), directory=str(tmp_path)))[0].guests
    # The first round takes 0.285 s, in which three intervals have begun.
    assert 1300 < guest.rounds[1].dirty_pages < 1500
    assert guest.error is None


SCENARIO = """
description = "Twenty-five guests"
[[hosts]]
name = "old"
processors = 4
nics = [{ rate = "1Gbit" }]
[[hosts]]
name = "new"
processors = 4
nics = [{ rate = "1Gbit" }]
[[guests]]
count = 25
memory = "16MiB..64MiB"
"""


def test_the_command_prints_draws_and_writes_json(tmp_path: Path) -> None:
    file, picture = tmp_path / "x.toml", tmp_path / "x.png"
    file.write_text(SCENARIO)
    pytest.importorskip("matplotlib")
    argv = [sys.executable, "-m", "parmig", "simulate", file.name, "--picture", picture.name, "--seed", "3"]
    # In a process of its own: matplotlib keeps the files of its fonts open.
    run = subprocess.run(
        argv, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert "25 guests moved in" in run.stdout
    assert "the 20 slowest:" in run.stdout
    assert "bottleneck: " in run.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")
    costs = tmp_path / "costs.toml"
    costs.write_bytes(msgspec.structs.replace(Costs(), setup_s=100.0).encode())
    simulated = CliRunner().invoke(app, ["simulate", str(file), "--json", "--costs", str(costs)])
    decoded = json.loads(simulated.stdout)
    assert decoded["total_s"] > 100
    assert (decoded["bottleneck"], len(decoded["guests"])) == (SETUP, 25)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.toml"], "cannot read none.toml"),
        (["x.toml", "--costs", "none.toml"], "cannot read none.toml"),
        (["costs.toml", "--calibrate", "none"], "none has no results"),
    ],
)
def test_the_command_names_a_mistake(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.toml").write_text(SCENARIO)
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke(app, ["simulate", *arguments])
    assert run.exit_code == 2
    assert message in run.stderr
