# SPDX-License-Identifier: Apache-2.0
"""Would the tests notice? Mutations by hand of the page path and the processes: ``python -m tools.mutations``.

Each mutation in ``mutations.toml`` replaces a piece of one file, in a temporary copy of the tree. Its tests must then
fail; without it they must pass. The tool prints a line for each. Exit code 1: a mutation was not noticed, no longer
applies (its text is not there exactly once: update it), or its tests are gone or fail anyway.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tomllib
from pathlib import Path

import msgspec

from tools.mutate import copied_tree

LIST = Path(__file__).with_name("mutations.toml")
LIMIT_S = 600.0
"""Time limit of the tests of one mutation. A test that hangs has noticed something."""

PASSED, FAILED = 0, 1
"""Exit codes of pytest. Others: interrupted, wrong usage, no such test."""


class Mutation(msgspec.Struct, forbid_unknown_fields=True):
    """One piece of text that is replaced, and who must notice."""

    name: str
    file: str
    old: str
    new: str
    tests: list[str]


def mutations() -> list[Mutation]:
    """All of them."""
    return msgspec.convert(tomllib.loads(LIST.read_text())["mutation"], list[Mutation])


def applies(mutation: Mutation, tree: Path) -> bool:
    """Whether the text of *mutation* is exactly once in its file."""
    path = tree / mutation.file
    return path.exists() and path.read_text().count(mutation.old) == 1


def outcome(mutation: Mutation, tree: Path, passing: dict[tuple[str, ...], int]) -> str:
    """What became of *mutation*; *tree* is unchanged afterwards."""
    if not applies(mutation, tree):
        return "no longer applies"
    tests = tuple(mutation.tests)
    if tests not in passing:
        passing[tests] = run(tests, tree)
    if passing[tests] != PASSED:
        return "its tests fail anyway" if passing[tests] == FAILED else "its tests are not there"
    path = tree / mutation.file
    text = path.read_text()
    path.write_text(text.replace(mutation.old, mutation.new))
    try:
        return "NOT NOTICED" if run(tests, tree) == PASSED else "noticed"
    finally:
        path.write_text(text)


def run(tests: tuple[str, ...], tree: Path) -> int:
    """Exit code of pytest."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    try:
        return subprocess.run(
            command, cwd=tree, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=LIMIT_S, check=False
        ).returncode
    except subprocess.TimeoutExpired:
        return FAILED


def main() -> int:
    """The command."""
    listed = mutations()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="some of them; all without any")
    wanted = parser.parse_args().names or [mutation.name for mutation in listed]
    unknown = set(wanted) - {mutation.name for mutation in listed}
    if unknown:
        parser.error(f"there is no mutation {', '.join(sorted(unknown))}")
    passing: dict[tuple[str, ...], int] = {}
    unnoticed = 0
    with copied_tree() as tree:
        for mutation in (mutation for mutation in listed if mutation.name in wanted):
            result = outcome(mutation, tree, passing)
            unnoticed += result != "noticed"
            print(f"{result:<24} {mutation.name:<40} {mutation.file}", flush=True)
    print(f"{len(wanted) - unnoticed} of {len(wanted)} noticed")
    return int(unnoticed > 0)


if __name__ == "__main__":
    sys.exit(main())
