# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from parmig.cli.app import app
from parmig.engine.reporting import report
from tools import make_tables

ROOT = Path(__file__).resolve().parents[2]
LINE_COLUMNS = 100
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]


def shell_blocks(text: str) -> list[list[str]]:
    """The lines of each fenced block of shell that is not indented."""
    return [block.splitlines() for block in re.findall(r"^```(?:sh|shell|bash)\n(.*?)^```", text, re.S | re.M)]


def anchors(text: str) -> set[str]:
    """Names that a link may end with, made of the headings as forges make them."""
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_tables_made_from_the_code_are_current() -> None:
    stale = [str(path) for path in make_tables.stale_files()]
    assert not stale, "run python -m tools.make_tables"


def test_a_table_without_its_markers_is_an_error() -> None:
    with pytest.raises(ValueError, match="thing:begin"):
        make_tables.fill("no markers", {"thing": lambda: ""})


def test_a_table_is_replaced_and_the_rest_stays() -> None:
    text = "a\n<!-- t:begin -->\nold\n<!-- t:end -->\nb\n"
    filled = make_tables.fill(text, {"t": lambda: "new"})
    assert filled == "a\n<!-- t:begin -->\nnew\n<!-- t:end -->\nb\n"


def test_every_exit_code_has_a_meaning() -> None:
    assert {one.exit_code for one in make_tables.error_classes()} | {0} == set(make_tables.EXIT_CODES)


def test_the_readme_begins_with_two_commands_of_one_line() -> None:
    first, second, *_ = shell_blocks((ROOT / "README.md").read_text())
    assert len(first) == 1
    assert first[0].endswith("parmig demo")
    assert len(second) == 1
    assert "pytest" in second[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_within_the_project_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        found = (page.parent / file).resolve() if file else page
        assert found.exists(), target
        if anchor:
            assert anchor in anchors(found.read_text()), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_lines_fit_a_window(page: Path) -> None:
    """A row of a table cannot break, so it may be longer."""
    long = [line for line in page.read_text().splitlines() if len(line) > LINE_COLUMNS and not line.startswith("|")]
    assert long == []


def test_the_readme_can_be_read_in_two_minutes() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 120


STRUCTS = [value for value in vars(report).values() if isinstance(value, type) and issubclass(value, msgspec.Struct)]


@pytest.mark.parametrize("struct", [one for one in STRUCTS if one is not report.Progress])
def test_every_field_of_the_report_is_documented_where_it_belongs(struct: type[msgspec.Struct]) -> None:
    sections = re.split(r"^## ", (ROOT / "docs/report.md").read_text(), flags=re.M)
    by_title = {section.split("\n", 1)[0]: section for section in sections[1:]}
    titles = {
        "ErrorReport": "error",
        "GuestReport": "guest",
        "DowntimePhases": "downtime_phases_ms",
        "RoundReport": "rounds",
        "RamReport": "ram",
        "WorkerReport": "per_worker",
        "PathReport": "per_path",
        "OutageReport": "outages",
        "ChangeReport": "changes",
        "RestartReport": "restarts",
        "CodecReport": "codecs",
        "DigestReport": "digest",
        "GuestSpeedReport": "guest_speed",
        "SnapshotReport": "snapshot",
        "Mismatch": "mismatches",
        "EncryptionReport": "encryption",
    }
    section = sections[0] if struct is report.Report else by_title[titles[struct.__name__]]
    documented = re.findall(r"^\| `(\w+)` \|", section, re.M)
    assert documented == list(struct.__struct_fields__)


@pytest.mark.parametrize("command", make_tables.COMMANDS, ids=make_tables.command_name)
def test_every_option_is_documented_in_its_section(command: Callable[..., None]) -> None:
    name = make_tables.command_name(command)
    section = (ROOT / "docs/cli.md").read_text().split(f"## parmig {name}\n")[1].split("\n## ")[0]
    documented = set(re.findall(r"^\| `(--[\w-]+)", section, re.M))
    help_text = CliRunner().invoke(app, [*name.split(), "--help"]).stdout
    assert documented == set(re.findall(r"^│[ *]+(--[\w-]+)", help_text, re.M)) - {"--help"}


def test_every_dependency_has_a_line() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    documented = set(re.findall(r"^\| ([\w.\-]+) \|", (ROOT / "docs/dependencies.md").read_text(), re.M))
    assert {re.split(r"[<>=]", one)[0] for one in listed} <= documented


def test_every_python_file_says_its_licence_and_what_it_is() -> None:
    for folder in ("parmig", "workers", "tools", "docs"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text()
            if text:
                assert text.startswith('# SPDX-License-Identifier: Apache-2.0\n"""'), path
