# SPDX-License-Identifier: Apache-2.0
"""From declarations to the command line, against what the configuration itself says."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_args

import msgspec
import pytest
import typer
from typer.models import OptionInfo
from typer.testing import CliRunner, Result

from parmig.cli import demo, receive, restore, save, send
from parmig.cli.options import command
from parmig.config import ReceiveConfig, SendConfig
from parmig.engine.demo.demo_config import DemoConfig
from parmig.options import SIZE, Option, option, options_of
from parmig.snapshot.snapshot_config import RestoreConfig, SaveConfig
from parmig.units import KIB, MIB
from tools.make_tables import GUESTS

CONFIGURATIONS = {
    send.send: SendConfig,
    save.save: SaveConfig,
    restore.restore: RestoreConfig,
    receive.receive: ReceiveConfig,
    demo.demo: DemoConfig,
}
EVERY_OPTION = [
    pytest.param(config, one, id=f"{config.__name__}-{one.name}")
    for config in CONFIGURATIONS.values()
    for one in options_of(config).values()
]
NOTHING = (0, "", (), (0, 0))


def infos(program: Callable[..., None]) -> dict[str, OptionInfo]:
    """Typer's description of each option."""
    found = {}
    for one in inspect.signature(program).parameters.values():
        info = get_args(one.annotation)[1]
        if isinstance(info, OptionInfo):
            found[str(info.default)] = info
    return found


@pytest.mark.parametrize("program", CONFIGURATIONS, ids=lambda one: one.__name__)
def test_every_field_of_a_configuration_is_an_option_with_help(program: Callable[..., None]) -> None:
    config = CONFIGURATIONS[program]
    declared = options_of(config)
    assert [one.field for one in declared.values()] == list(config.__struct_fields__)
    given = infos(program)
    for name, one in declared.items():
        assert given[f"--{name}"].help == one.help
        assert one.help.endswith(".")


@pytest.mark.parametrize(("config", "one"), EVERY_OPTION)
def test_a_default_that_is_shown_is_the_one_that_holds(config: type[msgspec.Struct], one: Option) -> None:
    default = getattr(config(), one.field)
    assert one.default == default
    if one.is_flag:
        assert (one.shown, default) == ("off", False)
    elif one.field == "workers":
        assert 1 <= default <= 4
    elif one.declared.shown:
        assert default in NOTHING  # words in place of a value that says nothing
    else:
        assert one.read(one.shown) == default


@pytest.mark.parametrize(
    "one", [pytest.param(one, id=f"{kind}-{one.name}") for kind in GUESTS for one in options_of(GUESTS[kind]).values()]
)
def test_a_default_of_a_guest_that_is_shown_is_the_one_that_holds(one: Option) -> None:
    if one.is_flag:
        assert (one.shown, one.default) == ("on", True)
    elif one.declared.shown:
        assert one.default in NOTHING
    else:
        assert one.read(one.shown) == one.default


@pytest.mark.parametrize("config", CONFIGURATIONS.values(), ids=lambda one: one.__name__)
def test_the_defaults_are_allowed(config: type[Any]) -> None:
    config().check()


@pytest.mark.parametrize("name", ["workers", "throttle-initial", "throttle-increment", "throttle-max"])
def test_limits_are_part_of_the_help(name: str) -> None:
    assert "(1 to " in options_of(SendConfig)[name].help


class Toy(msgspec.Struct, frozen=True, kw_only=True):
    """Options that no command of parmig has."""

    depth_bytes: Annotated[int, option("How deep.", SIZE, ge=4 * KIB, le=MIB)] = 8 * KIB
    colours: Annotated[tuple[str, ...], option("Which colours.", name="colour", shown="none")] = ()
    loud: Annotated[bool, option("Make noise.")] = False


def run_toy(*arguments: str) -> tuple[Toy | None, Result]:
    """What a command with these options gets, and how it ends."""
    got: list[Toy] = []

    def toy(options: Toy) -> None:
        got.append(options)

    toy.__annotations__ = {"options": Toy, "return": None}
    app = typer.Typer()
    app.command()(command()(toy))
    result = CliRunner().invoke(app, arguments)
    return (got[0] if got else None), result


def test_a_declared_option_reaches_the_command_line_without_more_code() -> None:
    assert run_toy()[0] == Toy()
    arguments = ["--depth", "16KiB", "--colour", "red", "--colour", "blue", "--loud"]
    assert run_toy(*arguments)[0] == Toy(depth_bytes=16 * KIB, colours=("red", "blue"), loud=True)
    words = " ".join(run_toy("--help")[1].stdout.replace("│", "").split())
    assert "How deep (4KiB to 1MiB)." in words
    assert "(8KiB)" in words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("2KiB", "'--depth': 2KiB is not allowed; expected a size from 4KiB to 1MiB"),
        ("deep", "'--depth': 'deep' is not a size; write it like 512MiB or 1.5GiB"),
    ],
)
def test_a_wrong_value_is_answered_with_the_option_and_what_it_takes(text: str, words: str) -> None:
    got, result = run_toy("--depth", text)
    assert (got, result.exit_code) == (None, 2)
    assert words in " ".join(result.stderr.replace("│", "").split())
