# SPDX-License-Identifier: Apache-2.0
"""Records on disk: private, bounded, one writer each, and an error before anything is touched."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from parmig.engine.records import record_store
from parmig.engine.records.handover_record import FILE_BYTES, HandOverRecord, RecordState, decode_file
from parmig.engine.records.record_file import RecordReader
from parmig.engine.records.record_store import KEPT_NS, MAX_FILES, RecordStore, default_directory, has_ended
from parmig.errors import HostRefusedError, RecordError

NEW = HandOverRecord(session=bytes(16), side="source", state=RecordState.OPEN)


def record(number: int, **fields: object) -> HandOverRecord:
    changed = {"changed_ns": time.time_ns()} | fields
    return replace(NEW, session=number.to_bytes(4, "big") + bytes(12), **changed)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RecordStore]:
    with RecordStore(str(tmp_path / "records")) as opened:
        yield opened


def test_directory_and_files_are_private_and_a_file_never_grows(store: RecordStore) -> None:
    with store.create(record(1)) as file:
        for state in (RecordState.HANDED_OVER, RecordState.COMPLETED):
            file.write(state=state)
        entry = os.stat(file.path)
    assert os.stat(store.directory).st_mode & 0o777 == 0o700
    assert (entry.st_mode & 0o777, entry.st_size, entry.st_blocks * 512) == (0o600, FILE_BYTES, FILE_BYTES)


def test_what_was_written_last_is_read_and_the_one_before_is_still_there(store: RecordStore) -> None:
    with store.create(record(1)) as file:
        for state in (RecordState.HANDED_OVER, RecordState.RETURNED, RecordState.RETURNED):
            written = file.write(state=state)
            assert decode_file(Path(file.path).read_bytes())[2] == written == file.record
    assert [entry.record for entry in store.entries()] == [written]
    with store.open("00000001-source.record") as file:
        assert file.record == written
        again = file.write(settled=True)
    assert store.entries()[0].record == again


def test_a_second_process_cannot_change_a_record_and_sees_that_it_is_in_use(store: RecordStore) -> None:
    with store.create(record(1)):
        other = f"""
from parmig.engine.records.record_store import RecordStore
from parmig.errors import HostRefusedError
with RecordStore({store.directory!r}) as store:
    print(store.entries()[0].in_use)
    try:
        store.open("00000001-source.record")
    except HostRefusedError as error:
        print(error)
