# SPDX-License-Identifier: Apache-2.0
"""``state=devices``: guests that are simply paused while their devices are saved, and what remains of that in QEMU."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from parmig.errors import GuestError, GuestRefusedError
from parmig.guests.guest import Guest
from parmig.guests.qemu.fd_set import OPAQUE
from parmig.guests.qemu.options import open_qemu
from parmig.guests.qemu.qemu_guest import QemuGuest
from parmig.guests.qemu.rescue import set_right
from parmig.guests.qemu.state_choice import PREFERRED
from parmig.ram.blocks import PAGE_BYTES, BlockMemory
from parmig.stream.device_stream import opening
from parmig.stream.vmdescription import find, parse
from tests.integration.sides import ROOT
from tests.qemu import disks
from tests.qemu.carry import Buffer
from tests.qemu.machines import LIMIT_S, MIB, QemuMachine, goes_on, wait_until
from tests.qemu.test_qemu_guest import Broken

pytestmark = pytest.mark.qemu

PRIVATE = ["-machine", "pc"]
"""No memory option at all: what a newcomer starts."""

DISK_INIT = f"""#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc none /proc; mount -t devtmpfs none /dev; mkdir -p /t; mount -t tmpfs none /t
for name in {" ".join(Path(name).name for name in disks.MODULES)}; do insmod /$name.ko; done
dd if=/dev/urandom of=/t/a bs=1M count=16 2>/dev/null
i=0
while true; do
    i=$((i+1)); echo WRITTEN $i > /t/line
    dd if=/t/line of=/dev/vda bs=512 count=1 conv=sync oflag=direct 2>/dev/null || echo FAILED $i
    echo TICK $i $(cut -d' ' -f1 /proc/uptime) $(md5sum < /t/a | cut -c1-8); usleep 200000
