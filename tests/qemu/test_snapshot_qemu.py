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

import pytest

from tests.integration.sides import Command
from tests.qemu.machines import MIB, QemuMachine, wait_until

pytestmark = pytest.mark.qemu

MAPPED_RAM = (9, 0)
"""QEMU reads and writes mapped-ram files from here on."""
PRIVATE = ["-machine", "pc,memory-backend=ram0", "-object", f"memory-backend-ram,id=ram0,size={256 * MIB}"]
"""Memory that parmig could not reach; a file does not need it to be shared."""


def has_mapped_ram(machine: QemuMachine) -> bool:
    return machine.version() >= MAPPED_RAM


def save(machine: QemuMachine, path: Path, *options: str) -> dict[str, Any]:
    """Save the guest with the command; its report."""
    with Command(
        "save", str(path), "--guest", f"qemu:{machine.socket}", "--workers", "2", "--json", *options
    ) as command:
        code, report = command.end()
        assert (code, report["status"]) == (0, "completed"), command.errors
        return report


def restore(machine: QemuMachine, path: Path, *options: str) -> dict[str, Any]:
    """Restore the guest with the command; its report."""
    with Command("restore", str(path), "--guest", f"qemu:{machine.socket}", "--json", *options) as command:
        code, report = command.end()
        assert (code, report["status"]) == (0, "completed"), command.errors
        return report


def set_capabilities(machine: QemuMachine, *names: str) -> None:
    items = [{"capability": name, "state": True} for name in names]
    machine.ask("migrate-set-capabilities", capabilities=items)


def load(machine: QemuMachine, uri: str) -> None:
    """QEMU loads by itself."""
    machine.ask("migrate-incoming", uri=uri)
    wait_until(lambda: machine.ask("query-status")["status"] != "inmigrate", 30, "QEMU to load the file")


def began_at(copy: QemuMachine, last: tuple[int, str]) -> None:
    """The guest ticks, from just after the tick *last* on, and what it keeps is unchanged."""
    copy.wait_for_ticks(3)
    ticks = copy.ticks()
    assert last[0] < ticks[0][0] <= last[0] + 3
    assert [number for number, _ in ticks] == list(range(ticks[0][0], ticks[0][0] + len(ticks)))
    assert {md5 for _, md5 in ticks} == {last[1]}


@contextmanager
def stock(path: Path, *capabilities: str) -> Iterator[QemuMachine]:
    """A QEMU without shared memory that has loaded the file by itself."""
    with QemuMachine(incoming=True, memory=PRIVATE) as machine:
        inside = machine.directory / "file"  # QEMU may run in a chroot that has only this directory
        os.link(path, inside)
        if capabilities:
            set_capabilities(machine, *capabilities)
        load(machine, f"file:{inside}" if capabilities else f"exec:cat {inside}")
        yield machine


