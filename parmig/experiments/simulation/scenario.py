# SPDX-License-Identifier: Apache-2.0
"""A scenario: hosts, guests, how they are moved, and how many at once. Pure data; nothing runs here.

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

Guests leave the first host for the second one unless they name others. Values are written as on the command line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec

from parmig.config import PATTERNS, SendConfig
from parmig.engine.prediction.costs import Costs, read_costs
from parmig.errors import UsageError
from parmig.experiments.toml_tables import parse_toml, read_table, read_text, value_of
from parmig.guests.synthetic.options import SHARE
from parmig.options import COUNT, DURATION, RATE, SIZE, TEXT, Option, Unit, nearest, option, options_of
from parmig.units import GIB, MIB

MAX_GUESTS = 10_000
MAX_NICS = 64
ORDERS = ("listed", "largest-first", "smallest-first")
SCATTERED, TOGETHER = LAYOUTS = ("scattered", "together")
MEMORY_KINDS = ("warm", "cold")

SEND_KEYS = (
    "workers",
    "compress",
    "batch",
    "max-bandwidth",
    "downtime-limit",
    "max-downtime",
    "timeout",
    "auto-converge",
    "throttle-initial",
    "throttle-increment",
    "throttle-max",
)
"""The options of ``parmig send`` that a scenario may give."""

Range = tuple[int, int]
"""Least and most."""


def _ranges(one: Unit) -> Unit:
    """How a range of values of the unit *one* is written; a single value is a range, too."""

    def read(text: str) -> Range:
        low, dots, high = text.partition("..")
        values = one.read(low), one.read(high if dots else low)
        if values[0] > values[1]:
            raise UsageError(f"{text!r} begins with the larger value; write the smaller one first")
        return values

    def write(value: Range) -> str:
        return one.write(value[0]) if value[0] == value[1] else f"{one.write(value[0])}..{one.write(value[1])}"

    return Unit(f"{one.metavar}[..{one.metavar}]", f"{one.noun}, or two with .. between them", read, write)


SIZES, RATES = _ranges(SIZE), _ranges(RATE)


class Nic(msgspec.Struct, frozen=True, kw_only=True):
    """Network devices of a host that are alike."""

    rate_bytes_per_s: Annotated[
        int, option("Rate in each direction, with the headers of Ethernet.", RATE, required=True, gt=0)
    ] = 0
    delay_ns: Annotated[int, option("From here to the device of the other host, one way.", DURATION, ge=0)] = 0
    mtu: Annotated[int, option("Largest packet, in bytes. More means fewer headers.", COUNT, ge=576, le=65536)] = 1500
    count: Annotated[int, option("How many there are.", COUNT, ge=1, le=MAX_NICS)] = 1


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """A host.

    Attributes:
        nics: one for each device.
    """

    name: Annotated[str, option("Its name.", TEXT, required=True)] = ""
    processors: Annotated[int, option("How many of them the migrations may use.", COUNT, required=True, ge=1)] = 1
    memory_rate_bytes_per_s: Annotated[
        int,
        option("How fast all processors together copy memory. Each page is copied once.", RATE, shown="no limit", ge=0),
    ] = 0
    lock_rate_bytes_per_s: Annotated[
        int,
        option(
            "How fast pages of one guest are placed here if only the lock of its memory holds them back.",
            RATE,
            shown="no limit",
            ge=0,
        ),
    ] = 0
    nics: tuple[Nic, ...] = ()


class Guests(msgspec.Struct, frozen=True, kw_only=True):
    """Guests that are alike."""

    name: Annotated[str, option("Name of a guest; with a number behind it if there are several.", shown="guest")] = (
        "guest"
    )
    count: Annotated[int, option("How many there are.", COUNT, ge=1, le=MAX_GUESTS)] = 1
    host: Annotated[str, option("Where they run.", shown="the first host")] = ""
    to: Annotated[str, option("Where they go.", shown="the first other host")] = ""
    memory_bytes: Annotated[
        Range, option("Memory of each. In a range, each guest has its own, small ones as often as large ones.", SIZES)
    ] = (4 * GIB, 4 * GIB)
    zero: Annotated[str, option("How much of it is zero, or was never touched.", SHARE)] = "0%"
    dirty_rate_bytes_per_s: Annotated[
        Range, option("How fast each writes, by the pages that it touches. A range as for memory.", RATES)
    ] = (0, 0)
    pattern: Annotated[str, option("Which pages it writes, as a [synthetic guest](cli.md) does.", choices=PATTERNS)] = (
        "random"
    )
    touched: Annotated[str, option("How much of the memory it writes.", SHARE)] = "100%"
    layout: Annotated[
        str,
        option(
            "Where these pages are: all over the memory, or together at its start, as in a synthetic guest.",
            choices=LAYOUTS,
        ),
    ] = SCATTERED
    trace: Annotated[
        str,
        option("A file of parmig trace that says what it writes, instead. Its path begins at the scenario.", shown="-"),
    ] = ""


class Moving(msgspec.Struct, frozen=True, kw_only=True):
    """How guests are moved, besides the options of ``parmig send``."""

    paths: Annotated[
        int, option("How many pairs of devices are used: the first of each host, and so on.", COUNT, shown="all", ge=0)
    ] = 0
    free_memory: Annotated[
        str,
        option(
            "What free memory of the destination is like. cold: a host below must provide it first.",
            choices=MEMORY_KINDS,
        ),
    ] = "warm"


class Evacuation(msgspec.Struct, frozen=True, kw_only=True):
    """In what order guests leave."""

    at_once: Annotated[int, option("How many guests of a host are moved at once.", COUNT, shown="all", ge=0)] = 0
    order: Annotated[str, option("Which of them first.", choices=ORDERS)] = ORDERS[0]


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """What is simulated.

    Attributes:
        send: the options of ``parmig send``, the same for all guests.
        loaded_costs: from the file that ``costs`` names, or the defaults.
        directory: where the paths of other files begin.
    """

    description: Annotated[str, option("What it is for; the picture shows it.", shown="none")] = ""
    seed: Annotated[int, option("Of what is drawn at random.", COUNT, ge=0)] = 1
    costs: Annotated[
        str,
        option(
            "A file that parmig simulate --calibrate has written. Its path begins at the scenario.",
            shown="those in prediction/costs.py",
        ),
    ] = ""
    hosts: tuple[Host, ...] = ()
    guests: tuple[Guests, ...] = ()
    send: SendConfig = msgspec.field(default_factory=lambda: SendConfig(workers=4))
    moving: Moving = Moving()
    evacuation: Evacuation = Evacuation()
    loaded_costs: Costs = msgspec.field(default_factory=Costs)
    directory: str = "."

    def host(self, name: str) -> Host:
        """The host *name*, which is one of the scenario."""
        return next(host for host in self.hosts if host.name == name)

    def ways(self, guests: Guests) -> tuple[Host, Host]:
        """The hosts between which *guests* are moved."""
        source = self.host(guests.host or self.hosts[0].name)
        others = [host for host in self.hosts if host is not source]
        return source, self.host(guests.to) if guests.to else others[0]

    def paths(self, guests: Guests) -> int:
        """How many paths a migration of *guests* uses."""
        source, destination = self.ways(guests)
        most = min(len(source.nics), len(destination.nics), self.send.workers)
        return min(self.moving.paths or most, most)


def migration_options() -> Mapping[str, Option]:
    """The keys of the table ``[migration]``."""
    sent = options_of(SendConfig)
    workers = {"workers": msgspec.structs.replace(sent["workers"], default=4)}
    return {**{key: sent[key] for key in SEND_KEYS}, **workers, **options_of(Moving)}


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
        file = directory / scenario.costs
        scenario = msgspec.structs.replace(scenario, loaded_costs=load_costs(file))
    scenario.loaded_costs.codec(scenario.send.compress)
    return scenario


def load_costs(path: Path) -> Costs:
    """The costs in the file at *path*.

    Raises:
        UsageError: it cannot be read, or has other keys or values.
    """
    return read_costs(read_text(path).encode(), str(path))


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
