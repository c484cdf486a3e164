# SPDX-License-Identifier: Apache-2.0
"""Reads scenarios.

A scenario is a TOML file::

    [[hosts]]
    name = "old"
    processors = 64
    nics = [{ rate = "100Gbit", count = 2 }]

    [[hosts]]
    name = "new"
    ...

    [[guests]]
    count = 20
    memory = "16GiB..64GiB"
    dirty-rate = "200MiB/s"

    [migration]
    workers = 8

    [evacuation]
    at-once = 2
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from parmig.config import SendConfig
from parmig.engine.predicting.costs_file import read_costs_file
from parmig.errors import UsageError
from parmig.experiments.simulation.scenario import (
    MAX_GUESTS,
    Evacuation,
    Guests,
    Host,
    Moving,
    Nic,
    Scenario,
    migration_options,
)
from parmig.experiments.toml_tables import parse_toml, read_table, read_text, value_of
from parmig.options import nearest, options_of
from parmig.units import MIB


def read_scenario(path: Path) -> Scenario:
    """The scenario in the file at *path*.

    Raises:
        UsageError: it cannot be read, or as :func:`parse_scenario`.
    """
    return parse_scenario(read_text(path), path.name, path.parent)


def parse_scenario(text: str, name: str, directory: Path = Path()) -> Scenario:
    """The scenario in *text*, the content of the TOML file *name* in *directory*.

    Raises:
        UsageError: it is no TOML, or has an unknown key or a value that is not allowed; the message names the key.
    """
    tables = parse_toml(text, name)
    hosts = _list(tables, "hosts", name, _host)
    guests = _list(tables, "guests", name, lambda table, where: read_table(table, Guests, where))
    moved = _table(tables, "migration", name)
    own = {key: moved.pop(key) for key in tuple(moved) if key in options_of(Moving)}
    where = f"[migration] of {name}"
    parts = {
        "hosts": hosts,
        "guests": guests,
        "send": _send(moved, where),
        "moving": read_table(own, Moving, where),
        "evacuation": read_table(_table(tables, "evacuation", name), Evacuation, f"[evacuation] of {name}"),
    }
    scenario = read_table(tables, Scenario, name, directory=str(directory), **parts)
    _check(scenario, name)
    if scenario.costs:
        costs = read_costs_file(str(directory / scenario.costs))
        scenario = msgspec.structs.replace(scenario, loaded_costs=costs)
    scenario.loaded_costs.codec(scenario.send.compress)
    return scenario


def _list(tables: dict[str, Any], key: str, name: str, read: Callable[[dict[str, Any], str], Any]) -> tuple[Any, ...]:
    """The tables ``[[key]]``, at least one."""
    given = tables.pop(key, [])
    if not isinstance(given, list) or not given or not all(isinstance(table, dict) for table in given):
        raise UsageError(f"{name} has no {key}; expected one or more tables, each of which begins with [[{key}]]")
    return tuple(read(table, f"[[{key}]] {number} of {name}") for number, table in enumerate(given, 1))


def _table(tables: dict[str, Any], key: str, name: str) -> dict[str, Any]:
    given = tables.pop(key, {})
    if not isinstance(given, dict):
        raise UsageError(f"{key!r} in {name} is a value; expected a table, which begins with [{key}]")
    return dict(given)


def _host(table: dict[str, Any], where: str) -> Host:
    nics = table.pop("nics", [])
    if not isinstance(nics, list) or not nics or not all(isinstance(nic, dict) for nic in nics):
        raise UsageError(f'{where} has no nics; expected a list such as nics = [{{ rate = "10Gbit", count = 2 }}]')
    alike = [read_table(nic, Nic, f"nics {number} of {where}") for number, nic in enumerate(nics, 1)]
    return read_table(table, Host, where, nics=tuple(nic for nic in alike for _ in range(nic.count)))


def _send(table: dict[str, Any], where: str) -> SendConfig:
    known = migration_options()
    for key in table:
        if key not in known:
            raise UsageError(f"unknown key {key!r} in {where}; {nearest(key, known)}")
    values = {known[key].field: value_of(known[key], value, f"{key!r} in {where}") for key, value in table.items()}
    try:
        config = SendConfig(**{"workers": 4, **values})
        config.check()
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
    return config


def _check(scenario: Scenario, name: str) -> None:
    names = [host.name for host in scenario.hosts]
    if len(set(names)) < len(names) or len(names) < 2:
        raise UsageError(f"{name} has the hosts {', '.join(names)}; expected two or more, each with a name of its own")
    for guests in scenario.guests:
        for key, host in (("host", guests.host), ("to", guests.to)):
            if host and host not in names:
                raise UsageError(f"{key!r} of guest {guests.name!r} in {name} is {host!r}; {nearest(host, names)}")
        source, destination = scenario.ways(guests)
        if source is destination:
            raise UsageError(f"guest {guests.name!r} in {name} goes from {source.name!r} to itself; give another 'to'")
        if guests.memory_bytes[0] < MIB:
            raise UsageError(f"'memory' of guest {guests.name!r} in {name} is below 1MiB; give at least that")
    if sum(guests.count for guests in scenario.guests) > MAX_GUESTS:
        raise UsageError(f"{name} has more than {MAX_GUESTS} guests; take some away")