@pytest.fixture
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory on the file system of the machines."""
    path = Path("/dev/shm") / tmp_path_factory.mktemp("shelf").name
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


def test_a_running_linux_is_saved_in_a_short_pause_and_goes_on(linux_guest: QemuMachine, shelf: Path) -> None:
    settings, fds = linux_guest.settings(), linux_guest.fds()
    before = linux_guest.ticks()[-1]
    report = save(linux_guest, shelf / "s")
    assert report["downtime_ms"] == pytest.approx(sum(report["downtime_phases_ms"].values()))
    linux_guest.wait_for_ticks(3)
    assert {md5 for _, md5 in linux_guest.ticks()} == {before[1]}
    assert linux_guest.ask("query-status")["status"] == "running"
    assert (linux_guest.settings(), linux_guest.tracked_mappings()) == (settings, 0)
    assert set(linux_guest.fds().values()) == set(fds.values())


def test_a_stock_qemu_loads_the_sequential_file_and_the_guest_goes_on(
    initrd: Path, shelf: Path, request: pytest.FixtureRequest
) -> None:
    with QemuMachine(initrd, rate=10) as source:
        source.wait_for_serial("TICK 2 ")
        save(source, shelf / "s", "--format", "stream")
        last = source.ticks()[-1]
        source.wait_for_ticks(2)
        save(source, shelf / "mapped")
        at_mapped = source.ticks()[-1]
        source.wait_for_ticks(1)
        version = source.version()
    with stock(shelf / "s") as copy:
        began_at(copy, last)
    if version >= MAPPED_RAM:
        for capabilities in (("mapped-ram",), ("mapped-ram", "multifd")):
            with stock(shelf / "mapped", *capabilities) as copy:
                began_at(copy, at_mapped)


@pytest.mark.parametrize("format_", ["stream", "mapped-ram"])
def test_a_linux_that_writes_begins_again_from_its_file(initrd: Path, shelf: Path, format_: str) -> None:
    with QemuMachine(initrd, rate=20) as source:
        source.wait_for_serial("TICK 2 ")
        save(source, shelf / "s", "--format", format_)
        last = source.ticks()[-1]
        source.wait_for_ticks(1)
    with QemuMachine(incoming=True) as copy:
        settings = copy.settings()
        report = restore(copy, shelf / "s")
        assert report["verified"] is True
        began_at(copy, last)
        assert copy.settings() == settings


def test_qemus_own_program_reads_the_sequential_file(bare_guest: QemuMachine, shelf: Path, analyzer: str) -> None:
    save(bare_guest, shelf / "s", "--format", "stream")
    done = subprocess.run([sys.executable, analyzer, "-f", str(shelf / "s")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    (ram,) = [value for name, value in found.items() if name.startswith("ram")]
    assert ram["section sizes"]["ram0"] == f"{256 * MIB:#018x}"
    assert {"ram0", "vga.vram"} <= {name.rpartition("/")[2] for name in ram["section sizes"]}
    assert any(name.startswith("timer") for name in found)


def test_qemus_own_program_reads_the_file_of_a_synthetic_guest(tmp_path: Path, analyzer: str) -> None:
    with Command(
        "save", str(tmp_path / "s"), "--guest", "synthetic:memory=16MiB,rate=20MiB/s", "--format", "stream"
    ) as command:
        assert command.end()[0] == 0, command.errors
    done = subprocess.run([sys.executable, analyzer, "-f", str(tmp_path / "s")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert any(name.startswith("ledger") for name in json.loads(done.stdout))


def memory_digest(machine: QemuMachine) -> str:
    with (machine.directory / "ram").open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def write_by_qemu(machine: QemuMachine, path: Path, *capabilities: str, uri: str) -> None:
    """QEMU writes its own file, and stays paused."""
    inside = machine.directory / "file"
    parameters: dict[str, int] = {"max_bandwidth": 1 << 34}
    if "xbzrle" in capabilities:
        parameters = {"max_bandwidth": 60 * MIB, "downtime_limit": 100}  # so that there are several rounds
    machine.ask("migrate-set-parameters", **parameters)
    if capabilities:
        set_capabilities(machine, *capabilities)
    machine.ask("migrate", uri=uri.format(inside))
    wait_until(lambda: machine.ask("query-migrate").get("status") == "completed", 60, "QEMU to write the file")
    inside.rename(path)


@pytest.mark.parametrize("capability", ["", "xbzrle", "compress"])
def test_what_qemu_writes_becomes_the_same_memory_as_when_qemu_loads_it(
    initrd: Path, shelf: Path, capability: str
) -> None:
    """Bit for bit: QEMU 7.2 loses writes of its own under TCG, so what the guest does proves nothing."""
    with QemuMachine(initrd, memory=PRIVATE, rate=20) as source:
        if capability == "compress" and source.version() >= (9, 1):
            pytest.skip("this QEMU cannot compress pages any more")
        source.wait_for_serial("TICK 2 ")
        write_by_qemu(source, shelf / "s", *filter(None, [capability]), uri="exec:cat > {}")
        if capability == "xbzrle":
            assert source.ask("query-migrate")["xbzrle-cache"]["pages"] > 0
    digests = []
    for loads_itself in (True, False):
        with QemuMachine(incoming=True, extra=("-S",)) as copy:
            if loads_itself:
                os.link(shelf / "s", copy.directory / "file")
                set_capabilities(copy, *(["compress"] if capability == "compress" else []))
                load(copy, f"exec:cat {copy.directory / 'file'}")
            else:
                report = restore(copy, shelf / "s", "--paused")
                assert report["verified"] is None
                assert "no digest" in report["snapshot"]["notes"][0]
            digests.append(memory_digest(copy))
    assert digests[0] == digests[1]


@pytest.mark.parametrize("capabilities", [("mapped-ram",), ("mapped-ram", "multifd"), ()], ids=" ".join)
def test_files_that_a_newer_qemu_writes_by_itself_are_restored(
    initrd: Path, shelf: Path, capabilities: tuple[str, ...]
) -> None:
    with QemuMachine(initrd, memory=PRIVATE) as source:
        if not has_mapped_ram(source):
            pytest.skip("this QEMU writes no files by itself")
        source.wait_for_serial("TICK 2 ")
        write_by_qemu(source, shelf / "s", *capabilities, uri="file:{}")
        last = source.ticks()[-1]
    with QemuMachine(incoming=True) as copy:
        report = restore(copy, shelf / "s")
        assert report["snapshot"]["format"] == ("mapped-ram" if capabilities else "stream")
        began_at(copy, last)


@pytest.mark.parametrize("line", ["active, round 1", "pre-switchover"])
def test_a_saver_that_is_killed_leaves_the_guest_running_and_no_file(initrd: Path, shelf: Path, line: str) -> None:
    limits = ["--max-bandwidth", "40MiB/s", "--downtime-limit", "20s" if line == "pre-switchover" else "1ms"]
    with QemuMachine(initrd, rate=40) as machine:
        machine.wait_for_serial("TICK 2 ")
        settings = machine.settings()
        with Command("save", str(shelf / "s"), "--guest", f"qemu:{machine.socket}", *limits) as command:
            command.wait_for(line)
            command.process.kill()
            command.process.wait()
        assert os.listdir(shelf) == []
        wait_until(lambda: machine.ask("query-status")["running"], 20, "the guest to go on")
        wait_until(lambda: machine.tracked_mappings() == 0, 5, "the end of the tracking")
        wait_until(lambda: machine.settings() == settings, 5, "the settings as before")
        machine.wait_for_ticks(3)


def test_another_machine_and_a_damaged_file_are_refused_and_qemu_waits_on(shelf: Path, bare_guest: QemuMachine) -> None:
    save(bare_guest, shelf / "s")
    with QemuMachine(
        incoming=True,
        memory=["-machine", "q35,memory-backend=ram0", "-object", "memory-backend-file,id=ram0,size=128M,mem-path={dir}/ram,share=on"],
        memory_bytes=128 * MIB,
    ) as other:  # fmt: skip
        with Command("restore", str(shelf / "s"), "--guest", f"qemu:{other.socket}", "--json") as command:
            code, report = command.end()
            assert (code, report["error"]["type"]) == (3, "SnapshotRefusedError")
        for words in (
            "machine type: 'pc-",
            "'ram0': memory size 256 MiB in the file, 128 MiB here",
            "only in the file",
        ):
            assert words in report["error"]["message"]
        assert other.ask("query-status")["status"] == "inmigrate"
    with (shelf / "s").open("r+b") as file:
        file.seek(3 * MIB)
        file.write(b"!")
    with QemuMachine(incoming=True) as copy:
        with Command("restore", str(shelf / "s"), "--guest", f"qemu:{copy.socket}", "--json") as command:
            code, report = command.end()
            assert (code, report["error"]["type"]) == (3, "SnapshotRefusedError")
        assert "is damaged" in report["error"]["message"]
        assert copy.ask("query-status")["status"] == "inmigrate"
        assert (copy.directory / "ram").stat().st_blocks == 0
