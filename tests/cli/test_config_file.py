# SPDX-License-Identifier: Apache-2.0
"""Options from a file: what arrives, what has priority, what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from parmig.cli import receive, save, send
from parmig.cli.app import app
from parmig.cli.config_file import TABLES
from parmig.config import ReceiveConfig, SendConfig
from parmig.engine.reporting.report import Report
from parmig.snapshot.snapshot_config import SaveConfig
from parmig.units import MIB, NS_PER_MS, NS_PER_S
from parmig.values import Path as PathPair

ARGUMENTS = {
    "send": ["send", "zmq+tcp://127.0.0.1:1", "--guest", "synthetic"],
    "save": ["save", "/nowhere/file", "--guest", "synthetic"],
    "receive": ["receive"],
}


class Commands:
    """Runs a command up to the point where it would begin, with a file of options."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "parmig.toml"
        self.got: list[tuple[Any, ...]] = []

    def begin(self, *arguments: Any) -> Report:
        self.got.append(arguments)
        return Report(parmig="0", side="source", status="completed")

    def __call__(self, command: str, toml: str, *arguments: str) -> Result:
        self._file.write_text(toml)
        return CliRunner().invoke(app, [*ARGUMENTS[command], *arguments, "--config", str(self._file)])


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Commands]:
    one = Commands(tmp_path)
    for module in (send, save, receive):
        monkeypatch.setattr(module, f"_{module.__name__.rpartition('.')[2]}", one.begin)
    return one


def words_of(result: Result) -> str:
    return " ".join(result.stderr.replace("│", "").split())


def test_values_are_written_as_on_the_command_line(commands: Commands) -> None:
    toml = """
    [send]
    workers = 3
    max-bandwidth = "500MiB/s"
    downtime_limit = "50ms"
    "--timeout" = 60
    path = ["10.0.0.1-10.0.0.2", "10.1.0.2"]
    compress = "lz4"
    verify = true
    quit-source = false
    quiet = true
    """
    result = commands("send", toml)
    assert result.exit_code == 0, result.stderr
    ((_, _, config, output),) = commands.got
    assert config == SendConfig(
        workers=3,
        max_bandwidth_bytes_per_s=500 * MIB,
        downtime_limit_ns=50 * NS_PER_MS,
        timeout_ns=60 * NS_PER_S,
        paths=(PathPair("10.0.0.2", "10.0.0.1"), PathPair("10.1.0.2")),
        compress="lz4",
        verify=True,
    )
    assert output.quiet


def test_the_command_line_has_priority(commands: Commands) -> None:
    toml = '[send]\nworkers = 3\npath = "10.0.0.9"\nbatch = "1MiB"'
    assert commands("send", toml, "--workers", "2", "--path", "10.0.0.2").exit_code == 0
    ((_, _, config, _),) = commands.got
    assert config == SendConfig(workers=2, paths=(PathPair("10.0.0.2"),), batch_bytes=MIB)


@pytest.mark.parametrize(
    ("value", "compares"), [("true", "after"), ("false", ""), ("'after'", "after"), ("'before'", "before")]
)
def test_an_option_that_needs_no_value_is_true_or_false_or_has_one(
    commands: Commands, value: str, compares: str
) -> None:
    assert commands("send", f"[send]\nverify = {value}").exit_code == 0
    assert commands.got[0][2].compares == compares


def test_a_flag_of_the_file_is_switched_off_on_the_command_line(commands: Commands) -> None:
    toml = "[send]\nannounce = true\nauto-converge = true\nverify = true"
    assert commands("send", toml, "--no-announce", "--no-verify").exit_code == 0
    ((_, _, config, _),) = commands.got
    assert config == SendConfig(announce=False, auto_converge=True)


def test_one_file_serves_every_command_with_a_table(commands: Commands) -> None:
    toml = """
    [send]
    workers = 1
    [save]
    workers = 2
    format = "stream"
    force = true
    [receive]
    listen = "zmq+tcp://127.0.0.1:0"
    guest = "synthetic"
    data-ports = "4700-4731"
    """
    for command in TABLES:
        result = commands(command, toml)
        assert result.exit_code == 0, result.stderr
    configs = [one for arguments in commands.got for one in arguments if type(one) in (SendConfig, SaveConfig)]
    assert configs == [SaveConfig(workers=2, format="stream", replace=True), SendConfig(workers=1)]
    guest, config, _ = commands.got[0]
    assert (guest, config) == ("synthetic", ReceiveConfig(listen="zmq+tcp://127.0.0.1:0", data_ports=(4700, 4731)))


def test_a_file_without_the_table_of_the_command_changes_nothing(commands: Commands) -> None:
    assert commands("send", "[save]\nworkers = 2").exit_code == 0
    assert commands.got[0][2] == SendConfig()


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        (
            "[send]\nmax-bandwith = 1",
            "unknown option 'max-bandwith' in table [send] of FILE; did you mean 'max-bandwidth'?",
        ),
        ("[send]\nxyzzy = 1", "unknown option 'xyzzy' in table [send] of FILE; known options: guest, workers, tracker"),
        ("[send]\nconfig = 'x'", "unknown option 'config'"),
        ("[send]\nuri = 'x'", "unknown option 'uri'"),
        ("[send]\nmax-downtime = 1\nmax_downtime = 2", "option 'max-downtime' appears twice in table [send] of FILE"),
        ("[sendd]\nworkers = 1", "no table for a command named 'sendd'; known tables: [receive], [save], [send]"),
        ("workers = 1", "no table for a command named 'workers'"),
        ("send = 1", "no table for a command named 'send'"),
        ("[send]\nverify = 'yes'", "'--verify': 'yes' is unknown; expected one of after, before"),
        (
            "[send]\nannounce = 'yes'",
            "option 'announce' in table [send] of FILE is 'yes'; expected true or false",
        ),
        ("[send]\nworkers = true", "option 'workers' in table [send] of FILE is True; write the value as on the"),
        ("[send]\nworkers = [1, 2]", "is [1, 2]; write the value as on the command line, in quotes"),
        ("[send]\npath = [1979-05-27]", "write the value as on the command line, in quotes"),
        ("[send]\nworkers = 65", "'--workers': 65 is not allowed; expected a number from 1 to 64"),
        ("[send]\nbatch = 'big'", "'--batch': 'big' is not a size; write it like 512MiB or 1.5GiB"),
        ("[send]\ncompress = 'rar'", "'--compress': 'rar' is unknown; expected one of none, "),
        ("[send", "is not a TOML file"),
    ],
)
def test_a_file_with_a_mistake_is_bad_usage_that_names_it(
    commands: Commands, tmp_path: Path, toml: str, words: str
) -> None:
    result = commands("send", toml)
    assert (result.exit_code, result.stdout, commands.got) == (2, "", [])
    unwrapped = "".join(words_of(result).split())  # a long path is broken where the line ends
    assert "".join(words.split()) in unwrapped.replace(str(tmp_path / "parmig.toml"), "FILE")


def test_a_file_that_is_not_there_is_bad_usage(commands: Commands) -> None:
    result = CliRunner().invoke(app, [*ARGUMENTS["send"], "--config", "/nonexistent.toml"])
    assert result.exit_code == 2
    assert "cannot read /nonexistent.toml" in words_of(result)


def test_a_file_that_is_not_text_is_bad_usage(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"\xff\xfe")
    result = CliRunner().invoke(app, [*ARGUMENTS["send"], "--config", str(file)])
    assert result.exit_code == 2
    assert "is not a TOML" in words_of(result)
