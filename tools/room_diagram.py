# SPDX-License-Identifier: Apache-2.0
"""The diagram of rooms in ``docs/architecture.md``, made from the imports of the source.

A room is a package or a module directly in ``parmig``, or the package ``workers``. An arrow means "imports". An
arrow that follows from others is left out, so the diagram shows the layers.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORKERS = "workers"
EVERYWHERE = ("units", "errors", "version")
"""Rooms below all others. Arrows to them would only fill the diagram."""


def rooms() -> list[str]:
    """The rooms, sorted by name."""
    inside = (path for path in (ROOT / "parmig").iterdir() if not path.name.startswith(("_", ".")))
    return [*sorted(path.stem for path in inside if path.is_dir() or path.suffix == ".py"), WORKERS]


def imports() -> dict[str, set[str]]:
    """Room to the rooms that it imports, wherever in a file the import is."""
    known = rooms()
    edges: dict[str, set[str]] = {room: set() for room in known}
    for room in known:
        for path in _files(room):
            targets = {_room_of(name) for name in _imported(ast.parse(path.read_text(encoding="utf-8")))}
            edges[room] |= (targets & set(known)) - {room}
    return edges


def mermaid() -> str:
    """The diagram as a Mermaid block."""
    edges = {room: targets - set(EVERYWHERE) for room, targets in imports().items() if room not in EVERYWHERE}
    lines = [f"    {room} --> {target}" for room in edges for target in sorted(_direct(edges, room))]
    return "\n".join(["```mermaid", "flowchart TD", *lines, "```"])


def _files(room: str) -> Iterator[Path]:
    folder = ROOT / WORKERS if room == WORKERS else ROOT / "parmig" / room
    if folder.is_dir():
        yield from folder.rglob("*.py")
    else:
        yield folder.with_suffix(".py")


def _imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _room_of(name: str) -> str:
    parts = name.split(".")
    return parts[1] if parts[0] == "parmig" and len(parts) > 1 else parts[0]


def _direct(edges: Mapping[str, set[str]], room: str) -> set[str]:
    """The rooms that *room* imports and does not reach through another one."""
    reached = set().union(*(_reachable(edges, target) for target in edges[room]))
    return edges[room] - reached


def _reachable(edges: Mapping[str, set[str]], room: str) -> set[str]:
    reached: set[str] = set()
    new = set(edges[room])
    while new:
        reached |= new
        new = set().union(*(edges[target] for target in new)) - reached
    return reached