"""
        said = subprocess.run([sys.executable, "-c", other], capture_output=True, text=True, check=True).stdout
        assert said.startswith("True\n")
        assert "in use by a running parmig" in said
    assert not store.entries()[0].in_use


def test_a_session_has_one_record_of_a_side(store: RecordStore) -> None:
    with store.create(record(1)), store.create(record(1, side="destination")):
        assert len(store.entries()) == 2
        with pytest.raises(HostRefusedError, match="File exists"):
            store.create(record(1))


# -- what is refused ---------------------------------------------------------------------------------


def test_a_directory_that_others_may_use_is_refused(tmp_path: Path) -> None:
    for mode in (0o755, 0o770, 0o701):
        tmp_path.chmod(mode)
        with pytest.raises(HostRefusedError, match=f"has mode {mode:04o}.*expected mode 0700.*--state-dir"):
            RecordStore(str(tmp_path))
    tmp_path.chmod(0o700)


def test_a_link_of_another_user_in_a_shared_folder_is_not_followed(shared_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    link = shared_folder / "link"
    link.symlink_to(tmp_path / "real")
    RecordStore(str(link)).close()
    os.chown(link, 65534, 65534, follow_symlinks=False)
    for path in (link, link / "below"):
        with pytest.raises(HostRefusedError, match=r"cannot be used: .*/link belongs to user 65534"):
            RecordStore(str(path))
    assert not list((tmp_path / "real").iterdir())


def test_a_file_in_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HostRefusedError, match="cannot be used: Not a directory"):
        RecordStore(str(tmp_path / "file"))


def test_links_pipes_and_files_that_others_may_write_are_no_records(store: RecordStore, tmp_path: Path) -> None:
    with store.create(record(1)) as file:
        path = Path(file.path)
    directory = Path(store.directory)
    (directory / "00000002-source.record").symlink_to(path)
    os.mkfifo(directory / "00000003-source.record", 0o600)
    os.link(path, directory / "00000004-source.record")
    loose = directory / "00000005-source.record"
    loose.write_bytes(path.read_bytes())
    loose.chmod(0o620)
    (directory / "notes.txt").write_text("of somebody else")
    for entry in store.entries():
        assert entry.record is None
        assert entry.problem
        assert not has_ended(entry)
        with pytest.raises(HostRefusedError):
            store.open(entry.name)
    with pytest.raises(HostRefusedError, match="cannot be written"):
        store.create(record(2))  # it does not write through the link


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A directory on a file system with one free block, which is not enough for a record."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    place = tmp_path / "full"
    place.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k,mode=0700", "parmig-test", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_found_when_the_record_is_made(full_disk: Path) -> None:
    with RecordStore(str(full_disk)) as store:
        with pytest.raises(HostRefusedError, match="No space left on device; nothing was touched"):
            store.create(record(1))
        assert list(full_disk.iterdir()) == []


def test_a_write_that_fails_is_an_error_and_the_record_before_it_stays(store: RecordStore) -> None:
    file = store.create(record(1))
    before = file.record
    read_only = os.open(file.path, os.O_RDONLY)
    os.dup2(read_only, file._fd)  # the lock is gone with it, which does not matter here
    os.close(read_only)
    with pytest.raises(RecordError, match="cannot be written: Bad file descriptor"):
        file.write(state=RecordState.HANDED_OVER)
    assert file.record == before == store.entries()[0].record
    file.close()


# -- bounds ------------------------------------------------------------------------------------------


def fill(store: RecordStore, count: int, **fields: object) -> None:
    for number in range(count):
        store.create(record(number, **fields)).close()


def test_what_ended_long_ago_is_removed_and_what_is_not_settled_stays(store: RecordStore) -> None:
    old_ns = time.time_ns() - KEPT_NS - 10**9
    kept = {"changed_ns": old_ns, "state": RecordState.HANDED_OVER}
    for number, fields in enumerate(
        [
            {"changed_ns": old_ns},
            {"changed_ns": old_ns, "state": RecordState.COMPLETED, "settled": True},
            {"state": RecordState.COMPLETED, "settled": True},
            kept,
        ]
    ):
        store.create(record(number, **fields)).close()
    store.create(record(9)).close()
    names = {entry.name[:8] for entry in store.entries()}
    assert names == {"00000002", "00000003", "00000009"}


def test_there_are_never_more_than_so_many_and_the_oldest_that_ended_goes(store: RecordStore) -> None:
    began_ns = time.time_ns()
    for number in range(MAX_FILES + 3):
        fields = {"state": RecordState.COMPLETED, "settled": True, "changed_ns": began_ns + number}
        store.create(record(number, **fields)).close()
    names = sorted(entry.name[:8] for entry in store.entries())
    assert names == [f"{number:08x}" for number in range(3, MAX_FILES + 3)]


def test_records_that_are_all_not_settled_keep_a_new_one_out(
    store: RecordStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_store, "MAX_FILES", 4)
    fill(store, 4, state=RecordState.HANDED_OVER)
    with pytest.raises(HostRefusedError, match=r"4 records of hand-overs that are not settled.*parmig recover"):
        store.create(record(9))
    assert len(store.entries()) == 4


def test_a_file_whose_writer_was_killed_while_it_made_it_is_removed(store: RecordStore) -> None:
    Path(store.directory, "00000001-source.record").touch(mode=0o600)
    assert has_ended(store.entries()[0])
    store.create(record(2)).close()
    assert [entry.name for entry in store.entries()] == ["00000002-source.record"]


def test_a_damaged_record_stays_for_people_to_look_at(store: RecordStore) -> None:
    with store.create(record(1)) as file:
        Path(file.path).write_bytes(bytes(FILE_BYTES))
    store.create(record(2)).close()
    (damaged,) = (entry for entry in store.entries() if entry.record is None)
    assert "neither of its two slots is whole" in damaged.problem


# -- reading from another process --------------------------------------------------------------------


def test_a_reader_sees_each_change_also_once_the_file_has_no_name(store: RecordStore) -> None:
    with store.create(record(1)) as file:
        reader = RecordReader(file.path)
        assert reader.read().state is RecordState.OPEN
        file.remove()
        file.write(state=RecordState.HANDED_OVER)
        assert reader.read().state is RecordState.HANDED_OVER
        reader.close()
    with pytest.raises(RecordError, match="cannot be opened"):
        RecordReader(file.path)


def test_the_directory_is_that_of_the_environment_or_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARMIG_STATE_DIR", "/elsewhere")
    assert default_directory() == "/elsewhere"
    monkeypatch.delenv("PARMIG_STATE_DIR")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_directory() == "/var/lib/parmig"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_STATE_HOME", "/home/u/state")
    assert default_directory() == "/home/u/state/parmig"
