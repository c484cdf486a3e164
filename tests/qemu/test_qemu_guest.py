# SPDX-License-Identifier: Apache-2.0
"""Whole guests: what is refused, where memory is found, and moving between two QEMUs."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from parmig.errors import GuestError, GuestRefusedError, ParmigError, StateError, UsageError
from parmig.guests.guest import Guest, StateSink
from parmig.guests.qemu.options import open_qemu
from parmig.guests.qemu.qemu_guest import QemuGuest
from parmig.guests.registry import open_guest
from parmig.linux import uffd
from parmig.ram.blocks import GuestRange
from tests.qemu.carry import Buffer, Carrier
from tests.qemu.machines import LIMIT_S, MIB, QemuMachine, goes_on, wait_until

pytestmark = pytest.mark.qemu


def open_migrating(text: str, *, incoming: bool) -> QemuGuest:
    """A guest whose device state QEMU's own migration carries; ``test_saved_devices`` has the other way."""
    return open_qemu(f"{text},state=migrate", incoming=incoming)


ANSWER_LIMIT_S = 30
"""After so long a QEMU that does not answer is given up: the default of the option ``timeout``."""

GIB = 1 << 30
FILE = "memory-backend-file,mem-path={dir}/"


def save_all(guest: Guest, sink: StateSink) -> None:
    guest.pause(sink)
    guest.save_state(sink)


def load_all(guest: Guest, data: bytes) -> None:
    guest.write_state(memoryview(data))
    guest.finish_load()


# -- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", ["", ",timeout=3s", "/x,timeout", "/x,speed=3", "/x,pid=me"])
def test_options_without_sense_are_usage_errors(options: str) -> None:
    with pytest.raises(UsageError):
        open_qemu(options, incoming=False)


def test_a_missing_socket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GuestRefusedError, match="no QEMU answers at"):
        open_guest(f"qemu:{tmp_path}/nothing", incoming=False)


def test_a_second_client_is_refused(bare_guest: QemuMachine) -> None:
    with (
        open_migrating(bare_guest.socket, incoming=False),
        pytest.raises(GuestRefusedError, match="another client probably holds the socket"),
    ):
        open_migrating(f"{bare_guest.socket},timeout=500ms", incoming=False)
    open_migrating(bare_guest.socket, incoming=False).close()


@pytest.mark.parametrize(
    ("memory", "words"),
    [
        (["-machine", "pc"], "is not shared"),
        (
            ["-machine", "pc,memory-backend=r", "-object", FILE + "ram,id=r,size=256M,share=off"],
            "is not shared",
        ),
        (
            ["-machine", "pc,memory-backend=r", "-object", "memory-backend-ram,id=r,size=256M,share=on"],
            "has no named file",
        ),
    ],
)
def test_memory_out_of_reach_is_refused(qemu: None, memory: list[str], words: str) -> None:
    with (
        QemuMachine(memory=memory) as machine,
        pytest.raises(GuestRefusedError, match=rf"{words}.*-object memory-backend-file.*share=on -machine"),
    ):
        open_migrating(machine.socket, incoming=False)


def test_a_source_is_no_destination_and_the_other_way_round(bare_guest: QemuMachine) -> None:
    with pytest.raises(GuestRefusedError, match="-incoming defer"):
        open_migrating(bare_guest.socket, incoming=True)
    with QemuMachine(incoming=True) as machine, pytest.raises(GuestRefusedError, match="so it is a destination"):
        open_migrating(machine.socket, incoming=False)


def test_a_destination_with_an_address_is_refused(qemu: None) -> None:
    extra = ("-incoming", "unix:{dir}/incoming")
    with QemuMachine(extra=extra) as machine, pytest.raises(GuestRefusedError, match="-incoming defer and no address"):
        open_migrating(machine.socket, incoming=True)


def test_a_blocked_migration_is_refused_with_the_reason(qemu: None) -> None:
    machine = QemuMachine(extra=("-drive", "file=fat:rw:{dir}/disk,format=raw"))
    (machine.directory / "disk").mkdir()
    with machine, pytest.raises(GuestRefusedError, match="vvfat"):
        open_migrating(machine.socket, incoming=False)


def test_a_wrong_process_is_refused(bare_guest: QemuMachine) -> None:
    with pytest.raises(GuestRefusedError, match="pid=NUMBER"):
        open_migrating(f"{bare_guest.socket},pid={os.getpid()}", incoming=False)


