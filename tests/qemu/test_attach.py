# SPDX-License-Identifier: Apache-2.0
"""Attaching to another process: nothing of it changes, nothing stays, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from parmig.errors import GuestError, HostRefusedError
from parmig.guests.qemu.attach import attach, borrow_userfaultfd
from parmig.guests.qemu.options import open_qemu
from parmig.guests.qemu.stopped import StoppedThread
from parmig.linux import ptrace
from tests.qemu.carry import Scanner
from tests.qemu.machines import LIMIT_S, QemuMachine, wait_until

pytestmark = pytest.mark.qemu

HOLDER = """
import sys, time
from parmig.guests.qemu.attach import attach
tracking = attach(int(sys.argv[1]), [(int(sys.argv[2]), int(sys.argv[3]))])
print("attached", flush=True)
time.sleep(1000)
"""

# Counts timer signals and checks that interrupted sleeps and reads end as they should.
BUSY = """
import os, select, signal, sys, time
count = 0
def tick(*_):
    global count
    count += 1
signal.signal(signal.SIGALRM, tick)
signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
print("ready", flush=True)
while count <= 1000 or not select.select([0], [], [], 0)[0]:  # until standard input ends
    time.sleep(0.01)
    assert sum(range(1000)) == 499500
    assert os.getpid() == int(open("/proc/self/stat").read().split()[0])
