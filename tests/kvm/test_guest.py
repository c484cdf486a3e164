# SPDX-License-Identifier: Apache-2.0
"""The KVM guest: what its programs notice, its files, its dirty log, its end."""

from __future__ import annotations

import os
import select
import signal
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from parmig.errors import GuestError, GuestRefusedError, HostRefusedError, ParmigError, StatusError
from parmig.guests.kvm.kvm_guest import KvmGuest, open_kvm
from parmig.guests.kvm.program_layout import FIRST_PAGE
from parmig.probes.kvm import why_no_rings
from parmig.ram.blocks import PAGE_BYTES
from parmig.ram.regions import Region
from parmig.ram.trackers.bitmap import BitmapTracker
from parmig.units import GIB, MIB
from tests.kvm.machines import needs_kvm
from tests.support import PATIENCE_S, Sink, wait_until
from tools.soak_kvm import Discard, beats

pytestmark = needs_kvm

SMALL = "memory=4MiB,vcpus=2,rate=8MiB/s"
CODE_PAGE, MAILBOX_PAGE, BUFFER_PAGE = 1, 7, 8


@contextmanager
def opened(text: str, *, incoming: bool = False) -> Iterator[KvmGuest]:
    guest = open_kvm(text, incoming=incoming)
    try:
        yield guest
    finally:
        guest.close()


def page_of(guest: KvmGuest, page: int) -> bytes:
    return os.pread(guest.memory()[0].fd, PAGE_BYTES, page * PAGE_BYTES)


def set_page(guest: KvmGuest, page: int, content: bytes, at: int = 0) -> None:
    os.pwrite(guest.memory()[0].fd, content, page * PAGE_BYTES + at)


def counts(guest: KvmGuest, pages: int) -> np.ndarray:
    """The additions of each of the program's first pages."""
    data = os.pread(guest.memory()[0].fd, pages * PAGE_BYTES, FIRST_PAGE * PAGE_BYTES)
    return np.frombuffer(data, "<u4").reshape(pages, -1)[:, 0].astype(np.int64)


def wait_for_additions(guest: KvmGuest, pages: int) -> None:
    before = counts(guest, pages).sum()
    wait_until(lambda: bool(counts(guest, pages).sum() >= before + pages), "additions")


# -- what the programs do and notice ------------------------------------------------------------------


@pytest.mark.parametrize("options", ["", "vcpus=2", "vcpus=2,program=random", "vcpus=3,program=random", "irqchip=off"])
def test_the_program_runs_and_its_check_holds_wherever_it_is_stopped(options: str) -> None:
    with opened(f"memory=4MiB,rate=20MiB/s,{options}") as guest:
        for _ in range(10):
            wait_for_additions(guest, 64)
            guest.pause(Discard())
            guest.check()
            guest.resume()
        wait_until(lambda: guest.stats().beats >= 3, "lines on the serial port")
        lines = beats(guest.serial_text())
        assert [beat.number for beat in lines] == list(range(1, len(lines) + 1))
        assert all(one.ticks < other.ticks for one, other in pairwise(lines))
        assert (lines[-1].interrupts > 0) is ("irqchip=off" not in options)


def test_a_guest_at_rest_writes_only_what_its_heartbeat_does() -> None:
    with opened("memory=4MiB,rate=0") as guest:
        wait_until(lambda: guest.stats().beats >= 2, "lines on the serial port")
        assert not counts(guest, 64).any()


def test_only_the_pages_to_be_touched_are_written() -> None:
    with opened("memory=8MiB,rate=max,touched=256KiB,fill=zero") as guest:
        wait_for_additions(guest, 64)
        assert not counts(guest, 128)[64:].any()


@pytest.mark.parametrize("program", ["increment", "random"])
@pytest.mark.parametrize("step", [-1, -100, 3])
def test_a_stale_page_is_noticed(program: str, step: int) -> None:
    with opened(f"{SMALL},program={program}") as guest:
        wait_for_additions(guest, 600)
        guest.pause(Discard())
        page = FIRST_PAGE + 10
        (count,) = struct.unpack_from("<I", page_of(guest, page))
        set_page(guest, page, struct.pack("<I", (count + step) & 0xFFFF_FFFF))
        with pytest.raises(GuestError, match="pages are lost or stale"):
            guest.check()
        set_page(guest, page, struct.pack("<I", count))
        guest.check()


def test_two_pages_that_are_wrong_by_opposite_amounts_are_noticed() -> None:
    with opened(SMALL) as guest:
        wait_for_additions(guest, 600)
        guest.pause(Discard())
        for page, step in ((FIRST_PAGE + 3, 1), (FIRST_PAGE + 9, -1)):
            (count,) = struct.unpack_from("<I", page_of(guest, page))
            set_page(guest, page, struct.pack("<I", count + step))
        with pytest.raises(GuestError, match="may drop once and by 1"):
            guest.check()


