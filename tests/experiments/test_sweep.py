# SPDX-License-Identifier: Apache-2.0
"""Sweeps as data: what a file says, and which runs follow."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parmig.config import PATTERNS
from parmig.errors import UsageError
from parmig.experiments.factors import FREE_MEMORY, GUESTS, PEERS, Factors, impossible, normalised, written
from parmig.experiments.sweep import Sweep, parse_sweep, plan_of
from parmig.units import MIB
from tools.make_golden_trace import FILE

LEVELS = {
    "peer": PEERS,
    "guest": GUESTS,
    "workers": (1, 2, 4),
    "paths": (1, 2, 4),
    "memory_bytes": (16 * MIB, 64 * MIB),
    "pattern": PATTERNS,
    "link_rate_bytes_per_s": (0, 10 * MIB),
    "auto_converge": (False, True),
    "free_memory": FREE_MEMORY,
}


def values_of(name: str) -> st.SearchStrategy[tuple[object, ...]]:
    return st.lists(st.sampled_from(LEVELS[name]), min_size=1, max_size=3, unique=True).map(tuple)


factor_lists = st.lists(st.sampled_from(list(LEVELS)), unique=True, max_size=4).flatmap(
    lambda names: st.fixed_dictionaries({name: values_of(name) for name in names})
)
sweeps = st.builds(
    Sweep,
    factors=factor_lists,
    repeats=st.integers(1, 3),
    warm_up=st.integers(0, 4),
    sample=st.integers(0, 9),
    seed=st.integers(0, 5),
)


@given(sweeps)
def test_each_combination_runs_as_often_as_asked_and_no_two_are_the_same(sweep: Sweep) -> None:
    try:
        plan = plan_of(sweep)
    except UsageError:
        return
    assert len({run.key for run in plan.runs}) == len(plan.runs)
    assert len(set(plan.combinations)) == len(plan.combinations)
    for repeat in range(1, sweep.repeats + 1):
        repeated = [run.factors for run in plan.runs if run.repeat == repeat]
        assert len(repeated) == len(plan.combinations)
        assert set(repeated) == set(plan.combinations)
    assert [run.repeat for run in plan.runs] == sorted(run.repeat for run in plan.runs)
    assert sum(run.repeat == 0 for run in plan.runs) == sweep.warm_up
    for factors in plan.combinations:
        assert impossible(factors) == ""
        assert normalised(factors) == factors
        for name, levels in sweep.factors.items():
            if name != "guest":
                assert getattr(factors, name) in (*levels, getattr(Factors(), name))
        assert len(written(factors, plan.varied)) == len(plan.varied)


@given(sweeps, st.integers(1, 3))
def test_more_repeats_only_add_runs(sweep: Sweep, more: int) -> None:
    try:
        plan = plan_of(sweep)
    except UsageError:
        return
    longer = plan_of(msgspec.structs.replace(sweep, repeats=sweep.repeats + more))
    assert longer.runs[: len(plan.runs)] == plan.runs == plan_of(sweep).runs


@given(sweeps)
def test_a_sample_is_a_part_of_the_grid(sweep: Sweep) -> None:
    try:
        whole = plan_of(msgspec.structs.replace(sweep, sample=0))
    except UsageError:
        return
    drawn = plan_of(sweep).combinations
    assert set(drawn) <= set(whole.combinations)
    assert len(drawn) == min(sweep.sample or len(whole.combinations), len(whole.combinations))


def test_a_file_gives_values_as_on_the_command_line() -> None:
    text = """
        description = "workers"
        run-limit = "30s"
        [factors]
        workers = [1, 2]
        memory = "64MiB"
        link-rate = ["1Gbit", "10Gbit/s"]
        auto-converge = [true, false]
    """
    sweep = parse_sweep(text, "x.toml")
    assert sweep.run_limit_ns == 30 * 10**9
    assert sweep.factors == {
        "workers": (1, 2),
        "memory_bytes": (64 * MIB,),
        "link_rate_bytes_per_s": (125_000_000, 1_250_000_000),
        "auto_converge": (True, False),
    }


def test_a_grid_over_peers_runs_each_peer_only_with_what_it_depends_on() -> None:
    text = '[factors]\npeer = ["parmig", "qemu-precopy", "iperf3"]\nworkers = [1, 2, 4]\npattern = ["random", "hot"]'
    peers = [factors.peer for factors in plan_of(parse_sweep(text, "x.toml")).combinations]
    assert {peer: peers.count(peer) for peer in PEERS} == {
        "parmig": 6,
        "qemu-precopy": 1,
        "qemu-multifd": 0,
        "iperf3": 3,
        "bare": 0,
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("repeat = 2", "unknown key 'repeat' in x.toml; did you mean 'repeats'?"),
        ("workers = 2", r"write it below \[factors\]"),
        ("repeats = 0", "'repeats' in x.toml: 0 is not allowed; expected a number from 1 to 1000"),
        ("hosts = 'moon'", "'hosts' in x.toml: 'moon' is unknown; expected one of lab, loopback"),
        ("[factors]\nworker = 1", "did you mean 'workers'"),
        ("[factors]\nmemory = [1.5]", "factor 'memory' in x.toml is 1.5; expected a size"),
        ("[factors]\nmemory = ['1x']", "'1x' is not a size"),
        ("[factors]\nworkers = [1, 1]", "each once"),
        ("[factors]\nworkers = []", "one or more values"),
        ("[factors]\nauto-converge = 1", "expected true or false"),
        ("hosts = 'loopback'\n[factors]\nlink-rate = '1Gbit'", "needs links"),
        ("factors = 1", "expected a table"),
        ("[factors", "not a TOML file"),
        ("[factors]\nworkers = 1\npaths = 2", "fewer workers than paths"),
        ("repeats = 1000\n[factors]\nworkers = [1,2,3,4,5,6,7,8,9,10]\nseed = 1", "'seed'"),
    ],
)
def test_a_mistake_is_named(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        plan_of(parse_sweep(text, "x.toml"))


def test_a_trace_takes_the_place_of_what_a_synthetic_guest_writes() -> None:
    sweep = parse_sweep(
        f'[factors]\ntrace = "{FILE}"\npattern = ["random", "hot"]\nguest = ["synthetic", "kvm"]', "traces.toml"
    )
    combinations = plan_of(sweep).combinations
    assert {(one.guest, one.pattern, one.trace) for one in combinations} == {
        ("synthetic", "random", str(FILE)),
        ("kvm", "random", ""),
    }