signal.setitimer(signal.ITIMER_REAL, 0)  # Python drops its handlers before it ends
print(count, flush=True)
"""


@pytest.fixture
def sleeper(qemu: None) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


def descriptors(pid: int) -> set[str]:
    return set(os.listdir(f"/proc/{pid}/fd"))


def state(pid: int) -> str:
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0]


def test_qemu_is_as_before_and_ticks(linux_guest: QemuMachine) -> None:
    fds, maps = linux_guest.fds(), linux_guest.maps()
    # Finding out how it settles makes QEMU run coroutines, whose stacks it keeps for the next ones.
    with open_qemu(f"{linux_guest.socket},settle=transaction", incoming=False) as guest:
        connected = linux_guest.fds()
        for _ in range(20):
            log = guest.start_dirty_log("auto")
            assert (log.kind, log.pid) == ("pagemap", linux_guest.pid)
            assert linux_guest.tracked_mappings() == len(guest.memory())
            assert linux_guest.fds() == connected, "the userfaultfd is closed in QEMU"
            guest.stop_dirty_log()
            guest.stop_dirty_log()
            assert linux_guest.tracked_mappings() == 0
        linux_guest.wait_for_ticks()
    wait_until(lambda: linux_guest.fds() == fds, "QEMU's descriptors as before")
    assert linux_guest.maps() == maps
    assert len({md5 for _, md5 in linux_guest.ticks()}) == 1


def test_writes_are_seen_and_quiet_pages_are_not(linux_guest: QemuMachine) -> None:
    with open_qemu(linux_guest.socket, incoming=False) as guest:
        scanner = Scanner(guest.start_dirty_log("pagemap"))
        everything = [(number, 0, part.block.pages) for number, part in enumerate(guest.memory())]
        assert scanner.dirty() == everything, "everything counts as written at first"
        linux_guest.wait_for_ticks()
        assert 0 < sum(pages for _, _, pages in scanner.dirty()) < 20_000
        scanner.close()


def test_a_killed_holder_leaves_nothing(linux_guest: QemuMachine) -> None:
    with open_qemu(linux_guest.socket, incoming=False) as guest:
        fds = linux_guest.fds()
        segment = guest.start_dirty_log("pagemap").segments[0][0]
        guest.stop_dirty_log()
        arguments = [str(linux_guest.pid), str(segment.address), str(segment.pages * 4096)]
        with subprocess.Popen([sys.executable, "-c", HOLDER, *arguments], stdout=subprocess.PIPE) as holder:
            try:
                assert holder.stdout is not None
                assert holder.stdout.readline() == b"attached\n"
                assert linux_guest.tracked_mappings() == 1
                with pytest.raises(HostRefusedError, match="another tracker is attached"):
                    guest.start_dirty_log("pagemap")
            finally:
                holder.kill()
                holder.wait()
        assert linux_guest.tracked_mappings() == 0
        assert linux_guest.fds() == fds
        guest.start_dirty_log("pagemap")
        linux_guest.wait_for_ticks()


def test_a_range_that_cannot_be_tracked_leaves_nothing(linux_guest: QemuMachine) -> None:
    with open_qemu(linux_guest.socket, incoming=False) as guest:
        part = guest.start_dirty_log("pagemap").segments[0][0]
        guest.stop_dirty_log()
        with pytest.raises(HostRefusedError, match="--tracker digest"):
            attach(linux_guest.pid, [(part.address, 4096), (0x1000, 4096)])
        assert linux_guest.tracked_mappings() == 0


def test_signals_and_sleeps_survive_being_stopped(qemu: None) -> None:
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", BUSY], **pipes) as busy:  # type: ignore[call-overload]
        try:
            assert busy.stdout is not None
            assert busy.stdout.readline() == b"ready\n"
            before = descriptors(busy.pid)
            for _ in range(200):
                os.close(borrow_userfaultfd(busy.pid))
            assert descriptors(busy.pid) - before <= {str(number) for number in range(3, 8)}
            out, errors = busy.communicate(timeout=LIMIT_S)
        finally:
            busy.kill()
    assert (busy.returncode, errors) == (0, b"")
    assert int(out) > 1000, "timer signals were delivered"


def test_an_error_while_stopped_lets_go(sleeper: subprocess.Popen[bytes]) -> None:
    def fail() -> None:
        with StoppedThread(sleeper.pid) as thread:
            assert thread.call(39) == sleeper.pid  # getpid
            assert thread.call(ptrace.SYS_CLOSE["x86_64"], 12345) == -9  # EBADF
            assert state(sleeper.pid) == "t"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    wait_until(lambda: state(sleeper.pid) == "S", "the process sleeps again")


def test_another_tracer_is_named(sleeper: subprocess.Popen[bytes]) -> None:
    attached, done = threading.Event(), threading.Event()

    def trace() -> None:
        ptrace.seize(sleeper.pid)
        attached.set()
        done.wait(LIMIT_S)

    tracer = threading.Thread(target=trace)
    tracer.start()
    attached.wait(LIMIT_S)
    try:
        with pytest.raises(HostRefusedError, match=rf"process {tracer.native_id} \(a debugger\?\) traces it already"):
            borrow_userfaultfd(sleeper.pid)
    finally:
        done.set()
        tracer.join()
    # The kernel lets go when the thread ends there, a moment after it ended for Python.
    wait_until(lambda: "TracerPid:\t0\n" in Path(f"/proc/{sleeper.pid}/status").read_text(), "untraced")
    os.close(borrow_userfaultfd(sleeper.pid))


def test_a_foreign_user_is_told_what_to_do(sleeper: subprocess.Popen[bytes]) -> None:
    program = (
        f"import os\nfrom parmig.guests.qemu.attach import borrow_userfaultfd\n"
        f"os.setuid(65534)\nborrow_userfaultfd({sleeper.pid})"
    )
    result = subprocess.run([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, check=False)
    for words in ("HostRefusedError", "CAP_SYS_PTRACE", "uid is 0, parmig's is 65534", "--tracker digest"):
        assert words in result.stderr


def test_a_stopped_process_is_refused_and_stays_stopped(sleeper: subprocess.Popen[bytes]) -> None:
    sleeper.send_signal(signal.SIGSTOP)
    wait_until(lambda: state(sleeper.pid) == "T", "stopped")
    with pytest.raises(HostRefusedError, match="kill -CONT"):
        borrow_userfaultfd(sleeper.pid)
    wait_until(lambda: state(sleeper.pid) == "T", "stopped as before")
    sleeper.send_signal(signal.SIGCONT)
    wait_until(lambda: state(sleeper.pid) == "S", "sleeping")


def test_a_dead_process_is_a_guest_error(sleeper: subprocess.Popen[bytes]) -> None:
    sleeper.kill()
    sleeper.wait()
    with pytest.raises(GuestError, match="ended"):
        borrow_userfaultfd(sleeper.pid)


def test_a_borrowed_call_that_hangs_is_given_up_and_the_thread_is_as_before(qemu: None) -> None:
    program = "import sys, time\nprint('ready', flush=True)\ntime.sleep(3)\nprint(sum(range(1000)), flush=True)"
    read_end, write_end = os.pipe()
    with subprocess.Popen([sys.executable, "-c", program], stdin=read_end, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"

            def hang() -> None:
                with StoppedThread(process.pid, limit_s=0.1) as thread:
                    thread.call(0, 0, 0, 1)  # read() of a pipe into which nobody writes

            with pytest.raises(HostRefusedError, match="did not stop within"):
                hang()
            assert process.communicate(timeout=LIMIT_S)[0] == b"499500\n"
        finally:
            process.kill()
            os.close(read_end)
            os.close(write_end)
    assert process.returncode == 0
