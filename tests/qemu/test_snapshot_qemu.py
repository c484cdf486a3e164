# SPDX-License-Identifier: Apache-2.0
"""Snapshots and a real QEMU: it loads what parmig writes, and parmig restores what it writes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.integration.sides import Command
from tests.qemu.machines import MIB, QemuMachine, wait_until

pytestmark = pytest.mark.qemu

MAPPED_RAM = (9, 0)
"""QEMU reads and writes mapped-ram files from here on."""
COMPRESS_UNTIL = (9, 0)
"""The last QEMU that compresses pages."""
PRIVATE = ["-machine", "pc,memory-backend=ram0", "-object", f"memory-backend-ram,id=ram0,size={256 * MIB}"]
"""Private memory of the same name: the file does not depend on how memory is backed."""
SMALL_Q35 = [
    *("-machine", "q35,memory-backend=ram0"),
    *("-object", "memory-backend-file,id=ram0,size=128M,mem-path={dir}/ram,share=on"),
]


class Saved(msgspec.Struct):
    """A file, and the guest's last tick before it began to be made and after it was there."""

    path: Path
    report: dict[str, Any]
    before: tuple[int, str]
    after: tuple[int, str]


@pytest.fixture(scope="module")
def source(initrd: Path) -> Iterator[QemuMachine]:
    """A Linux that ticks and writes; every test leaves it running."""
    with QemuMachine(initrd, rate=10) as machine:
        machine.wait_for_serial("TICK 2 ")
        yield machine


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Path]:
    """A directory on the file system of the machines."""
    path = Path("/dev/shm") / f"parmig-shelf-{os.getpid()}-{tmp_path.name}"
    path.mkdir()
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def analyzer() -> str:
    """QEMU's own analyze-migration.py; ``.ci/fetch-analyzer`` fetches it."""
    path = os.environ.get("PARMIG_ANALYZER", "")
    if not os.path.exists(path):
        if os.environ.get("CI"):
            pytest.fail("PARMIG_ANALYZER names no analyze-migration.py; this test is mandatory where CI is set")
        pytest.skip("PARMIG_ANALYZER names no analyze-migration.py; .ci/fetch-analyzer DIRECTORY fetches it")
    return path


def save(machine: QemuMachine, path: Path, *options: str) -> Saved:
    """Save the guest with the command."""
    before = machine.ticks()[-1]
    command = Command("save", str(path), "--guest", f"qemu:{machine.socket}", "--workers", "2", "--json", *options)
    with command:
        code, report = command.end()
        assert (code, report["status"]) == (0, "completed"), command.errors
    return Saved(path, report, before, machine.ticks()[-1])


def restore(machine: QemuMachine, path: Path, *options: str) -> dict[str, Any]:
    """Restore the guest with the command; its report."""
    with Command("restore", str(path), "--guest", f"qemu:{machine.socket}", "--json", *options) as command:
        code, report = command.end()
        assert (code, report["status"]) == (0, "completed"), command.errors
        return report


def refused(machine: QemuMachine, path: Path) -> str:
    """Restoring is refused, and QEMU waits on; the reason."""
    with Command("restore", str(path), "--guest", f"qemu:{machine.socket}", "--json") as command:
        code, report = command.end()
    assert (code, report["error"]["type"]) == (3, "SnapshotRefusedError"), report
    assert machine.ask("query-status")["status"] == "inmigrate"
    assert (machine.directory / "ram").stat().st_blocks == 0
    return str(report["error"]["message"])


def set_capabilities(machine: QemuMachine, *names: str, state: bool = True) -> None:
    items = [{"capability": name, "state": state} for name in names]
    machine.ask("migrate-set-capabilities", capabilities=items)


def load(machine: QemuMachine, path: Path, *capabilities: str) -> None:
    """QEMU loads the file by itself."""
    inside = machine.directory / "file"  # it may run in a chroot that has only this directory
    os.link(path, inside)
    set_capabilities(machine, *capabilities)
    kind = "file:" if "mapped-ram" in capabilities else "exec:cat "
    machine.ask("migrate-incoming", uri=f"{kind}{inside}")
    wait_until(lambda: machine.ask("query-status")["status"] != "inmigrate", "QEMU to load the file")


def begins_where(copy: QemuMachine, saved: Saved) -> None:
    """The guest ticks, from where it was when it was saved, and what it keeps is unchanged."""
    copy.wait_for_ticks(3)
    ticks = copy.ticks()
    assert saved.before[0] <= ticks[0][0] <= saved.after[0] + 1
    assert [number for number, _ in ticks] == list(range(ticks[0][0], ticks[0][0] + len(ticks)))
    assert {md5 for _, md5 in ticks} == {saved.before[1]}


