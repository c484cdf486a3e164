# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from importlib import import_module

import pytest
from typer.testing import CliRunner

from parmig.cli.app import COMMANDS, app
from parmig.version import __version__

runner = CliRunner()
RECEIVE = ["receive", "--listen", "zmq+tcp://127.0.0.1:0", "--guest", "synthetic"]
SEND = ["send", "zmq+tcp://127.0.0.1:1", "--guest", "synthetic"]


def test_the_version_is_the_packages() -> None:
    result = runner.invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"parmig {__version__}\n")


def test_help_lists_exactly_the_commands_that_exist() -> None:
    result = runner.invoke(app, ["--help"])
    assert result.exit_code == 0
    listed = re.findall(r"^│ ([a-z][a-z-]+) ", result.stdout, re.MULTILINE)
    assert listed == list(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_the_program_shows_the_first_line_of_a_commands_own(command: str) -> None:
    name = command.replace("-", "_")
    function = getattr(import_module(f"parmig.cli.{name}"), name)
    assert COMMANDS[command] == inspect.getdoc(function).partition("\n")[0]


def words(command: str) -> list[list[str]]:
    """What a user types for *command*: more than one list if it is a group."""
    below = getattr(import_module(f"parmig.cli.{command.replace('-', '_')}"), "COMMANDS", {})
    return [[command, word] for word in below] or [[command]]


@pytest.mark.parametrize("command", [typed for name in COMMANDS for typed in words(name)], ids=" ".join)
def test_every_command_has_help(command: list[str]) -> None:
    result = runner.invoke(app, [*command, "--help"])
    assert result.exit_code == 0
    assert "--json" in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["teleport"],
        ["send"],
        ["send", "zmq+tcp://127.0.0.1:1"],
        ["receive", "--guest", "synthetic"],
        ["inspect"],
        ["demo", "--memory", "lots"],
        ["demo", "--dirty-rate", "fast"],
        ["demo", "--pattern", "paisley"],
        ["demo", "--kernel", "/nonexistent"],
        ["demo", "--workers", "0"],
        [*SEND, "--workers", "65"],
        [*SEND, "--compress", "zip"],
        [*SEND, "--tracker", "guess"],
        [*SEND, "--transport", "pigeon"],
        [*SEND, "--path", "a-b-c"],
        [*SEND, "--downtime-limit", "soon"],
        [*SEND, "--max-bandwidth", "1 furlong"],
        [*SEND, "--key-dir", "/tmp"],
        [*RECEIVE, "--data-ports", "4700"],
        [*RECEIVE, "--data-ports", "4800-4700"],
        [*RECEIVE, "--data-ports", "4700-70000"],
        [*RECEIVE, "--wait", "ages"],
    ],
)
def test_bad_usage_ends_with_2_and_says_so_on_standard_error(arguments: list[str]) -> None:
    result = runner.invoke(app, [*arguments, "--json"] if arguments[0] in COMMANDS else arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr


def test_a_bad_value_is_named_with_an_example() -> None:
    result = runner.invoke(app, ["demo", "--memory", "lots"])
    assert "'lots' is not a size" in result.stderr


def test_doctor_prints_one_object() -> None:
    result = runner.invoke(app, ["doctor", "--json"])
    told = json.loads(result.stdout)
    assert set(told) == {"parmig", "possible", "probes"}
    assert result.exit_code == (0 if told["possible"] else 1)


def test_doctor_prints_a_line_for_each_thing() -> None:
    result = runner.invoke(app, ["doctor"])
    assert "PAGEMAP_SCAN" in result.stdout
    assert result.stdout.rstrip().endswith("possible on this host")


def test_the_module_of_the_console_script_imports_nothing_heavy() -> None:
    code = (
        "import sys; before = set(sys.modules); import parmig.cli; "
        "names = {name.split('.')[0] for name in set(sys.modules) - before}; "
        "print(sorted(names - sys.stdlib_module_names))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['parmig']"


def test_help_does_not_wait_for_numpy() -> None:
    names = ("numpy", "zmq", "psutil", "msgspec", "multiprocessing")
    code = f"import sys, parmig.cli.app; print([name for name in {names} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
