# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from parmig.errors import UsageError
from parmig.experiments.simulation.scenario_file import parse_scenario, read_scenario
from parmig.experiments.simulation.simulator import guests_of
from parmig.experiments.sweep import parse_sweep, plan_of
from parmig.units import GIB, MIB, NS_PER_MS

ROOT = Path(__file__).resolve().parents[3]
HOSTS = """
[[hosts]]
name = "old"
processors = 8
nics = [{ rate = "10Gbit", count = 2 }, { rate = "1Gbit", delay = "2ms", mtu = 9000 }]
[[hosts]]
name = "new"
processors = 16
memory-rate = "20GiB/s"
nics = [{ rate = "10Gbit", count = 3 }]
"""
GUESTS = """
[[guests]]
memory = "1GiB..4GiB"
count = 3
dirty-rate = "10MiB/s"
"""


def test_values_are_read_with_their_units() -> None:
    scenario = parse_scenario(
        f'seed = 7\n{HOSTS}{GUESTS}[migration]\nworkers = 6\ndowntime-limit = "50ms"\n[evacuation]\nat-once = 2\n', "x"
    )
    old, new = scenario.hosts
    assert [nic.rate_bytes_per_s for nic in old.nics] == [1_250_000_000, 1_250_000_000, 125_000_000]
    assert (old.nics[2].delay_ns, old.nics[2].mtu, new.memory_rate_bytes_per_s) == (2 * NS_PER_MS, 9000, 20 * GIB)
    (guests,) = scenario.guests
    assert (guests.memory_bytes, guests.dirty_rate_bytes_per_s) == ((GIB, 4 * GIB), (10 * MIB, 10 * MIB))
    assert (scenario.send.workers, scenario.send.downtime_limit_ns) == (6, 50 * NS_PER_MS)
    assert scenario.ways(guests) == (old, new)
    assert scenario.paths(guests) == 3


def test_the_same_seed_draws_the_same_guests() -> None:
    def drawn(seed: int) -> list[int]:
        return [guest.memory_bytes for guest in guests_of(parse_scenario(f"seed = {seed}\n{HOSTS}{GUESTS}", "x"))]

    assert drawn(1) == drawn(1) != drawn(2)
    assert all(GIB <= memory <= 4 * GIB for memory in drawn(1))
    sorted_ = parse_scenario(f'{HOSTS}{GUESTS}[evacuation]\norder = "largest-first"\n', "x")
    assert [guest.memory_bytes for guest in guests_of(sorted_)] == sorted(drawn(1), reverse=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "x has no hosts; expected one or more tables, each of which begins with [[hosts]]"),
        (HOSTS, "x has no guests; expected one"),
        ("[[hosts]]\nname = 'a'\nprocessors = 1\n[[guests]]\n", "[[hosts]] 1 of x has no nics"),
        (
            "[[hosts]]\nname = 'a'\nprocessors = 1\nnics = [{ mtu = 1500 }]\n",
            "nics 1 of [[hosts]] 1 of x has no 'rate'",
        ),
        (
            HOSTS.replace("processors = 16", ""),
            "[[hosts]] 2 of x has no 'processors'; expected a number of at least 1",
        ),
        (HOSTS.replace('"new"', '"old"') + GUESTS, "x has the hosts old, old; expected two or more"),
        (f"{HOSTS}{GUESTS}dirty = 1\n", "unknown key 'dirty' in [[guests]] 1 of x; "),
        (f'{HOSTS}{GUESTS}touched = "200%"\n', "'touched' in [[guests]] 1 of x: '200%' is more than all"),
        (f'{HOSTS}{GUESTS}to = "now"\n', "'to' of guest 'guest' in x is 'now'; did you mean 'new'?"),
        (f'{HOSTS}{GUESTS}to = "old"\n', "guest 'guest' in x goes from 'old' to itself"),
        (HOSTS + GUESTS.replace("1GiB..4GiB", "4GiB..1GiB"), "begins with the larger value"),
        (
            f"{HOSTS}{GUESTS}[migration]\nworker = 1\n",
            "unknown key 'worker' in [migration] of x; did you mean 'workers'?",
        ),
        (f"{HOSTS}{GUESTS}[migration]\nworkers = 0\n", "'workers' in [migration] of x: 0 is not allowed; expected"),
        (f'{HOSTS}{GUESTS}[migration]\ncompress = "auto"\n', "the costs of codec 'auto' are not known"),
        (f"{HOSTS}{GUESTS}[evacuation]\nat-once = -1\n", "'at-once' in [evacuation] of x: '-1' is not a whole number"),
        (f"migration = 1\n{HOSTS}{GUESTS}", "'migration' in x is a value; expected a table"),
        ("hosts = ", "x is not a TOML file"),
        (f'costs = "none.toml"\n{HOSTS}{GUESTS}', "cannot read none.toml"),
    ],
)
def test_a_mistake_is_named(text: str, message: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_scenario(text, "x")
    assert message in str(raised.value)


def test_the_examples_are_a_scenario_and_sweeps() -> None:
    examples = ROOT / "docs/examples"
    assert read_scenario(examples / "evacuation-12TiB.toml").guests
    for name in ("calibration", "validation-outrun", "validation-converging"):
        assert plan_of(parse_sweep((examples / f"{name}.toml").read_text(), name)).runs
