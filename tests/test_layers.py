# SPDX-License-Identifier: Apache-2.0
"""Rules that hold for every source file."""

from __future__ import annotations

import ast
import graphlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools import room_diagram

ROOT = Path(__file__).parents[1]
FILES = sorted(path.relative_to(ROOT) for wing in ("parmig", "workers") for path in (ROOT / wing).rglob("*.py"))
SPDX = "# SPDX-License-Identifier: Apache-2.0"
MAX_LINES = 300
NAMES_OF_NOTHING = {"base.py", "common.py", "helpers.py", "messages.py", "misc.py", "utils.py"}
UNSAFE = {"pickle", "dill", "marshal", "shelve"}

every_file = pytest.mark.parametrize("path", FILES, ids=str)


def imported(tree: ast.AST) -> Iterator[str]:
    """Every module that is imported anywhere in *tree*, by statement or by name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def undocumented_methods(tree: ast.AST) -> Iterator[str]:
    """Public methods without a docstring, of classes that implement nothing."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and not node.bases:
            methods = (one for one in node.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef))
            public = (one for one in methods if not one.name.startswith("_"))
            yield from (f"{node.name}.{one.name}" for one in public if not ast.get_docstring(one))


def test_there_are_files_to_look_at() -> None:
    assert Path("parmig/ram/bits.py") in FILES
    assert Path("workers/send.py") in FILES


@every_file
def test_a_file_names_its_licence(path: Path) -> None:
    assert (ROOT / path).read_text().startswith(SPDX + "\n")


@every_file
def test_a_file_has_one_subject(path: Path) -> None:
    lines = len((ROOT / path).read_text().splitlines())
    assert lines <= MAX_LINES
    assert path.name not in NAMES_OF_NOTHING


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_a_page_lists_every_room(page: str) -> None:
    listed = re.findall(r"^\| `(parmig/[a-z]+)(?:\.py)?` \|", (ROOT / page).read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(f"parmig/{room}" for room in room_diagram.rooms() if room != "workers")


def test_the_diagram_shows_what_is_imported() -> None:
    found = room_diagram.imports()
    assert "engine" in found["snapshot"]
    assert "snapshot" not in found["engine"]
    drawn = room_diagram.mermaid()
    assert "cli --> snapshot" in drawn
    assert "cli --> engine" not in drawn  # follows from cli --> snapshot --> engine


def test_no_import_runs_in_a_circle() -> None:
    """Imports inside functions count too."""
    names = {".".join(path.with_suffix("").parts): path for path in FILES if path.name != "__init__.py"}
    graph = {
        name: {other for other in imported(ast.parse((ROOT / path).read_text())) if other in names}
        for name, path in names.items()
    }
    assert "parmig.cli.progress" in graph["parmig.cli.display"]
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


@every_file
def test_public_methods_have_a_docstring(path: Path) -> None:
    """ruff watches the rest; methods that implement an interface are documented there."""
    assert list(undocumented_methods(ast.parse((ROOT / path).read_text()))) == []


@every_file
def test_nothing_is_pickled(path: Path) -> None:
    tree = ast.parse((ROOT / path).read_text())
    assert not {name for name in imported(tree) if name.split(".")[0] in UNSAFE}
    called = {
        node.func.attr for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }
    # multiprocessing's own send() and recv() pickle; send_bytes() and recv_bytes() do not.
    assert not called & {"recv_pyobj", "send_pyobj", "recv_object", "send_object"}


@every_file
def test_layouts_of_the_kernel_are_unpacked_in_linux_only(path: Path) -> None:
    used = {node.attr for node in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(node, ast.Attribute)}
    assert path.parts[:2] == ("parmig", "linux") or not used & {"SO_PEERCRED", "ioctl", "syscall"}


@every_file
def test_input_is_not_checked_by_assert(path: Path) -> None:
    """Asserts only tell the type checker what holds; python -O takes them away."""
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Assert):
            told = ast.unparse(node.test)
            assert " is not None" in told or told.startswith("isinstance("), f"line {node.lineno}: assert {told}"
