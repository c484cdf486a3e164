# SPDX-License-Identifier: Apache-2.0
"""Rules that hold for every source file."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(path.relative_to(ROOT) for wing in ("parmig", "workers") for path in (ROOT / wing).rglob("*.py"))
SPDX = "# SPDX-License-Identifier: Apache-2.0"
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


def undocumented(tree: ast.AST, within: str = "") -> Iterator[str]:
    """Public classes and functions without a docstring; what implements an interface has it there."""
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
            continue
        is_class = isinstance(node, ast.ClassDef)
        implements = isinstance(tree, ast.ClassDef) and bool(tree.bases)
        if not ast.get_docstring(node) and (is_class or not implements):
            yield f"{within}{node.name}"
        if is_class:
            yield from undocumented(node, f"{node.name}.")


def test_there_are_files_to_look_at() -> None:
    assert Path("parmig/ram/bits.py") in FILES
    assert Path("workers/send.py") in FILES


@every_file
def test_a_file_says_its_licence_and_what_it_is(path: Path) -> None:
    text = (ROOT / path).read_text()
    assert text.startswith(SPDX + "\n")
    assert ast.get_docstring(ast.parse(text))


@every_file
def test_everything_public_has_a_docstring(path: Path) -> None:
    assert list(undocumented(ast.parse((ROOT / path).read_text()))) == []


@every_file
def test_parmig_does_not_import_the_workers(path: Path) -> None:
    names = set(imported(ast.parse((ROOT / path).read_text())))
    if path.parts[0] == "parmig":
        assert not {name for name in names if name.split(".")[0] == "workers"}
    assert not {name for name in names if name.split(".")[0] in ("tests", "tools", "docs")}


@every_file
def test_nothing_is_pickled(path: Path) -> None:
    tree = ast.parse((ROOT / path).read_text())
    assert not {name for name in imported(tree) if name.split(".")[0] in UNSAFE}
    called = {
        node.func.attr for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }
    # multiprocess' own send() and recv() pickle; send_bytes() and recv_bytes() do not.
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
