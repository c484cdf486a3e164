# SPDX-License-Identifier: Apache-2.0
"""Whatever goes wrong: a guest that is saved runs on, no half file has a name, and no guest begins from a bad one."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import psutil
import pytest

from parmig.engine.reporting.report import Report
from parmig.guests.registry import open_guest
from parmig.snapshot.opened import OpenSnapshot
from parmig.snapshot.restorer import SnapshotRestorer
from parmig.snapshot.snapshot_config import RestoreConfig
from parmig.units import MIB
from tests.integration.sides import Command, HeldGuest, is_alive, kill, never_ran, runs_on, until
from tests.integration.snapshots import FORMATS, Saving, goes_on, refused, restore, save, untouched

SLOW = "memory=32MiB,rate=200MiB/s"
SLOW_RATE = {"max_bandwidth_bytes_per_s": 40 * MIB}
"""Never converges: every round takes most of a second."""

every_format = pytest.mark.parametrize("format_", FORMATS)


def failed(report: Report, kind: str, *words: str, code: int = 1) -> None:
    """It did not complete, for this reason."""
    assert report.error is not None
    assert (report.error.type, report.exit_code) == (kind, code), report.error
    assert report.status == ("cancelled" if kind == "CancelledError" else "failed")
    for word in words:
        assert word in report.error.message


# -- saving --------------------------------------------------------------------------------------------


@contextmanager
def small_disk(path: Path, size: str) -> Iterator[Path]:
    """A tmpfs of that size."""
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "parmig-test", str(path)]
    done = subprocess.run(mount, capture_output=True)
    if done.returncode:
        if os.environ.get("CI"):
            pytest.fail(f"tests on a full disk are mandatory where CI is set: {done.stderr.decode()}")
        pytest.skip(f"cannot mount: {done.stderr.decode()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


@every_format
def test_a_full_disk_while_pages_are_written_fails_and_the_guest_runs_on(tmp_path: Path, format_: str) -> None:
    with small_disk(tmp_path / "disk", "8M") as disk, HeldGuest("memory=16MiB,rate=20MiB/s") as source:
        failed(save(source, disk / "s", format=format_), "SnapshotError", "No space left", "free some space")
        assert os.listdir(disk) == []
        runs_on(source)


def test_a_full_disk_while_the_guest_is_paused_fails_and_the_guest_runs_on(tmp_path: Path) -> None:
    # Of 2048 pages 2045 are memory's and one the head's: the state, with 4 bytes a page, needs more than the others.
    with small_disk(tmp_path / "disk", "8M") as disk, HeldGuest("memory=8180KiB,rate=0") as source:
        failed(save(source, disk / "s"), "SnapshotError", "device state", "No space left")
        assert os.listdir(disk) == []
        runs_on(source)


def kill_worker(saving: Saving) -> None:
    os.kill(saving.saver._pool.pids()[1], signal.SIGKILL)


def kill_guest(saving: Saving) -> None:
    kill(saving.guest.pid)


def cancel(saving: Saving) -> None:
    saving.saver.cancel()


@every_format
@pytest.mark.parametrize(
    ("what", "kind", "code"),
    [(kill_worker, "WorkerError", 1), (kill_guest, "GuestError", 1), (cancel, "CancelledError", 130)],
)
def test_trouble_while_pages_are_written_leaves_no_file(
    tmp_path: Path, format_: str, what: Callable[[Saving], None], kind: str, code: int
) -> None:
    with HeldGuest(SLOW) as source:
        with Saving(source, tmp_path / "s", format=format_, **SLOW_RATE) as saving:
            saving.at_round(1)
            what(saving)
            failed(saving.report(), kind, code=code)
        assert os.listdir(tmp_path) == []
        if what is not kill_guest:
            runs_on(source)


@pytest.mark.parametrize("gate", ["pause", "save_state"])
def test_a_cancel_in_the_pause_lets_the_guest_go_on(tmp_path: Path, gate: str) -> None:
    with HeldGuest("memory=16MiB,rate=20MiB/s", hold=(gate,)) as source:
        with Saving(source, tmp_path / "s") as saving:
            source.gates[gate].wait()
            saving.saver.cancel()
            source.open_gates()
            failed(saving.report(), "CancelledError", code=130)
        assert os.listdir(tmp_path) == []
        runs_on(source)


def test_a_file_that_comes_up_meanwhile_is_left_alone(tmp_path: Path) -> None:
    with HeldGuest("memory=8MiB", hold=("save_state",)) as source:
        with Saving(source, tmp_path / "s") as saving:
            source.gates["save_state"].wait()
            (tmp_path / "s").write_text("another's")
            source.open_gates()
            failed(saving.report(), "SnapshotError", "created in the meantime")
        assert (tmp_path / "s").read_text() == "another's"
        runs_on(source)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_saver_that_is_killed_or_interrupted_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    arguments = ["save", str(tmp_path / "s"), "--guest", f"synthetic:{SLOW}", "--max-bandwidth", "40MiB/s", "--json"]
    with Command(*arguments, "--workers", "2") as command:
        command.wait_for("active, round 1")
        family = psutil.Process(command.process.pid).children(recursive=True)
        command.process.send_signal(number)
        code, report = command.end()
        if number == signal.SIGINT:
            assert (code, report["status"]) == (130, "cancelled"), command.errors
        until(lambda: not any(is_alive(one) for one in family), f"the end of {family}")
    assert os.listdir(tmp_path) == []


def test_a_directory_that_is_not_there_is_refused_before_anything_begins(tmp_path: Path) -> None:
    with HeldGuest("memory=8MiB") as source:
        report = save(source, tmp_path / "none" / "s")
        failed(report, "HostRefusedError", str(tmp_path / "none"), code=3)
        failed(save(source, tmp_path), "HostRefusedError", "is not a file", code=3)
        assert not report.rounds
        runs_on(source)


# -- restoring -----------------------------------------------------------------------------------------

SHAPE = "memory=8MiB,blocks=2"


@pytest.fixture(scope="module", params=FORMATS)
def snapshot(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The content of a snapshot of each format."""
    path = tmp_path_factory.mktemp("snapshot") / "s"
    with HeldGuest(f"{SHAPE},rate=20MiB/s,touched=50%") as source:
        assert save(source, path, format=request.param).error is None
    return path.read_bytes()