done
"""


@contextmanager
def opened(machine: QemuMachine, *, incoming: bool = False) -> Iterator[QemuGuest]:
    with open_qemu(f"{machine.socket},state=devices", incoming=incoming) as guest:
        assert isinstance(guest, QemuGuest)
        yield guest


@contextmanager
def spans(memory: BlockMemory) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """A descriptor through which a block is reached, and offset and size of its parts."""
    if not memory.pid:
        yield memory.fd, [(memory.file_offset_bytes, memory.block.size_bytes)]
        return
    fd = os.open(f"/proc/{memory.pid}/mem", os.O_RDWR)
    try:
        yield fd, [(part.address, part.pages * PAGE_BYTES) for part in memory.segments]
    finally:
        os.close(fd)


def copy_memory(source: Guest, destination: Guest) -> None:
    """All blocks, which lie at one piece on both sides."""
    for here, there in zip(source.memory(), destination.memory(), strict=True):
        assert here.block.name == there.block.name
        with spans(here) as (ours, [(start, size_bytes)]), spans(there) as (theirs, [(target, _)]):
            for at in range(0, size_bytes, 4 * MIB):
                piece = os.pread(ours, min(4 * MIB, size_bytes - at), start + at)
                assert os.pwrite(theirs, piece, target + at) == len(piece)


def fdsets(machine: QemuMachine) -> list[str]:
    """The notes of all descriptors in fdsets."""
    return [entry["opaque"] for fdset in machine.ask("query-fdsets") for entry in fdset["fds"]]


def runs(machine: QemuMachine) -> bool:
    return bool(machine.ask("query-status")["running"])


def locks(image: Path) -> int:
    """How many locks are held on a file."""
    inode = image.stat().st_ino
    return sum(f":{inode} " in line for line in Path("/proc/locks").read_text().splitlines())


@contextmanager
def unchanged(machine: QemuMachine) -> Iterator[QemuGuest]:
    """An opened source that must be as before in the end."""
    before = machine.settings(), machine.fds(), runs(machine)
    with opened(machine) as guest:
        guest.start_dirty_log("auto")
        yield guest
        assert machine.settings() == before[0], "settings were changed"
        guest.resume_source()
        guest.stop_dirty_log()
        assert fdsets(machine) == []
    assert machine.tracked_mappings() == 0
    wait_until(lambda: (machine.settings(), machine.fds(), runs(machine)) == before, "QEMU as before")


# -- moving ---------------------------------------------------------------------------------------


def test_a_linux_with_private_memory_moves_and_goes_on(initrd: Path, record_property: pytest.FixtureRequest) -> None:
    with (
        QemuMachine(initrd, rate=20, memory=PRIVATE) as source,
        QemuMachine(initrd, incoming=True, memory=PRIVATE) as destination,
    ):
        source.wait_for_serial("TICK 2 ")
        settings, fds = source.settings(), source.fds()
        with opened(source) as leaving, opened(destination, incoming=True) as arriving:
            assert leaving.info() == arriving.info()
            assert leaving.info().state == "devices"
            assert leaving.state_blocks() == {}
            leaving.start_dirty_log("digest")
            arriving.prepare_incoming()
            live, state = Buffer(), Buffer()
            stopped_ns = leaving.pause(live)
            assert leaving.ran_until_pause() is True
            leaving.save_state(state)
            saved_ms = (time.monotonic_ns() - stopped_ns) / 1e6
            print(f"from stop to saved: {saved_ms:.2f} ms, {len(state.data)} bytes")
            assert live.data == opening(leaving.info().machine)
            arriving.write_state(memoryview(live.data))
            copy_memory(leaving, arriving)
            arriving.write_state(memoryview(state.data))
            arriving.finish_load()
            assert not runs(destination)
            last = source.ticks()[-1]
            arriving.resume()
            goes_on(source, destination)
            leaving.finish_source()
            assert source.ask("query-status")["status"] == "paused"
            assert source.settings() == settings
            assert source.ticks()[-1] == last
        assert fdsets(destination) == []
        # QEMU before 9.1 closes a descriptor of an fdset only while its guest runs.
        left = 1 if source.version() < (9, 1) else 0
        assert fdsets(source) == [OPAQUE] * left
        wait_until(lambda: len(source.fds()) == len(fds) + left, "QEMU's descriptors as before")
        assert "vmdescription" not in (destination.directory / "errors").read_text()


@pytest.mark.parametrize("snapshot", [False, True])
def test_a_snapshot_describes_each_device_and_a_migration_loses_no_time_on_it(
    bare_guest: QemuMachine, snapshot: bool
) -> None:
    with opened(bare_guest) as guest:
        guest.start_dirty_log("digest")
        guest.pause(Buffer())
        state = Buffer()
        (guest.save_snapshot if snapshot else guest.save_state)(state)
    where = find(bytes(state.data))
    assert where is not None
    names = {device.name for device in parse(state.data[where]).devices}
    assert names >= {"timer", "cpu", "globalstate"} if snapshot else not names


def test_devices_is_chosen_by_name_only(bare_guest: QemuMachine) -> None:
    for option, expected in (("", PREFERRED), (",state=auto", PREFERRED), (",state=migrate", "migrate")):
        with open_qemu(f"{bare_guest.socket}{option}", incoming=False) as guest:
            assert guest.info().state == expected


# -- the way back ---------------------------------------------------------------------------------


def test_a_source_resumes_from_everywhere(initrd: Path) -> None:
    with QemuMachine(initrd, memory=PRIVATE) as machine:
        machine.wait_for_serial("TICK 2 ")
        with unchanged(machine):
            pass
        machine.wait_for_ticks()
        with unchanged(machine) as guest:
            before_ns = time.monotonic_ns()
            stopped_ns = guest.pause(Buffer())
            assert before_ns < stopped_ns < time.monotonic_ns()
            assert not guest.is_running()
        machine.wait_for_ticks()
        with unchanged(machine) as guest:
            guest.pause(Buffer())
            with pytest.raises(ConnectionError):
                guest.save_state(Broken())
        machine.wait_for_ticks()
        for _ in range(3):
            with unchanged(machine) as guest:
                guest.pause(Buffer())
                guest.save_state(Buffer())
                assert machine.ask("query-status")["status"] == "paused"
            machine.wait_for_ticks()
        assert len({md5 for _, md5 in machine.ticks()}) == 1


def test_a_guest_that_another_client_resumes_in_the_pause_is_not_moved(linux_guest: QemuMachine) -> None:
    with opened(linux_guest) as guest:
        guest.start_dirty_log("digest")
        guest.pause(Buffer())
        linux_guest.ask("cont")
        with pytest.raises(GuestError, match="another client of QEMU let the guest run"):
            guest.save_state(Buffer())
        guest.resume_source()
    linux_guest.wait_for_ticks()


def test_a_guest_that_its_operator_paused_stays_paused(linux_guest: QemuMachine) -> None:
    with opened(linux_guest) as guest:
        guest.start_dirty_log("digest")
        linux_guest.ask("stop")
        guest.pause(Buffer())
        assert guest.ran_until_pause() is False
        guest.save_state(Buffer())
        assert guest.resume_source() is None
    assert not runs(linux_guest)


def test_a_device_that_came_since_the_dirty_log_began_ends_the_pause_by_name(bare_guest: QemuMachine) -> None:
    with opened(bare_guest) as guest:
        guest.start_dirty_log("digest")
        bare_guest.ask("device_add", driver="virtio-rng-pci", id="rng0")
        with pytest.raises(GuestError, match=r"QEMU changed during the migration.*virtio-rng-pci 'rng0'"):
            guest.pause(Buffer())
        guest.resume_source()


# -- disks ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def disk_initrd(disk_module: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return disks.build_disk_initrd(tmp_path_factory.mktemp("writer"), DISK_INIT)


@pytest.fixture
def image() -> Iterator[Path]:
    """An image in a directory that a QEMU in a chroot has too."""
    path = Path(f"/dev/shm/parmig-test-image-{os.getpid()}")
    with path.open("wb") as file:
        file.truncate(MIB)
    yield path
    path.unlink()


def disk(image: Path) -> tuple[str, ...]:
    return (
        *("-drive", f"file={image},if=none,id=disk,format=raw,file.locking=on"),
        *("-device", "virtio-blk-pci,drive=disk"),
    )


def wait_for_writes(machine: QemuMachine, image: Path) -> None:
    """Wait until the guest wrote its disk twice from now on."""
    before = image.read_bytes()[:20]
    machine.wait_for_ticks(2)
    assert "FAILED" not in machine.serial()
    written = image.read_bytes()[:20]
    assert written != before
    assert written.startswith(b"WRITTEN")


def test_the_image_is_handed_over_and_taken_back(disk_initrd: Path, image: Path) -> None:
    with QemuMachine(disk_initrd, memory=PRIVATE, extra=disk(image)) as source:
        source.wait_for_serial("TICK 2 ")
        assert locks(image) > 0
        with unchanged(source) as guest:
            guest.pause(Buffer())
            assert locks(image) > 0
            guest.save_state(Buffer())
            assert locks(image) == 0
        assert locks(image) > 0
        wait_for_writes(source, image)
        with unchanged(source) as guest:
            guest.pause(Buffer())
            guest.save_snapshot(Buffer())
            assert locks(image) > 0, "a snapshot gave the disk away"
        wait_for_writes(source, image)
        move_with_disk(source, disk_initrd, image)


def move_with_disk(source: QemuMachine, initrd: Path, image: Path) -> None:
    """To a destination that has the same image."""
    with (
        QemuMachine(initrd, incoming=True, memory=PRIVATE, extra=disk(image)) as destination,
        opened(source) as leaving,
        opened(destination, incoming=True) as arriving,
    ):
        leaving.start_dirty_log("digest")
        arriving.prepare_incoming()
        state = Buffer()
        stopped_ns = leaving.pause(state)
        leaving.save_state(state)
        print(f"with a disk, from stop to saved: {(time.monotonic_ns() - stopped_ns) / 1e6:.2f} ms, {len(state.data)}")
        copy_memory(leaving, arriving)
        arriving.write_state(memoryview(state.data))
        arriving.finish_load()
        arriving.resume()
        wait_for_writes(destination, image)
        leaving.finish_source()
        leaving.close()
        with pytest.raises(GuestRefusedError, match=r"has given its disks away.*send QEMU the command cont"):
            open_qemu(f"{source.socket},state=devices", incoming=False)


def test_a_paused_guest_that_was_saved_is_not_saved_twice(qemu: None, image: Path) -> None:
    """QEMU before 10.0 would end: see ``check_devices``."""
    with QemuMachine(memory=PRIVATE, extra=disk(image)) as machine:
        with opened(machine) as guest:
            guest.start_dirty_log("digest")
            guest.pause(Buffer())
            guest.save_state(Buffer())
            guest.resume_source()
        if machine.version() >= (10, 0):
            assert locks(image) > 0
        else:
            with pytest.raises(GuestRefusedError, match="has given its disks away"):
                open_qemu(f"{machine.socket},state=devices", incoming=False)
            machine.ask("cont")
            machine.ask("stop")
        with opened(machine) as guest:
            guest.start_dirty_log("digest")
            guest.pause(Buffer())
            guest.save_state(Buffer())


# -- refusals -------------------------------------------------------------------------------------


def test_a_bitmap_that_would_be_lost_is_refused_by_name(qemu: None, image: Path) -> None:
    with QemuMachine(extra=disk(image)) as machine:
        machine.ask("block-dirty-bitmap-add", node="disk", name="backup")
        with pytest.raises(GuestRefusedError, match=r"dirty bitmap 'backup' of block node .*; use state=migrate"):
            open_qemu(f"{machine.socket},state=devices", incoming=False)
        open_qemu(f"{machine.socket},state=migrate", incoming=False).close()


def test_a_blocked_migration_is_refused_with_the_reason(qemu: None) -> None:
    machine = QemuMachine(extra=("-drive", "file=fat:rw:{dir}/disk,format=raw"))
    (machine.directory / "disk").mkdir()
    with machine, pytest.raises(GuestRefusedError, match="vvfat"):
        open_qemu(f"{machine.socket},state=devices", incoming=False)


# -- rescue ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("saved", [True, False])
@pytest.mark.parametrize("ran", [True, False])
def test_a_rescue_lets_only_a_guest_run_that_ran_until_its_pause(
    linux_guest: QemuMachine, saved: bool, ran: bool
) -> None:
    with opened(linux_guest) as guest:
        guest.rescue()
        guest.start_dirty_log("digest")
        if not ran:
            linux_guest.ask("stop")
        guest.rescue(pausing=True)
        guest.pause(Buffer())
        setup = guest.rescue().setup
        if saved:
            guest.save_state(Buffer())
        guest._qmp.close()
        assert set_right(setup) is True
        assert set_right(setup) is True  # again: nothing more to do
    assert runs(linux_guest) == ran
    if ran:
        linux_guest.wait_for_ticks()
        assert fdsets(linux_guest) == []


def test_a_rescue_before_the_pause_leaves_a_guest_alone_that_its_operator_paused(linux_guest: QemuMachine) -> None:
    with opened(linux_guest) as guest:
        setup = guest.rescue().setup
        linux_guest.ask("stop")
        guest._qmp.close()
        assert set_right(setup) is True
    assert not runs(linux_guest)


SENDER = """
import sys, time
from parmig.config import GUARDIAN_PROGRAM
from parmig.engine.custody.custody import Custody
from parmig.engine.guest_thread import GuestThread
from parmig.guests.registry import open_guest
from tests.qemu.carry import Buffer

