# SPDX-License-Identifier: Apache-2.0
"""Names that lead through folders where other users may put something in the way."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from parmig.linux import trusted_files

NOBODY = 65534


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def as_link(path: Path) -> None:
    path.symlink_to("/etc/hostname")


def as_link_to_nothing(path: Path) -> None:
    path.symlink_to("/nonexistent-parmig")


def as_file(path: Path) -> None:
    path.write_text("not ours")


def as_pipe(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize("make", [as_link, as_link_to_nothing, as_file, as_pipe, os.mkdir])
def test_what_another_user_put_into_a_shared_folder_is_not_opened(
    shared_folder: Path, make: Callable[[Path], None]
) -> None:
    path = shared_folder / "name"
    make(path)
    os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    before = open_descriptors()
    for flags in (os.O_RDONLY, os.O_RDWR | os.O_CREAT, os.O_WRONLY | os.O_CREAT | os.O_APPEND):
        with pytest.raises(PermissionError, match=rf"{path} belongs to user {NOBODY}.*expected root or user 0"):
            trusted_files.open_file(str(path), flags)
    with pytest.raises(PermissionError):
        trusted_files.make_folder(str(path / "below"))
    assert open_descriptors() == before


def test_a_folder_of_another_user_that_is_not_shared_is_used(shared_folder: Path) -> None:
    shared_folder.chmod(0o755)
    folder = shared_folder / "folder"
    folder.mkdir()
    (folder / "file").write_text("theirs")
    for path in (folder, folder / "file"):
        os.chown(path, NOBODY, NOBODY)
    entry = trusted_files.find(str(folder / "file"))
    assert Path(trusted_files.name_of(entry.fd)).read_text() == "theirs"
    os.close(entry.fd)


def test_a_link_leads_to_the_folder_that_an_entry_lies_in(shared_folder: Path) -> None:
    private = shared_folder / "private"
    private.mkdir(mode=0o700)
    (private / "file").touch()
    (shared_folder / "link").symlink_to("private")
    for name, shared in (("private", True), ("link/../link/.", True), ("link/file", False), ("link/..", False)):
        entry = trusted_files.find(str(shared_folder / name))
        assert entry.shared_folder == (str(shared_folder) if shared else ""), name
        assert os.path.samestat(os.fstat(entry.fd), (shared_folder / name).stat())
        os.close(entry.fd)


def test_a_new_file_gets_its_mode_and_an_old_one_keeps_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content, mode in ((b"new", 0o640), (b" and old", 0o600)):
        fd = trusted_files.open_file(str(path), os.O_WRONLY | os.O_CREAT | os.O_APPEND, mode)
        os.write(fd, content)
        os.close(fd)
    assert path.read_bytes() == b"new and old"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    with pytest.raises(FileExistsError):
        trusted_files.open_file(str(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL)


def test_missing_folders_are_made_for_this_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.close(trusted_files.make_folder("a/b/"))
    os.close(trusted_files.make_folder(str(tmp_path / "a" / "b")))
    assert [stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "a", tmp_path / "a" / "b")] == [0o700] * 2


def test_pipes_that_have_no_name_can_be_named_by_the_kernel() -> None:
    reader, writer = os.pipe()
    again = trusted_files.open_file(f"/dev/fd/{reader}", os.O_RDONLY | os.O_NONBLOCK)
    os.write(writer, b"word")
    assert os.read(again, 10) == b"word"
    for fd in (reader, writer, again):
        os.close(fd)


@pytest.mark.parametrize(
    ("name", "number"),
    [("", errno.ENOENT), ("missing", errno.ENOENT), ("loop", errno.ELOOP), ("file/x", errno.ENOTDIR)],
)
def test_what_leads_nowhere_is_an_error_as_for_open(tmp_path: Path, name: str, number: int) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    before = open_descriptors()
    with pytest.raises(OSError, match=r"\S") as caught:
        trusted_files.open_file(str(tmp_path / name) if name else "", os.O_RDONLY)
    assert caught.value.errno == number
    assert open_descriptors() == before