def test_a_file_that_was_cut_short_is_refused_wherever_it_ends(tmp_path: Path, snapshot: bytes) -> None:
    body = snapshot.rindex(b"parmig-snapshot")
    json_end = len(snapshot[:body].rstrip(b"\n"))
    lengths = [0, 3, 8, 40, 100, len(snapshot) // 3, json_end - 5, json_end, body, body + 20, len(snapshot) - 1]
    path = tmp_path / "s"
    with HeldGuest(SHAPE, incoming=True) as copy:
        for length in lengths:
            path.write_bytes(snapshot[:length])
            refused(restore(copy, path), str(path))
            untouched(copy)
        path.write_bytes(snapshot + b"more")
        refused(restore(copy, path), str(path))
        path.write_bytes(snapshot)
        assert restore(copy, path).error is None  # so it was none the worse for it
        goes_on(copy)


def test_a_flipped_bit_anywhere_is_refused(tmp_path: Path, snapshot: bytes) -> None:
    path = tmp_path / "s"
    path.write_bytes(snapshot)
    with OpenSnapshot(path) as opened:
        heads = [0, 5, 9, 20, 60, 70]
        places = [one.mapped.pages_offset_bytes + 4097 for one in opened.blocks if one.mapped is not None]
        bitmaps = [one.mapped.bitmap_offset_bytes + 1 for one in opened.blocks if one.mapped is not None]
    body = snapshot.rindex(b"parmig-snapshot")
    ends = [snapshot.index(b"ledger"), snapshot.index(b'"devices"'), body - 1, body, body + 30, len(snapshot) - 3]
    anywhere = [random.Random(5).randrange(body) for _ in range(4)]
    with HeldGuest(SHAPE, incoming=True) as copy, path.open("r+b", buffering=0) as file:
        for at in [*heads, *places, *bitmaps, *ends, *anywhere]:
            os.pwrite(file.fileno(), bytes([snapshot[at] ^ 1 << at % 8]), at)
            refused(restore(copy, path), str(path))
            untouched(copy)
            os.pwrite(file.fileno(), snapshot[at : at + 1], at)
        assert restore(copy, path).error is None
        goes_on(copy)


@pytest.mark.parametrize(
    ("guest", "words"),
    [
        ("synthetic:memory=16MiB,blocks=2", ["'ram0'", "'ram1'", "4 MiB in the file, 8 MiB here"]),
        ("synthetic:memory=8MiB", ["RAM block 'ram1': only in the file"]),
        ("synthetic:memory=12MiB,blocks=3", ["RAM block 'ram2': only here"]),
        ("tiny:4MiB", ["guest kind: 'synthetic' in the file, 'tiny' here"]),
    ],
)
def test_another_guest_is_refused_by_every_mismatch(
    tmp_path: Path, snapshot: bytes, guest: str, words: list[str]
) -> None:
    import docs.examples.tiny_guest  # noqa: F401 - registers its scheme

    (tmp_path / "s").write_bytes(snapshot)
    with open_guest(guest, incoming=True) as copy:
        refused(restore(copy, tmp_path / "s"), *words)
        assert all(os.fstat(one.fd).st_blocks == 0 for one in copy.memory())


def test_another_version_of_the_machine_is_refused(tmp_path: Path, snapshot: bytes) -> None:
    (tmp_path / "s").write_bytes(snapshot)
    with HeldGuest(SHAPE, incoming=True) as copy:
        info = msgspec.structs.replace(copy.info(), machine="synthetic-99")
        copy.info = lambda: info  # type: ignore[method-assign]
        refused(restore(copy, tmp_path / "s"), "machine type", "'synthetic-99' here")
        untouched(copy)


def test_what_is_no_snapshot_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("This is no snapshot. " * 1000)
    os.mkfifo(tmp_path / "fifo")
    with HeldGuest(SHAPE, incoming=True) as copy:
        for name, words in {"text": "not a snapshot", "fifo": "is not a file", "none": "No such file"}.items():
            refused(restore(copy, tmp_path / name), words)
        refused(restore(copy, tmp_path), "is not a file")
        untouched(copy)


def test_a_full_memory_file_fails_and_the_guest_never_runs(tmp_path: Path, snapshot: bytes) -> None:
    (tmp_path / "s").write_bytes(snapshot)
    with small_disk(tmp_path / "disk", "2M") as disk, HeldGuest(SHAPE, incoming=True, directory=disk) as copy:
        failed(restore(copy, tmp_path / "s"), "MemoryFullError", "free space on its file system")
        never_ran(copy)


def test_a_state_that_the_guest_does_not_take_fails_and_it_never_runs(tmp_path: Path, snapshot: bytes) -> None:
    (tmp_path / "s").write_bytes(snapshot)
    with HeldGuest(SHAPE, incoming=True) as copy:
        copy._state_limit_bytes = 100
        failed(restore(copy, tmp_path / "s"), "StateError", "at most 100")
        never_ran(copy)


def disturbed(copy: HeldGuest, path: Path, disturb: Callable[[SnapshotRestorer], None]) -> Report:
    """Restore, and do that when everything is checked and the first page is about to be placed."""
    restorer = SnapshotRestorer(copy, path, RestoreConfig(workers=2))
    prepare = copy.prepare_incoming

    def prepare_and_disturb() -> None:
        prepare()
        disturb(restorer)

    copy.prepare_incoming = prepare_and_disturb  # type: ignore[method-assign]
    return restorer.start()


def kill_reader(restorer: SnapshotRestorer) -> None:
    assert restorer._readers is not None
    os.kill(restorer._readers._pool.pids()[0], signal.SIGKILL)


def test_a_worker_that_dies_while_it_reads_fails_and_the_guest_never_runs(tmp_path: Path, snapshot: bytes) -> None:
    (tmp_path / "s").write_bytes(snapshot)
    with HeldGuest(SHAPE, incoming=True) as copy:
        failed(disturbed(copy, tmp_path / "s", kill_reader), "WorkerError", "load worker 0", "signal 9")
        never_ran(copy)


def test_a_guest_that_dies_while_it_is_restored_is_told(tmp_path: Path, snapshot: bytes) -> None:
    (tmp_path / "s").write_bytes(snapshot)
    with HeldGuest(SHAPE, incoming=True) as copy:
        failed(disturbed(copy, tmp_path / "s", lambda _: kill(copy.pid)), "GuestError")


def test_a_cancel_while_a_guest_is_restored_ends_it(tmp_path: Path, snapshot: bytes) -> None:
    (tmp_path / "s").write_bytes(snapshot)
    with HeldGuest(SHAPE, incoming=True) as copy:
        failed(disturbed(copy, tmp_path / "s", SnapshotRestorer.cancel), "CancelledError", code=130)
        never_ran(copy)
