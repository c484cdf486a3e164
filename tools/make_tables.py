# SPDX-License-Identifier: Apache-2.0
"""Write the tables of the documentation that follow from the code: ``python -m tools.make_tables [--check]``.

A table is between ``<!-- NAME:begin -->`` and ``<!-- NAME:end -->``. Everything between the two is replaced.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import get_args

import msgspec
from typer.models import OptionInfo

from parmig import errors, status
from parmig.cli import (
    bench,
    cancel,
    demo,
    keygen,
    plot,
    qemu_args,
    receive,
    recover,
    restore,
    save,
    send,
    simulate,
    watch,
)
from parmig.cli import inspect as inspect_command
from parmig.cli import set as set_command
from parmig.cli import status as status_command
from parmig.cli import trace as trace_command
from parmig.cli.predict import predict
from parmig.experiments.factors import Factors
from parmig.experiments.simulation.scenario import Evacuation, Guests, Host, Nic, Scenario, migration_options
from parmig.experiments.sweep import Sweep
from parmig.guests.kvm.options import KvmOptions
from parmig.guests.qemu.options import QemuOptions
from parmig.guests.synthetic.options import SyntheticOptions
from parmig.options import Option, options_of
from tools import room_diagram

ROOT = Path(__file__).resolve().parent.parent

COMMANDS = (
    demo.demo,
    receive.receive,
    send.send,
    save.save,
    restore.restore,
    inspect_command.inspect,
    recover.recover,
    status_command.status,
    watch.watch,
    set_command.set,
    cancel.cancel,
    qemu_args.qemu_args,
    bench.bench,
    plot.plot,
    simulate.simulate,
    trace_command.record,
    trace_command.show,
    predict,
    keygen.keygen,
)

GUESTS: dict[str, type[msgspec.Struct]] = {"qemu": QemuOptions, "synthetic": SyntheticOptions, "kvm": KvmOptions}

EXIT_CODES = {
    0: "completed",
    1: "failed; the source guest continues",
    2: "bad usage; nothing was touched",
    3: "refused by a check before the start, or by the peer",
    4: "outcome unknown: the peer was lost after the hand-over, the source stays paused",
    5: "failed or cancelled, and the source guest could not be resumed: it is paused",
    6: "the guest runs at the destination, but `--verify` did not find its memory equal to the source's",
    130: "cancelled; the source guest continues",
}


def command_name(command: Callable[..., None]) -> str:
    """What a user types to run *command*: its module is a group if that has another name."""
    group = command.__module__.rpartition(".")[2]
    words = [command.__name__] if group == command.__name__ else [group, command.__name__]
    return " ".join(words).replace("_", "-")


def error_classes() -> list[type[errors.ParmigError]]:
    """Every error class that parmig defines, in the order of the source."""
    return [
        value
        for value in vars(errors).values()
        if inspect.isclass(value) and issubclass(value, errors.ParmigError) and value.__module__ == errors.__name__
    ]


def exit_code_table() -> str:
    """Exit codes, what they mean, and the error classes of each."""
    lines = ["| exit code | meaning | error classes |", "|---|---|---|"]
    for code, meaning in EXIT_CODES.items():
        names = [f"`{error.__name__}`" for error in error_classes() if code and error.exit_code == code]
        lines.append(f"| {code} | {meaning} | {', '.join(names)} |")
    return "\n".join(lines)


def error_table() -> str:
    """Error classes with their exit codes and meanings."""
    lines = ["| error | exit code | when |", "|---|---|---|"]
    for error in error_classes():
        first = (inspect.getdoc(error) or "").split("\n\n")[0].replace("\n", " ")
        lines.append(f"| `{error.__name__}` | {error.exit_code} | {first} |")
    return "\n".join(lines)


def option_table(command: Callable[..., None]) -> str:
    """Arguments and options of *command* with their defaults and help texts."""
    lines = ["| option | default | meaning |", "|---|---|---|"]
    for parameter in inspect.signature(command).parameters.values():
        kind, described = get_args(parameter.annotation)[0], get_args(parameter.annotation)[1]
        if described.hidden:
            continue
        words = [described.default if isinstance(described, OptionInfo) else "", described.metavar or ""]
        default = str(parameter.default)
        if parameter.default is inspect.Parameter.empty:
            default = "required"
        elif isinstance(described.show_default, str):
            default = described.show_default
        elif kind is bool:
            default = "off"
        lines.append(_row(f"`{' '.join(filter(None, words))}`", default, described.help or ""))
    return "\n".join(lines)


def guest_table(struct: type[msgspec.Struct]) -> str:
    """The options of a guest with their defaults and help texts."""
    lines = ["| option | default | meaning |", "|---|---|---|"]
    for name, option in options_of(struct).items():
        shown = {"on": "yes", "off": "no"}[option.shown] if option.is_flag else option.shown
        lines.append(_row(f"`{name}={option.metavar}`", shown, option.help))
    return "\n".join(lines)


def keys_table(options: Mapping[str, Option]) -> str:
    """The keys of a TOML table with their values, defaults and meanings."""
    lines = ["| key | values | default | meaning |", "|---|---|---|---|"]
    for name, option in options.items():
        values = "true|false" if option.is_flag else option.metavar
        lines.append(_row(f"`{name}`", f"`{values}`", "required" if option.required else option.shown, option.help))
    return "\n".join(lines)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def status_diagram() -> str:
    """The status machine as a Mermaid block."""
    return f"```mermaid\n{status.mermaid()}\n```"


TABLES: dict[str, dict[str, Callable[[], str]]] = {
    "docs/cli.md": {
        **{f"options-{command_name(one).replace(' ', '-')}": partial(option_table, one) for one in COMMANDS},
        **{f"guest-{name}": partial(guest_table, struct) for name, struct in GUESTS.items()},
        "exit-codes": exit_code_table,
        "errors": error_table,
    },
    "docs/experiments.md": {
        "sweep": partial(keys_table, options_of(Sweep)),
        "factors": partial(keys_table, options_of(Factors)),
    },
    "docs/simulation.md": {
        "scenario": partial(keys_table, options_of(Scenario)),
        "hosts": partial(keys_table, options_of(Host)),
        "nics": partial(keys_table, options_of(Nic)),
        "guests": partial(keys_table, options_of(Guests)),
        "migration": partial(keys_table, migration_options()),
        "evacuation": partial(keys_table, options_of(Evacuation)),
    },
    "docs/architecture.md": {"status": status_diagram, "rooms": room_diagram.mermaid},
}
"""File to the tables in it, by name."""


def fill(text: str, tables: dict[str, Callable[[], str]]) -> str:
    """*text* with everything between the markers of each of *tables* replaced.

    Raises:
        ValueError: a table has no markers in *text*.
    """
    for name, make in tables.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        before, found_begin, rest = text.partition(begin)
        _, found_end, after = rest.partition(end)
        if not (found_begin and found_end):
            raise ValueError(f"no {begin} ... {end}")
        text = f"{before}{begin}\n{make()}\n{end}{after}"
    return text


def stale_files() -> dict[Path, str]:
    """Files whose tables are not what the code says, with the text they should have."""
    stale = {}
    for name, tables in TABLES.items():
        path = ROOT / name
        text = path.read_text(encoding="utf-8")
        filled = fill(text, tables)
        if filled != text:
            stale[path] = filled
    return stale


def main(arguments: list[str]) -> int:
    """Write stale tables, or with ``--check`` only name them and return 1."""
    stale = stale_files()
    for path, text in stale.items():
        print(f"{path.relative_to(ROOT)}: tables are not current" if "--check" in arguments else f"wrote {path}")
        if "--check" not in arguments:
            path.write_text(text, encoding="utf-8")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