@contextmanager
def stock(path: Path, *capabilities: str) -> Iterator[QemuMachine]:
    """A QEMU without shared memory that has loaded the file by itself."""
    with QemuMachine(incoming=True, memory=PRIVATE) as machine:
        load(machine, path, *capabilities)
        yield machine


# -- written by parmig ---------------------------------------------------------------------------------


def test_a_running_linux_goes_on_after_a_short_pause_as_before(source: QemuMachine, shelf: Path) -> None:
    settings, fds = source.settings(), source.fds()
    saved = save(source, shelf / "s")
    assert saved.report["downtime_ms"] == pytest.approx(sum(saved.report["downtime_phases_ms"].values()))
    assert saved.report["rounds"][-1]["paused"]
    source.wait_for_ticks(3)
    assert {md5 for _, md5 in source.ticks()} == {saved.before[1]}
    assert source.ask("query-status")["status"] == "running"
    assert (source.settings(), source.tracked_mappings()) == (settings, 0)
    wait_until(lambda: sorted(source.fds().values()) == sorted(fds.values()), "QEMU's descriptors as before")


def test_a_stock_qemu_loads_the_sequential_file_and_the_guest_goes_on(source: QemuMachine, shelf: Path) -> None:
    saved = save(source, shelf / "s", "--format", "stream")
    with stock(saved.path) as copy:
        begins_where(copy, saved)


@pytest.mark.parametrize("capabilities", [("mapped-ram",), ("mapped-ram", "multifd")], ids=" ".join)
def test_a_stock_qemu_loads_the_mapped_file_and_the_guest_goes_on(
    source: QemuMachine, shelf: Path, capabilities: tuple[str, ...]
) -> None:
    if source.version() < MAPPED_RAM:
        pytest.skip("this QEMU cannot load mapped-ram")
    saved = save(source, shelf / "s")
    with stock(saved.path, *capabilities) as copy:
        begins_where(copy, saved)


@pytest.mark.parametrize("format_", ["stream", "mapped-ram"])
def test_a_linux_begins_again_from_its_file(source: QemuMachine, shelf: Path, format_: str) -> None:
    saved = save(source, shelf / "s", "--format", format_)
    with QemuMachine(incoming=True) as copy:
        settings = copy.settings()
        report = restore(copy, saved.path)
        assert (report["verified"], report["snapshot"]["format"]) == (True, format_)
        begins_where(copy, saved)
        assert copy.settings() == settings


