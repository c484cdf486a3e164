# SPDX-License-Identifier: Apache-2.0
"""A scenario: hosts, guests, how they are moved, and how many at once. Pure data; ``scenario_file`` reads it.

Guests leave the first host for the second one unless they name others. Values are written as on the command line.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import msgspec

from parmig.config import PATTERNS, SendConfig
from parmig.engine.prediction.costs import Costs
from parmig.errors import UsageError
from parmig.guests.synthetic.options import SHARE
from parmig.options import COUNT, DURATION, RATE, SIZE, TEXT, Option, Unit, option, options_of
from parmig.units import GIB

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
