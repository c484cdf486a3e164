# SPDX-License-Identifier: Apache-2.0
"""A file has its name when it is complete, and never before."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from parmig.errors import HostRefusedError, SnapshotError
from parmig.snapshot.pending_file import PendingFile


@pytest.fixture(params=["unnamed", "hidden"])
def files(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """File systems with and without O_TMPFILE."""
    if request.param == "hidden":
        real = os.open

        def without_tmpfile(path: Any, flags: int, *arguments: Any, **named: Any) -> int:
            if flags & os.O_TMPFILE == os.O_TMPFILE:
                raise OSError(errno.EOPNOTSUPP, "Operation not supported")
            return real(path, flags, *arguments, **named)

        monkeypatch.setattr(os, "open", without_tmpfile)
    return str(request.param)


def visible(directory: Path) -> list[str]:
    return [name for name in os.listdir(directory) if not name.startswith(".")]


@pytest.mark.parametrize("replace", [False, True])
def test_it_has_its_name_from_the_commit_on(tmp_path: Path, files: str, replace: bool) -> None:
    path = tmp_path / "s"
    with PendingFile(path, replace=replace) as file:
        os.write(file.fd, b"content")
        assert visible(tmp_path) == []
        assert bool(os.listdir(tmp_path)) == (files == "hidden")
        file.sync()
        file.commit()
        assert os.listdir(tmp_path) == ["s"]
    assert path.read_bytes() == b"content"
    assert path.stat().st_mode & 0o777 == 0o600


def test_without_a_commit_it_is_gone(tmp_path: Path, files: str) -> None:
    with PendingFile(tmp_path / "s", replace=False) as file:
        os.write(file.fd, b"content")
    assert os.listdir(tmp_path) == []
    file.close()


def test_what_is_there_is_replaced_only_when_asked_and_only_by_a_commit(tmp_path: Path, files: str) -> None:
    path = tmp_path / "s"
    path.write_text("old")
    with pytest.raises(HostRefusedError, match=r"already exists.*--force"):
        PendingFile(path, replace=False)
    with PendingFile(path, replace=True) as file:
        os.write(file.fd, b"new")
    assert path.read_text() == "old"
    with PendingFile(path, replace=True) as file:
        os.write(file.fd, b"new")
        file.sync()
        file.commit()
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["s"]


def test_what_comes_up_meanwhile_is_left_alone(tmp_path: Path, files: str) -> None:
    path = tmp_path / "s"
    with PendingFile(path, replace=False) as file:
        path.write_text("another's")
        with pytest.raises(SnapshotError, match="created in the meantime"):
            file.commit()
    assert path.read_text() == "another's"
    assert os.listdir(tmp_path) == ["s"]


def test_what_is_no_place_for_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("")
    for path, words in {
        tmp_path: "is not a file",
        tmp_path / "none" / "s": "No such file or directory",
        tmp_path / "text" / "s": "Not a directory",
        Path("/proc/s"): "/proc",
    }.items():
        with pytest.raises(HostRefusedError, match=words):
            PendingFile(path, replace=True)