def test_registers_that_are_not_those_of_the_memory_are_noticed() -> None:
    """An engine that saved the device state too early would be found out."""
    with opened(SMALL) as guest, opened(SMALL, incoming=True) as other:
        guest.pause(Discard())
        state = Sink()
        guest.save_state(state)
        guest.resume()
        wait_for_additions(guest, 64)
        guest.pause(Discard())
        for page in range(guest.memory()[0].block.pages):
            set_page(other, page, page_of(guest, page))
        other.prepare_incoming()
        other.write_state(memoryview(state))
        other.finish_load()
        with pytest.raises(GuestError, match="pages are lost or stale"):
            other.check()


def test_a_lost_page_of_the_programs_own_is_noticed() -> None:
    with opened(SMALL) as guest:
        guest.pause(Discard())
        set_page(guest, MAILBOX_PAGE, bytes(PAGE_BYTES))
        with pytest.raises(GuestError, match="the program's own page is damaged"):
            guest.check()


def test_a_fault_in_the_guest_is_noticed() -> None:
    with opened(SMALL) as guest:
        guest.pause(Discard())
        set_page(guest, CODE_PAGE, b"\xff" * 128)  # no instruction, all over the beginning of the program
        guest.resume()
        wait_until(lambda: page_of(guest, MAILBOX_PAGE)[4 * 11] > 0, "the guest to fault")
        guest.pause(Discard())
        with pytest.raises(GuestError, match="faults"):
            guest.check()


def test_a_guest_that_cannot_go_on_says_so() -> None:
    with opened(SMALL) as guest:
        guest.pause(Discard())
        set_page(guest, CODE_PAGE, b"\xff" * PAGE_BYTES)
        set_page(guest, 5, bytes(PAGE_BYTES))  # no descriptors ...
        set_page(guest, 6, bytes(PAGE_BYTES))  # ... and no handlers: a triple fault
        guest.resume()
        guest.start_dirty_log("auto")

        def failed() -> bool:
            try:
                guest.sync_dirty_log()
            except GuestError as error:
                return "vcpu-0 stopped by KVM_EXIT_" in str(error)
            return False

        wait_until(failed, "the guest to say that it failed")
        guest.stop_dirty_log()


# -- devices and the dirty log ------------------------------------------------------------------------


def test_what_devices_write_is_in_the_log(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(MIB))
    with opened(f"memory=4MiB,rate=0,disk={disk},running=no") as guest:
        log = guest.start_dirty_log("auto")
        worker = BitmapTracker(guest.dirty_bitmap_fd(), [guest.memory()[0].block], log.rearm)
        everything = Region(0, 0, guest.memory()[0].block.pages)
        worker.arm(everything)
        guest.resume()
        wait_until(lambda: guest.stats().beats >= 2, "the guest to use its disk")
        guest.pause(Discard())
        guest.check()
        guest.sync_dirty_log()
        found = worker.scan(everything)
        worker.close()
        assert found is not None
        last = everything.pages - 1  # by way of which sectors go round
        assert {MAILBOX_PAGE, BUFFER_PAGE, last} <= set(np.flatnonzero(found.dirty).tolist())
        assert not found.dirty[FIRST_PAGE:last].any()


def test_a_log_says_how_it_works_and_why_it_was_chosen() -> None:
    with opened(SMALL) as guest:
        log = guest.start_dirty_log("auto")
        assert (log.kind, bool(log.rearm)) == ("bitmap", True)
        assert "KVM's dirty log, re-armed by slices" in log.reason
        assert guest.start_dirty_log("pagemap").kind == "pagemap"
        assert guest.start_dirty_log("digest").kind == "digest"
        with pytest.raises(GuestRefusedError, match="start it with tracker=ring"):
            guest.start_dirty_log("ring")
    with opened(f"{SMALL},tracker=pagemap") as guest:
        assert guest.start_dirty_log("auto").reason == "asked for by the guest's option tracker"


def test_dirty_rings_are_used_or_refused_where_they_cannot_be_relied_on() -> None:
    options = "memory=64MiB,vcpus=2,rate=max,tracker=ring,fill=zero,running=no"
    if why_no_rings() is not None:
        with pytest.raises(HostRefusedError, match=r"dirty rings; start the guest with tracker=bitmap"):
            open_kvm(options, incoming=False)
        return
    with opened(options) as guest:
        for kind in ("bitmap", "ring", "auto"):
            log = guest.start_dirty_log(kind)
            assert (log.kind, log.rearm) == ("bitmap", "")
            assert "dirty rings" in log.reason
        guest.resume()
        pages = 12000  # more than both rings have entries
        wait_until(lambda: bool((counts(guest, pages) > 0).all()), "the guest to write more pages than a ring has")
        guest.pause(Discard())
        guest.sync_dirty_log()
        block = guest.memory()[0].block
        worker = BitmapTracker(guest.dirty_bitmap_fd(), [block])
        found = worker.scan(Region(0, 0, block.pages))
        worker.close()
        assert found is not None
        assert found.dirty[FIRST_PAGE : FIRST_PAGE + pages].all()