def test_a_file_that_is_too_small_is_refused(qemu: None) -> None:
    with QemuMachine(incoming=True) as machine:
        os.truncate(machine.directory / "ram", 64 * MIB)
        with pytest.raises(GuestRefusedError, match="truncate it to"):
            open_migrating(machine.socket, incoming=True)


def test_other_trackers_than_known_are_refused(bare_guest: QemuMachine) -> None:
    with open_migrating(bare_guest.socket, incoming=False) as guest:
        with pytest.raises(GuestRefusedError, match="--tracker pagemap"):
            guest.start_dirty_log("bitmap")
        with pytest.raises(UsageError):
            guest.start_dirty_log("crystal")
        assert guest.start_dirty_log("digest").kind == "digest"
        assert bare_guest.tracked_mappings() == 0


def test_throttling_is_refused_with_the_reason(bare_guest: QemuMachine) -> None:
    with (
        open_migrating(bare_guest.socket, incoming=False) as guest,
        pytest.raises(GuestRefusedError, match="only while it migrates their memory itself"),
    ):
        guest.can_throttle()


def test_auto_falls_back_with_the_reason(bare_guest: QemuMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uffd, "probe_write_tracking", lambda: "the kernel is old")
    with open_migrating(bare_guest.socket, incoming=False) as guest:
        log = guest.start_dirty_log("auto")
    assert (log.kind, log.reason) == ("digest", "the kernel is old")


# -- layout ---------------------------------------------------------------------------------------


def test_memory_around_the_hole_is_one_block_of_two_ranges(qemu: None) -> None:
    with QemuMachine(memory_bytes=5 * GIB) as machine, open_migrating(machine.socket, incoming=False) as guest:
        (memory,) = guest.memory()
        assert memory.block.ranges == (GuestRange(0, 0, 3 * GIB), GuestRange(4 * GIB, 3 * GIB, 2 * GIB))
        assert (memory.block.name, memory.block.page_size_bytes) == ("ram0", 4096)
        assert os.stat(machine.directory / "ram").st_ino == os.fstat(memory.fd).st_ino
        (segment,) = guest.start_dirty_log("pagemap").segments[0]
        assert segment.pages == 5 * GIB // 4096
        info = guest.info()
        assert info.kind == "qemu"
        assert info.machine.startswith("pc-i440fx-")
        assert info.monitor.startswith("QEMU ")
        assert not guest.is_running()


def test_two_nodes_are_two_blocks(qemu: None) -> None:
    memory = ["-machine", "q35", "-object", FILE + "a,id=m0,size=128M,share=on"]
    memory += ["-object", FILE + "b,id=m1,size=128M,share=on", "-numa", "node,memdev=m1", "-numa", "node,memdev=m0"]
    with QemuMachine(memory=memory) as machine, open_migrating(machine.socket, incoming=False) as guest:
        first, second = guest.memory()
        assert first.block.ranges == (GuestRange(128 * MIB, 0, 128 * MIB),)
        assert second.block.ranges == (GuestRange(0, 0, 128 * MIB),)
        assert [os.stat(machine.directory / name).st_ino for name in "ab"] == [
            os.fstat(item.fd).st_ino for item in (first, second)
        ]
        assert len(guest.start_dirty_log("pagemap").segments) == 2
        # The kernel may have joined the mappings or not; each has to be tracked.
        assert machine.tracked_mappings() == 2


def test_two_memfds_are_told_apart_where_qemu_leaves_them_out(qemu: None) -> None:
    memory = ["-machine", "pc"]
    for name in ("m0", "m1"):
        memory += ["-object", f"memory-backend-memfd,id={name},size=128M", "-numa", f"node,memdev={name}"]
    with QemuMachine(memory=memory) as machine:
        if tuple(machine.ask("query-version")["qemu"][part] for part in ("major", "minor")) >= (8, 1):
            with pytest.raises(GuestRefusedError, match="has no named file"):
                open_migrating(machine.socket, incoming=False)
            return
        with open_migrating(machine.socket, incoming=False) as guest:
            first, second = guest.memory()
            os.pwrite(second.fd, b"second", 0)
            assert machine.ask("human-monitor-command", command_line=f"xp /1xb {128 * MIB:#x}").endswith("0x73\r\n")
            assert os.pread(first.fd, 6, 0) != b"second"


def test_an_unlinked_file_is_found(qemu: None) -> None:
    with QemuMachine() as machine:
        os.unlink(machine.directory / "ram")
        with open_migrating(machine.socket, incoming=False) as guest:
            os.pwrite(guest.memory()[0].fd, b"x", 0x5000)
            assert machine.ask("human-monitor-command", command_line="xp /1xb 0x5000").endswith("0x78\r\n")