def read_by(analyzer: str, path: Path) -> dict[str, Any]:
    """What analyze-migration.py says of the file."""
    done = subprocess.run([sys.executable, analyzer, "-f", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_qemus_own_program_reads_the_sequential_file(source: QemuMachine, shelf: Path, analyzer: str) -> None:
    found = read_by(analyzer, save(source, shelf / "s", "--format", "stream").path)
    (ram,) = [value for name, value in found.items() if name.startswith("ram")]
    assert int(ram["section sizes"]["ram0"], 16) == 256 * MIB
    assert {"ram0", "vga.vram"} <= {name.rpartition("/")[2] for name in ram["section sizes"]}
    assert any(name.startswith("timer") for name in found)


def test_qemus_own_program_reads_the_file_of_a_synthetic_guest(tmp_path: Path, analyzer: str) -> None:
    guest = "synthetic:memory=16MiB,rate=20MiB/s"
    with Command("save", str(tmp_path / "s"), "--guest", guest, "--format", "stream", "--json") as command:
        assert command.end()[0] == 0, command.errors
    assert any(name.startswith("ledger") for name in read_by(analyzer, tmp_path / "s"))


# -- written by QEMU -----------------------------------------------------------------------------------


@contextmanager
def written_by_qemu(machine: QemuMachine, path: Path, uri: str, *capabilities: str) -> Iterator[Saved]:
    """QEMU has written a file by itself; the guest is paused while inside, and runs afterwards."""
    inside = machine.directory / "file"
    before = machine.ticks()[-1]
    kept = {name: machine.ask("query-migrate-parameters")[name] for name in ("max-bandwidth", "downtime-limit")}
    slow = "xbzrle" in capabilities  # only pages that are sent again are encoded
    set_limits(machine, 40 * MIB if slow else 1 << 34, 1 if slow else 300)
    set_capabilities(machine, *capabilities)
    try:
        machine.ask("migrate", uri=uri.format(inside))
        if slow:
            wait_until(lambda: has_encoded_pages(machine, uri.format(inside)), "pages that are encoded", 120)
            set_limits(machine, 1 << 34, 2000)
        wait_until(lambda: machine.ask("query-migrate").get("status") == "completed", "QEMU to write the file")
        inside.rename(path)
        yield Saved(path, {}, before, machine.ticks()[-1])
    finally:
        machine.ask("migrate_cancel")
        wait_until(lambda: machine.ask("query-migrate")["status"] != "cancelling", "the end of the migration")
        set_capabilities(machine, *capabilities, state=False)
        set_limits(machine, kept["max-bandwidth"], kept["downtime-limit"])
        machine.ask("cont")


def has_encoded_pages(machine: QemuMachine, uri: str) -> bool:
    """Whether QEMU has sent pages as XBZRLE. When it is through without any, it begins again."""
    found = machine.ask("query-migrate")
    encoded = int(found.get("xbzrle-cache", {}).get("pages", 0)) > 0
    if found["status"] == "completed" and not encoded:  # a guest that hardly got to run writes little
        machine.ask("cont")
        machine.ask("migrate", uri=uri)
    return encoded


def set_limits(machine: QemuMachine, bandwidth_bytes_per_s: int, downtime_ms: int) -> None:
    machine.ask("migrate-set-parameters", max_bandwidth=bandwidth_bytes_per_s, downtime_limit=downtime_ms)


def memory_digest(machine: QemuMachine) -> str:
    with (machine.directory / "ram").open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


@pytest.mark.parametrize("encoded", [False, True], ids=["plain", "encoded"])
def test_what_qemu_writes_becomes_the_same_memory_as_when_qemu_loads_it(
    source: QemuMachine, shelf: Path, encoded: bool
) -> None:
    """Bit for bit: QEMU 7.2 loses writes of its own under TCG, so what the guest does proves nothing."""
    unpack = ["compress"] if encoded and source.version() <= COMPRESS_UNTIL else []
    capabilities = ["xbzrle", *unpack] if encoded else []
    digests = []
    with written_by_qemu(source, shelf / "s", "exec:cat > {}", *capabilities):
        for loads_itself in (True, False):
            with QemuMachine(incoming=True, extra=("-S",)) as copy:
                if loads_itself:
                    load(copy, shelf / "s", *unpack)
                else:
                    report = restore(copy, shelf / "s", "--paused")
                    assert report["verified"] is None
                    assert "no digest" in report["snapshot"]["notes"][0]
                digests.append(memory_digest(copy))
    assert digests[0] == digests[1]


@pytest.mark.parametrize("capabilities", [("mapped-ram",), ("mapped-ram", "multifd"), ()], ids=" ".join)
def test_files_that_a_newer_qemu_writes_without_help_are_restored(
    source: QemuMachine, shelf: Path, capabilities: tuple[str, ...]
) -> None:
    if source.version() < MAPPED_RAM:
        pytest.skip("this QEMU needs a program that writes the file")
    with written_by_qemu(source, shelf / "s", "file:{}", *capabilities) as saved:
        pass
    with QemuMachine(incoming=True) as copy:
        report = restore(copy, saved.path)
        assert report["snapshot"]["format"] == ("mapped-ram" if capabilities else "stream")
        begins_where(copy, saved)


# -- trouble -------------------------------------------------------------------------------------------

HOLD = """
import sys, time
from parmig.guests.qemu.qemu_guest import QemuGuest
def hold(*_):
    print("paused", file=sys.stderr, flush=True)
    time.sleep(600)
QemuGuest.save_snapshot = hold
"""


@pytest.mark.parametrize(("prelude", "line"), [("", "active, round 1"), (HOLD, "paused")], ids=["running", "paused"])
def test_a_saver_that_is_killed_leaves_the_guest_running_and_no_file(
    source: QemuMachine, shelf: Path, prelude: str, line: str
) -> None:
    settings = source.settings()
    limits = [] if prelude else ["--max-bandwidth", "40MiB/s"]
    with Command("save", str(shelf / "s"), "--guest", f"qemu:{source.socket}", *limits, prelude=prelude) as command:
        command.wait_for(line)
        assert source.ask("query-status")["running"] is not bool(prelude)
        command.process.kill()
        command.process.wait()
    assert os.listdir(shelf) == []
    wait_until(lambda: source.ask("query-status")["running"], "the guest to go on")
    wait_until(lambda: source.tracked_mappings() == 0, "the end of the tracking")
    wait_until(lambda: source.settings() == settings, "the settings as before")
    source.wait_for_ticks(3)


def test_another_machine_and_a_damaged_file_are_refused_and_qemu_waits_on(source: QemuMachine, shelf: Path) -> None:
    path = save(source, shelf / "s").path
    with QemuMachine(incoming=True, memory=SMALL_Q35, memory_bytes=128 * MIB) as other:
        message = refused(other, path)
        for words in (
            "machine type: 'pc-",
            "'ram0': memory size 256 MiB in the file, 128 MiB here",
            "only in the file",
        ):
            assert words in message
    with path.open("r+b") as file:
        file.seek(3 * MIB)
        file.write(b"!")
    with QemuMachine(incoming=True) as copy:
        assert "is damaged" in refused(copy, path)