# -- throttle -----------------------------------------------------------------------------------------


def test_a_throttled_guest_gets_so_much_of_a_processor_and_all_of_it_again() -> None:
    """By the processor time of its process, which writes as fast as it can: no other load changes the shares."""
    with opened("memory=4MiB,vcpus=1,rate=max") as guest:

        def share_of(percent: int) -> float:
            guest.throttle(percent)
            started, used = os.times().elapsed, cpu_seconds(guest.pid)
            wait_until(lambda: os.times().elapsed >= started + 0.5, "half a second")
            return (cpu_seconds(guest.pid) - used) / (os.times().elapsed - started)

        most = share_of(90)
        assert most < 0.5  # 0.1 and what the threads need; unthrottled it can be 1
        guest.throttle(0)
        wait_until(lambda: share_of(0) > most, "full speed")


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# -- files --------------------------------------------------------------------------------------------


def test_memory_can_be_a_file(tmp_path: Path) -> None:
    path = tmp_path / "ram"
    with opened(f"{SMALL},file={path}") as guest:
        wait_for_additions(guest, 64)
        guest.pause(Discard())
        guest.check()
        assert path.stat().st_size == 4 * MIB
        assert path.read_bytes()[FIRST_PAGE * PAGE_BYTES :][:PAGE_BYTES] == page_of(guest, FIRST_PAGE)
    with opened(f"{SMALL},file={path}") as guest:  # what is in it does not matter to a guest that begins
        wait_for_additions(guest, 64)
        guest.pause(Discard())
        guest.check()


@pytest.mark.parametrize("content", [b"something of value", None])
def test_a_file_that_is_something_else_is_left_alone(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "ram" if content else tmp_path / "none" / "ram"
    if content:
        path.write_bytes(content)
    with pytest.raises(GuestRefusedError, match=str(path)):
        open_kvm(f"{SMALL},file={path}", incoming=False)
    if content:
        assert path.read_bytes() == content


def test_memory_above_3_gib_lies_at_4_gib_and_is_used(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(MIB))
    with opened(f"memory=4GiB,touched=1MiB,fill=zero,disk={disk}") as guest:
        low, high = guest.memory()[0].block.ranges
        assert (low.size_bytes, high.gpa, high.offset_bytes) == (3 * GIB, 4 * GIB, 3 * GIB)
        wait_until(lambda: guest.stats().beats >= 2, "the guest to use its disk")
        guest.pause(Discard())
        guest.check()
        last = 4 * GIB // PAGE_BYTES - 1
        assert struct.unpack_from("<I", page_of(guest, last))[0] == 0x4D564B50  # the sector that went round by there
        assert os.fstat(guest.memory()[0].fd).st_blocks * 512 < 16 * MIB


def test_a_disk_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(GuestRefusedError, match="none: No such file"):
        open_kvm(f"{SMALL},disk={tmp_path / 'none'}", incoming=False)


# -- its end ------------------------------------------------------------------------------------------


def test_a_monitor_that_dies_is_noticed() -> None:
    with opened(SMALL) as guest:
        guest.start_dirty_log("auto")
        watch = guest.watch_fd()
        assert watch is not None
        assert select.select([watch], [], [], 0)[0] == []
        os.kill(guest.pid, signal.SIGKILL)
        assert select.select([watch], [], [], PATIENCE_S)[0] == [watch]
        with pytest.raises(GuestError, match="SIGKILL"):
            guest.sync_dirty_log()
        assert not guest.is_running()
        guest.stop_dirty_log()


def test_state_that_is_cut_short_is_refused_and_the_guest_never_runs() -> None:
    with opened(SMALL) as guest, opened(SMALL, incoming=True) as other:
        guest.pause(Discard())
        state = Sink()
        guest.save_state(state)
        other.prepare_incoming()
        other.write_state(memoryview(state)[:1000])
        with pytest.raises(ParmigError, match="cut short"):
            other.finish_load()
        with pytest.raises(StatusError, match="before its state is loaded"):
            other.resume()
        assert not other.is_running()


def test_quitting_ends_the_monitor_and_leaves_the_memory_readable() -> None:
    with opened(SMALL) as guest:
        guest.pause(Discard())
        guest.quit()
        watch = guest.watch_fd()
        assert watch is not None
        assert select.select([watch], [], [], PATIENCE_S)[0] == [watch]
        assert page_of(guest, CODE_PAGE).strip(b"\0")