# -- the way back ---------------------------------------------------------------------------------


class Broken:
    """A sink whose network is gone."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        raise ConnectionError("the network is gone")


@contextmanager
def unchanged(machine: QemuMachine) -> Iterator[QemuGuest]:
    """An opened source that must be as before in the end."""
    settings, fds, running = machine.settings(), machine.fds(), machine.ask("query-status")["running"]
    with open_migrating(machine.socket, incoming=False) as guest:
        guest.start_dirty_log("auto")
        assert machine.settings() != settings
        yield guest
        guest.resume_source()
        guest.stop_dirty_log()
        assert machine.settings() == settings
        assert machine.ask("query-status")["running"] == running
    assert machine.tracked_mappings() == 0
    wait_until(lambda: machine.fds() == fds, "QEMU's descriptors as before")


def test_a_source_resumes_from_everywhere(linux_guest: QemuMachine) -> None:
    with unchanged(linux_guest):
        pass
    linux_guest.wait_for_ticks()
    with unchanged(linux_guest) as guest:
        before_ns = time.monotonic_ns()
        stopped_ns = guest.pause(Buffer())
        assert before_ns < stopped_ns < time.monotonic_ns()
        assert not guest.is_running()
    linux_guest.wait_for_ticks()
    with unchanged(linux_guest) as guest:
        state = Buffer()
        guest.pause(state)
        assert state.data[:4] == b"QEVM"
        guest.save_state(state)
        assert linux_guest.ask("query-status")["status"] == "postmigrate"
    linux_guest.wait_for_ticks()
    with unchanged(linux_guest) as guest, pytest.raises(ConnectionError):
        guest.pause(Broken())
    linux_guest.wait_for_ticks()
    with unchanged(linux_guest) as guest:
        guest.pause(Buffer())
        with pytest.raises(ConnectionError):
            guest.save_state(Broken())
    linux_guest.wait_for_ticks()
    assert len({md5 for _, md5 in linux_guest.ticks()}) == 1


class BrokenLater:
    """A sink whose network goes after some time, while QEMU goes on writing into the socket."""

    def __init__(self, after_s: float) -> None:
        self.after_s = after_s

    def write(self, data: bytes | bytearray | memoryview) -> None:
        time.sleep(self.after_s)
        raise ConnectionError("the network is gone")


def test_a_cancel_at_any_moment_lets_the_guest_run(linux_guest: QemuMachine) -> None:
    # QEMU 7.2 hangs for ever when it is cancelled in the millisecond before pre-switchover (1 of 20 tries).
    for step in range(40):
        with open_migrating(f"{linux_guest.socket},timeout=5s", incoming=False) as guest:
            guest.start_dirty_log("digest")
            with pytest.raises(ConnectionError):
                guest.pause(BrokenLater(step * 0.0005))
            guest.resume_source()
            assert guest.is_running(), step
    linux_guest.wait_for_ticks()


def test_a_paused_source_stays_paused(bare_guest: QemuMachine) -> None:
    with unchanged(bare_guest) as guest:
        guest.pause(Buffer())


def test_settings_of_the_user_are_put_aside_and_back(bare_guest: QemuMachine) -> None:
    states = [{"capability": name, "state": True} for name in ("multifd", "return-path", "xbzrle")]
    bare_guest.ask("migrate-set-capabilities", capabilities=states[:2])
    bare_guest.ask("migrate-set-parameters", max_bandwidth=1000, downtime_limit=7)
    with unchanged(bare_guest) as guest:
        guest.pause(Buffer())
        guest.save_state(Buffer())


def test_a_killed_source_is_noticed_at_once(bare_guest: QemuMachine) -> None:
    class Kill:
        def write(self, data: bytes | bytearray | memoryview) -> None:
            bare_guest.process.kill()

    with open_migrating(bare_guest.socket, incoming=False) as guest:
        guest.start_dirty_log("auto")
        began = time.monotonic()
        with pytest.raises(ParmigError):
            save_all(guest, Kill())
        with pytest.raises(GuestError):
            guest.resume_source()
        watch = guest.watch_fd()
        assert watch is not None
        assert select.select([watch], [], [], LIMIT_S)[0]
        assert time.monotonic() - began < ANSWER_LIMIT_S / 2


# -- moving ---------------------------------------------------------------------------------------


@contextmanager
def moving(source: QemuMachine, destination: QemuMachine) -> Iterator[Carrier]:
    with (
        open_migrating(source.socket, incoming=False) as ours,
        open_migrating(destination.socket, incoming=True) as theirs,
    ):
        assert [item.block for item in ours.memory()] == [item.block for item in theirs.memory()]
        assert ours.info() == theirs.info()
        carrier = Carrier(ours, theirs)
        carrier.rounds()
        try:
            yield carrier
        finally:
            carrier.close()


def same_memory(carrier: Carrier) -> bool:
    return all(bool((ours.words == theirs.words).all()) for ours, theirs in carrier.maps)


def test_a_busy_linux_moves_and_goes_on(initrd: Path) -> None:
    with QemuMachine(initrd, rate=20) as source, QemuMachine(initrd, incoming=True) as destination:
        source.wait_for_serial("TICK 2 ")
        settings = destination.settings()
        with moving(source, destination) as carrier:
            stopped_ns = carrier.pause()
            assert same_memory(carrier)
            assert carrier.hand_over(stopped_ns) == 0, "saving dirtied pages"
            last = source.ticks()[-1]
            destination.wait_for_ticks()
            assert source.ask("query-status")["status"] == "postmigrate"
            assert source.ticks()[-1] == last
            goes_on(source, destination)
            assert isinstance(carrier.source, QemuGuest)
            carrier.source.quit()
            source.process.wait(LIMIT_S)
        assert destination.settings() == settings
        assert len(source.serial()) > 0


def test_loading_leaves_the_guest_paused_without_the_option_s(linux_guest: QemuMachine, initrd: Path) -> None:
    with QemuMachine(initrd, incoming=True) as destination, moving(linux_guest, destination) as carrier:
        carrier.pause()
        state = Buffer()
        carrier.source.save_state(state)
        carrier.copy()
        carrier.destination.write_state(memoryview(state.data))
        carrier.destination.finish_load()
        assert same_memory(carrier)
        assert not carrier.destination.is_running()
        carrier.destination.discard()
        destination.process.wait(LIMIT_S)
        carrier.source.resume_source()
        linux_guest.wait_for_ticks()


def test_a_paused_guest_arrives_paused(initrd: Path) -> None:
    with QemuMachine(initrd) as source, QemuMachine(initrd, incoming=True) as destination:
        source.wait_for_serial("TICK 2 ")
        source.ask("stop")
        with moving(source, destination) as carrier:
            state = Buffer()
            carrier.pause()
            carrier.source.save_state(state)
            carrier.destination.write_state(memoryview(state.data))
            carrier.destination.finish_load()
            assert destination.ask("query-status")["status"] == "paused"
            carrier.destination.resume()
            destination.wait_for_ticks()


def test_an_unused_destination_stays_ready_for_another_try(bare_guest: QemuMachine) -> None:
    with QemuMachine(incoming=True) as destination:
        settings = destination.settings()
        for _ in range(2):
            with open_migrating(destination.socket, incoming=True) as guest:
                guest.discard()
                guest.prepare_incoming()
                assert destination.settings() != settings
                guest.discard()
                assert destination.settings() == settings
                assert destination.ask("query-status")["status"] == "inmigrate"
        with moving(bare_guest, destination) as carrier:
            carrier.hand_over(carrier.pause())
            assert destination.ask("query-status")["running"]


@pytest.mark.parametrize("damage", ["garbage", "cut"])
def test_bad_state_is_refused_and_the_destination_ends(bare_guest: QemuMachine, damage: str) -> None:
    state = Buffer()
    with QemuMachine(incoming=True) as destination, moving(bare_guest, destination) as carrier:
        carrier.source.pause(state)
        carrier.source.save_state(state)
        data = b"GARBAGE" * 1000 if damage == "garbage" else bytes(state.data[: len(state.data) // 2])
        with pytest.raises(StateError, match="QEMU"):
            load_all(carrier.destination, data)
        carrier.destination.discard()
        destination.process.wait(LIMIT_S)


def test_a_killed_destination_is_noticed(qemu: None) -> None:
    with QemuMachine(incoming=True) as destination, open_migrating(destination.socket, incoming=True) as guest:
        guest.prepare_incoming()
        destination.process.kill()
        began = time.monotonic()
        with pytest.raises(ParmigError):
            load_all(guest, b"QEVM")
        guest.discard()
        assert time.monotonic() - began < ANSWER_LIMIT_S / 2
