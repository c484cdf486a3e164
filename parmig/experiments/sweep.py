# SPDX-License-Identifier: Apache-2.0
"""A sweep: factors with their values, and the runs that follow from them. Pure data; nothing is started here.

A sweep is a TOML file::

    description = "How far do workers help?"
    repeats = 3

    [factors]
    workers = [1, 2, 4]
    memory = ["256MiB", "1GiB"]

Keys at the top are fields of :class:`Sweep`; those of ``[factors]`` are fields of :class:`.Factors`. Values are written
as on the command line of ``parmig send``.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec

from parmig.errors import UsageError
from parmig.experiments.factors import Factors, impossible, normalised, varied
from parmig.experiments.toml_tables import parse_toml, read_text, value_of
from parmig.options import COUNT, DURATION, Option, nearest, option, options_of
from parmig.units import NS_PER_S

CLUSTER = "cluster"
HOSTS = ("lab", "loopback", CLUSTER)
FACTORS = "factors"

MAX_RUNS = 100_000
"""More is a mistake in the file: at a second each, these take more than a day."""


class Sweep(msgspec.Struct, frozen=True, kw_only=True):
    """An experiment.

    Attributes:
        factors: field of :class:`.Factors` to its values, each at most once; all others have their default.
    """

    description: Annotated[str, option("What it is for; the page shows it.", shown="none")] = ""
    hosts: Annotated[
        str,
        option(
            "Where the runs happen. lab: two network namespaces of this machine, joined by links; needs root. "
            "loopback: the loopback device. cluster: the workers of a Dask cluster; --cluster names it.",
            choices=HOSTS,
        ),
    ] = "lab"
    repeats: Annotated[int, option("How often each combination is run.", COUNT, ge=1, le=1000)] = 3
    warm_up: Annotated[int, option("Runs before all others that do not count.", COUNT, ge=0, le=1000)] = 1
    sample: Annotated[
        int, option("Take only so many combinations, drawn at random.", COUNT, shown="all", ge=0, le=MAX_RUNS)
    ] = 0
    seed: Annotated[int, option("Of the order of the runs, and of the sample.", COUNT, ge=0)] = 1
    run_limit_ns: Annotated[int, option("A run that takes longer has failed.", DURATION, gt=0)] = 120 * NS_PER_S
    factors: dict[str, tuple[Any, ...]] = {}


class Run(msgspec.Struct, frozen=True):
    """One run of a sweep.

    Attributes:
        repeat: from 1 on; 0: a warm-up.
        number: place among the runs with the same repeat.
    """

    repeat: int
    number: int
    factors: Factors

    @property
    def key(self) -> str:
        """What the run is known by in the results of its sweep."""
        return f"{self.repeat}-{self.number}"


class Plan(msgspec.Struct, frozen=True):
    """The runs of a sweep, in their order.

    Attributes:
        combinations: of factors, each run as often as the sweep says.
        varied: the fields of :class:`.Factors` in which they differ.
        left_out: why combinations cannot be run, with their number.
    """

    runs: tuple[Run, ...]
    combinations: tuple[Factors, ...]
    varied: tuple[str, ...]
    left_out: Mapping[str, int]


def parse_sweep(text: str, name: str) -> Sweep:
    """The sweep in *text*.

    Args:
        text: of a TOML file.
        name: of the file, for messages.

    Raises:
        UsageError: it is no TOML, or has an unknown key or a value that is not allowed; the message names the key.
    """
    table = parse_toml(text, name)
    factors = table.pop(FACTORS, {})
    if not isinstance(factors, dict):
        raise UsageError(f"{FACTORS!r} in {name} is a value; expected a table, which begins with [{FACTORS}]")
    known = options_of(Sweep)
    values = {
        known[key].field: value_of(known[key], value, f"{key!r} in {name}")
        for key, value in _checked(table, known, name)
    }
    known = options_of(Factors)
    lists = {}
    for key, value in _checked(factors, known, f"[{FACTORS}] of {name}"):
        where = f"factor {key!r} in {name}"
        given = value if isinstance(value, list) else [value]
        levels = tuple(value_of(known[key], level, where) for level in given)
        if not levels or len(set(levels)) < len(levels):
            raise UsageError(f"{where} is {value!r}; expected one or more values, each once")
        lists[known[key].field] = levels
    sweep = Sweep(**values, factors=lists)
    _check(sweep, name)
    return sweep


def read_sweep(path: Path) -> str:
    """The text of the file at *path*.

    Raises:
        UsageError: the file cannot be read.
    """
    return read_text(path)


def text_for_cluster(text: str, name: str) -> str:
    """*text* of a sweep with ``hosts = "cluster"``, which it may leave out.

    Raises:
        UsageError: it has other hosts; or as :func:`parse_sweep`.
    """
    if parse_sweep(text, name).hosts == CLUSTER:
        return text
    if "hosts" in parse_toml(text, name):
        raise UsageError(f"{name} has other hosts than {CLUSTER!r}; leave out the key 'hosts', or --cluster")
    return f'hosts = "{CLUSTER}"\n{text}'


def _checked(table: Mapping[str, Any], known: Mapping[str, Option], where: str) -> list[tuple[str, Any]]:
    """The items of *table*, whose keys are all known."""
    for key in table:
        if key not in known:
            inside = options_of(Factors) if known is options_of(Sweep) and key in options_of(Factors) else None
            hint = f"it is a factor: write it below [{FACTORS}]" if inside else nearest(key, known)
            raise UsageError(f"unknown key {key!r} in {where}; {hint}")
    return list(table.items())


def _check(sweep: Sweep, name: str) -> None:
    of_links = [key for key in ("link_rate_bytes_per_s", "link_delay_ns") if any(sweep.factors.get(key, ()))]
    if sweep.hosts != "lab" and of_links:
        written = next(key for key, one in options_of(Factors).items() if one.field == of_links[0])
        raise UsageError(f'{written!r} in {name} needs links; write hosts = "lab", or leave it out')
    size = sweep.repeats
    for levels in sweep.factors.values():
        size *= len(levels)
    if size > MAX_RUNS and not sweep.sample:
        raise UsageError(f"{name} asks for {size} runs, more than {MAX_RUNS}; give fewer values, or a sample")


def plan_of(sweep: Sweep) -> Plan:
    """The runs of *sweep*. The same sweep has the same runs in the same order; more repeats only add to the end.

    Each repeat runs all combinations in an order of its own, so that a change of the machine's load hits all alike.

    Raises:
        UsageError: none of the combinations can be run.
    """
    left_out: Counter[str] = Counter()
    possible: dict[Factors, None] = {}
    for levels in itertools.product(*sweep.factors.values()):
        factors = normalised(Factors(**dict(zip(sweep.factors, levels, strict=True))))
        if reason := impossible(factors):
            left_out[reason] += 1
        else:
            possible[factors] = None
    if not possible:
        raise UsageError(f"no combination of the factors can be run: {', '.join(left_out)}")
    combinations = list(possible)
    if 0 < sweep.sample < len(combinations):
        drawn = random.Random(f"{sweep.seed} sample").sample(range(len(combinations)), sweep.sample)
        combinations = [combinations[place] for place in sorted(drawn)]
    first = _shuffled(combinations, sweep.seed, 1)
    runs = [
        Run(0, number, factors)
        for number, factors in enumerate(itertools.islice(itertools.cycle(first), sweep.warm_up), 1)
    ]
    for repeat in range(1, sweep.repeats + 1):
        runs += [
            Run(repeat, number, factors)
            for number, factors in enumerate(_shuffled(combinations, sweep.seed, repeat), 1)
        ]
    return Plan(tuple(runs), tuple(combinations), varied(combinations), left_out)


def _shuffled(combinations: list[Factors], seed: int, repeat: int) -> list[Factors]:
    order = list(combinations)
    random.Random(f"{seed} {repeat}").shuffle(order)
    return order