guest = open_guest(sys.argv[1], incoming=False)
custody = Custody(guest, GuestThread(), GUARDIAN_PROGRAM)
custody.arm()
guest.start_dirty_log("pagemap")
custody.pause(Buffer())
if sys.argv[2] == "saved":
    custody.note_pause()
    guest.save_state(Buffer())
print("reached", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("stage", ["paused", "saved"])
def test_a_sender_killed_in_the_pause_leaves_the_guest_running(
    linux_guest: QemuMachine, tmp_path: Path, stage: str
) -> None:
    before = linux_guest.settings(), linux_guest.fds()
    command = [sys.executable, "-c", SENDER, f"qemu:{linux_guest.socket},state=devices", stage]
    environment = os.environ | {"XDG_RUNTIME_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment) as sender:
        try:
            assert sender.stdout is not None
            assert sender.stdout.readline() == "reached\n"
            assert linux_guest.ask("query-status")["status"] == "paused"
        finally:
            sender.kill()
    wait_until(lambda: runs(linux_guest), "the source to run")
    (log,) = (tmp_path / "parmig").iterdir()
    wait_until(lambda: "the guest is set right" in log.read_text(), "the guardian's success")
    linux_guest.wait_for_ticks()
    assert fdsets(linux_guest) == []
    wait_until(lambda: (linux_guest.settings(), linux_guest.fds()) == before, "QEMU as before")
    assert linux_guest.tracked_mappings() == 0


# -- the network ----------------------------------------------------------------------------------

RARP = bytes.fromhex("8035")


def test_an_announcement_leaves_by_each_network_device(qemu: None) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as switch:
        switch.bind(("127.0.0.1", 0))
        switch.settimeout(LIMIT_S)
        port = switch.getsockname()[1]
        network = f"socket,id=net,udp=127.0.0.1:{port},localaddr=127.0.0.1:0"
        extra = ("-netdev", network, "-device", "virtio-net-pci,netdev=net,mac=52:54:00:12:34:56")
        with QemuMachine(extra=extra) as machine, opened(machine) as guest:
            machine.ask("cont")  # a paused guest's network devices send nothing
            guest.announce()
            frame = switch.recv(2048)
    assert frame[6:14] == bytes.fromhex("525400123456") + RARP
