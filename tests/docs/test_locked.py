# SPDX-License-Identifier: Apache-2.0
"""The locked set of dependencies fits what pyproject.toml asks for, and names files by their hashes only."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOCKED = (ROOT / "requirements" / "locked.txt").read_text()


def name_of(text: str) -> str:
    """A name as all its spellings are compared (qemu.qmp, qemu-qmp)."""
    return re.sub(r"[-_.]+", "-", text).lower()


def version_of(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))


def test_every_dependency_is_locked_at_a_version_that_is_allowed() -> None:
    locked = {name_of(name): version for name, version in re.findall(r"^([\w.-]+)==([\d.]+)", LOCKED, re.MULTILINE)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for dependency in [*project["dependencies"], *project["optional-dependencies"]["metrics"]]:
        name, _, lowest = dependency.partition(">=")
        version = locked.get(name_of(name))
        assert version is not None, f"{name} is not locked; run tox -e lock"
        assert version_of(version) >= version_of(lowest), f"{name} {version} is locked; run tox -e lock"


def test_every_locked_version_has_hashes_and_no_address() -> None:
    assert "://" not in LOCKED
    for entry in re.split(r"\n(?=[\w.-]+==)", LOCKED)[1:]:
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry
