# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from parmig.cli.app import app
from parmig.cli.inspect import printable
from parmig.stream.ram_blocks import BlockEntry
from parmig.stream.ram_encode import encode_zero_words
from tests.inspection.files import description, device_section, stream
from tests.stream.streams import DEVICE, whole_stream
from tests.support import index_of


def inspect(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["inspect", *map(str, arguments)])


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    path = tmp_path / "whole"
    path.write_bytes(whole_stream())
    return path


def test_json_is_one_object_with_the_promised_names(whole: Path) -> None:
    result = inspect(whole, "--json")
    told = json.loads(result.stdout)
    assert (result.exit_code, result.stderr) == (0, "")
    assert set(told) >= {
        *("format", "version", "machine", "capabilities", "complete", "blocks", "devices"),
        *("vmdescription_bytes", "total_bytes", "notes"),
    }
    assert set(told["blocks"][0]) >= {"name", "bytes", "pages_normal", "pages_zero", "pages_xbzrle"}
    assert set(told["devices"][0]) >= {"idstr", "instance_id", "version", "bytes", "fields"}
    assert told["devices"][0]["fields"]["lines"] == [1, 2, 3]


def test_people_get_blocks_and_devices_but_values_only_when_asked(whole: Path) -> None:
    result = inspect(whole)
    assert result.exit_code == 0
    assert "qemu-stream, version 3, complete" in result.stdout
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["mem0", "256", "KiB", "3", "12", "15"] in rows
    assert ["clock", "1", "3", "45", "5"] in rows
    assert "ticks" not in result.stdout


@pytest.mark.parametrize("options", [["--fields"], ["--device", "clock"], ["--device", "clock/1"]])
def test_values_are_told_by_their_path(whole: Path, options: list[str]) -> None:
    lines = inspect(whole, *options).stdout.splitlines()
    for line in ("clock/1", "  ticks = 99", "  armed = True", "  lines = 1 2 3", "  wheel[1].at = 8"):
        assert line in lines


def test_a_device_that_is_not_there_is_bad_usage_and_names_those_that_are(whole: Path) -> None:
    result = inspect(whole, "--device", "clock/7")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "its devices: clock" in " ".join(result.stderr.replace("│", "").split())


@pytest.mark.parametrize("path", ["/nonexistent", "/dev/shm"])
def test_what_cannot_be_opened_is_bad_usage(path: str) -> None:
    result = inspect(path, "--json")
    assert (result.exit_code, result.stdout) == (2, "")
    assert path in result.stderr


def test_a_stream_that_is_cut_off_is_told_as_far_as_it_goes(whole: Path) -> None:
    whole.write_bytes(whole.read_bytes()[:3000])
    result = inspect(whole)
    assert result.exit_code == 1
    assert "NOT COMPLETE" in result.stdout
    assert "mem0" in result.stdout
    assert result.stderr.startswith(f"parmig: {whole}: expected ")
    assert result.stderr.strip() not in result.stdout
    told = json.loads(inspect(whole, "--json").stdout)
    assert (told["complete"], told["error"]["type"]) == (False, "StreamTruncatedError")
    assert told["error"]["message"] in told["notes"]


def test_what_is_no_stream_has_no_format_and_fails(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("not a stream, but long enough to be one")
    result = inspect(path, "--json")
    assert result.exit_code == 1
    told = json.loads(result.stdout)
    assert (told["format"], told["error"]["type"]) == (None, "StreamMagicError")


def test_names_from_the_file_cannot_steer_a_terminal(tmp_path: Path) -> None:
    path = tmp_path / "rude"
    entries = (BlockEntry("\x1b[2J[red]\r", 4096),)
    path.write_bytes(stream(encode_zero_words(entries[0].name, index_of([0])), entries=entries))
    for options in ([], ["--json"]):
        result = inspect(path, *options)
        assert result.exit_code == 0
        assert "\x1b" not in result.stdout
    assert r"\x1b[2J[red]\r" in inspect(path).stdout


def test_printable_keeps_what_can_be_shown() -> None:
    assert printable("0000:00:02.0/vga é\n") == r"0000:00:02.0/vga é\n"


def test_standard_input_is_read_where_a_pipe_is_given() -> None:
    content = stream(state=device_section(), describe=description(DEVICE))
    done = subprocess.run(
        [sys.executable, "-m", "parmig", "inspect", "-", "--json"], input=content, capture_output=True, check=True
    )
    told = json.loads(done.stdout)
    assert (told["file"], told["complete"], len(told["devices"])) == ("standard input", True, 1)
