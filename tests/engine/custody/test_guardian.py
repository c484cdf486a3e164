# SPDX-License-Identifier: Apache-2.0
"""The guardian outlives whatever ends its coordinator, tries until the guest is right, and never acts once disarmed."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from parmig.config import GUARDIAN_PROGRAM
from parmig.engine.custody.guardian import Guardian, log_directory
from parmig.engine.custody.rescuing import LONGEST_WAIT_S, Log, rescue
from parmig.engine.records.handover_record import HandOverRecord, RecordState
from parmig.engine.records.record_store import RecordStore
from parmig.errors import GuestError, HostRefusedError
from parmig.guests.guest import Rescue
from tests.support import wait_until

HERE = "tests.engine.custody.test_guardian"

COORDINATOR = f"""
import sys, time
from parmig.config import GUARDIAN_PROGRAM
from parmig.engine.custody.guardian import Guardian
from parmig.guests.guest import Rescue
one = Guardian(GUARDIAN_PROGRAM)
one.arm(Rescue({HERE + ":leave_a_mark"!r}, sys.argv[1].encode()))
for word in sys.argv[2:]:
    getattr(one, word)()
print(one.pid, flush=True)
time.sleep(1000)
"""


def leave_a_mark(setup: bytes) -> bool:
    """A rescue that works."""
    with open(os.fsdecode(setup), "a") as file:
        file.write("rescued\n")
    return True


def fail_three_times(setup: bytes) -> bool:
    """A rescue that works at the fourth attempt."""
    path = Path(os.fsdecode(setup))
    attempts = len(path.read_text()) if path.exists() else 0
    with path.open("a") as file:
        file.write("x")
    if attempts < 3:
        raise GuestError("the monitor hangs")
    return True


def nothing_left(_setup: bytes) -> bool:
    """A rescue of a monitor that is gone."""
    return False


@pytest.fixture(autouse=True)
def _logs_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "mark"


@pytest.fixture
def guardian() -> Iterator[Guardian]:
    one = Guardian(GUARDIAN_PROGRAM)
    yield one
    one.close()
    if one.pid and is_there(one.pid):  # it could not be ended: that is what a test found
        os.kill(one.pid, signal.SIGKILL)


def is_there(pid: int) -> bool:
    try:
        return psutil.Process(pid).name() == "parmig-guardian"
    except psutil.NoSuchProcess:
        return False


def gone(pid: int) -> None:
    wait_until(lambda: not is_there(pid), "the guardian's end")


def coordinator(mark: Path, *words: str) -> subprocess.Popen[str]:
    """A process with a guardian that it tells *words*; it prints the guardian's pid, and leads a group of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", COORDINATOR, str(mark), *words],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


ENDS = [signal.SIGKILL, signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM]


@pytest.mark.parametrize("number", ENDS, ids=lambda number: number.name)
def test_a_signal_to_its_coordinators_group_makes_it_act(mark: Path, number: signal.Signals) -> None:
    with coordinator(mark) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        os.killpg(process.pid, number)
        process.wait()
    wait_until(mark.exists, "the rescue")
    gone(pid)
    assert mark.read_text() == "rescued\n"


@pytest.mark.parametrize("number", ENDS, ids=lambda number: number.name)
def test_once_disarmed_nothing_makes_it_act(mark: Path, tmp_path: Path, number: signal.Signals) -> None:
    with coordinator(mark, "disarm") as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        os.killpg(process.pid, number)
        process.wait()
    gone(pid)
    assert not mark.exists()
    assert list((tmp_path / "parmig").iterdir()) == []


def kept_by(pid: int) -> set[str]:
    """What the descriptors of a process are of, sockets without numbers. It may open and close files meanwhile."""
    kept = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            kept.add(os.readlink(descriptor).partition(":")[0])
    return kept


def test_it_is_out_of_reach_of_all_that_may_end_its_coordinator(guardian: Guardian, mark: Path) -> None:
    guardian.arm(Rescue(f"{HERE}:leave_a_mark", os.fsencode(mark)))
    process = psutil.Process(guardian.pid)
    assert process not in psutil.Process().children(recursive=True)
    assert os.getsid(guardian.pid) != os.getsid(0)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
        process.send_signal(number)
    wanted = {"/dev/null", "socket", guardian.log}
    wait_until(lambda: kept_by(guardian.pid) == wanted, f"the guardian to keep {wanted} and nothing else")
    assert is_there(guardian.pid)
    guardian.close()
    gone(guardian.pid)
    assert not mark.exists()


@pytest.mark.parametrize("state", [RecordState.HANDED_OVER, RecordState.RETURNED], ids=lambda state: state.value)
def test_it_reads_the_record_before_it_acts(guardian: Guardian, mark: Path, tmp_path: Path, state: RecordState) -> None:
    with RecordStore(str(tmp_path / "records")) as store:
        record = HandOverRecord(session=bytes(16), side="source", state=RecordState.OPEN)
        with store.create(record) as file:
            guardian.arm(Rescue(f"{HERE}:leave_a_mark", os.fsencode(mark)), file.path)
            file.write(state=state)
            file.remove()  # it has it open
            guardian._drop()  # as if this process had been killed
            gone(guardian.pid)
    if state is RecordState.RETURNED:
        assert mark.read_text() == "rescued\n"
    else:
        assert not mark.exists()
        assert "parmig recover 00000000" in Path(guardian.log).read_text()


def test_a_coordinator_that_asks_for_it_is_not_contradicted_by_the_record(
    guardian: Guardian, mark: Path, tmp_path: Path
) -> None:
    with RecordStore(str(tmp_path / "records")) as store:
        record = HandOverRecord(session=bytes(16), side="source", state=RecordState.HANDED_OVER)
        with store.create(record) as file:
            guardian.arm(Rescue(f"{HERE}:leave_a_mark", os.fsencode(mark)), file.path)
            guardian.take_over()
            gone(guardian.pid)
    assert mark.read_text() == "rescued\n"


def test_a_guardian_that_cannot_read_the_record_is_not_armed(guardian: Guardian, mark: Path, tmp_path: Path) -> None:
    with pytest.raises(HostRefusedError, match="ended while it started"):
        guardian.arm(Rescue(f"{HERE}:leave_a_mark", os.fsencode(mark)), str(tmp_path / "nothing"))


def test_after_guard_disarm_and_the_end_of_the_pipe_it_runs_nothing(guardian: Guardian, mark: Path) -> None:
    guardian.arm(Rescue(f"{HERE}:leave_a_mark", os.fsencode(mark)))
    os.kill(guardian.pid, signal.SIGSTOP)  # so that it finds all three at once
    guardian.guard(Rescue(f"{HERE}:leave_a_mark", os.fsencode(mark)))
    guardian.disarm()
    guardian._drop()
    os.kill(guardian.pid, signal.SIGCONT)
    gone(guardian.pid)
    assert not mark.exists()
    assert not os.path.exists(guardian.log)


def test_what_it_was_told_last_is_what_it_does(guardian: Guardian, mark: Path, tmp_path: Path) -> None:
    guardian.arm(Rescue(f"{HERE}:leave_a_mark", os.fsencode(tmp_path / "other")))
    guardian.guard(Rescue(f"{HERE}:leave_a_mark", os.fsencode(mark)))
    guardian._drop()
    wait_until(mark.exists, "the rescue")
    gone(guardian.pid)
    assert not (tmp_path / "other").exists()


def test_it_takes_over_while_its_coordinator_lives_and_tells_in_its_log(guardian: Guardian, mark: Path) -> None:
    guardian.arm(Rescue(f"{HERE}:fail_three_times", os.fsencode(mark)))
    assert guardian.take_over()
    gone(guardian.pid)
    assert mark.read_text() == "xxxx"
    began, failed, done = Path(guardian.log).read_text().splitlines()
    assert "could not set the guest right: tests.engine.custody.test_guardian:fail_three_times begins" in began
    assert "attempt 1: GuestError: the monitor hangs" in failed
    assert "attempt 4: the guest is set right" in done
    mode = os.stat(guardian.log).st_mode
    assert (stat.S_IMODE(mode), Path(guardian.log).name) == (0o600, f"guardian-{guardian.pid}.log")


def test_it_ends_when_there_is_nothing_left_to_rescue(guardian: Guardian) -> None:
    guardian.arm(Rescue(f"{HERE}:nothing_left", b""))
    assert guardian.take_over()
    gone(guardian.pid)
    assert "the monitor is gone" in Path(guardian.log).read_text()


def test_without_anything_to_rescue_there_is_none(guardian: Guardian) -> None:
    guardian.arm(None)
    guardian.guard(None)
    guardian.disarm()
    assert not guardian.take_over()
    assert guardian.pid == 0


def test_waits_grow_to_ten_seconds_and_go_on(tmp_path: Path) -> None:
    slept: list[float] = []

    def sleep(wait_s: float) -> None:
        slept.append(wait_s)
        if len(slept) == 10:
            raise InterruptedError

    log_ = Log(str(tmp_path))
    with pytest.raises(InterruptedError):
        rescue(f"{HERE}:no_such_function", b"", log_, sleep)
    os.close(log_._fd)
    assert slept[:3] == [0.1, 0.2, 0.4]
    assert slept[-2:] == [LONGEST_WAIT_S] * 2
    (log,) = tmp_path.glob("guardian-*.log")
    assert len(log.read_text().splitlines()) == 1  # the same words are not written again


def test_the_directory_of_logs_is_nobody_elses(tmp_path: Path) -> None:
    assert log_directory() == str(tmp_path / "parmig")
    assert stat.S_IMODE((tmp_path / "parmig").stat().st_mode) == 0o700
    (tmp_path / "parmig").chmod(0o777)
    assert log_directory() != str(tmp_path / "parmig")
    (tmp_path / "parmig").rmdir()
    (tmp_path / "parmig").symlink_to(tmp_path)
    assert log_directory() != str(tmp_path / "parmig")


def test_a_log_that_cannot_be_written_keeps_nobody_from_the_rescue(
    guardian: Guardian, mark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("parmig.engine.custody.guardian.log_directory", lambda: "/proc/nowhere")
    guardian.arm(Rescue(f"{HERE}:leave_a_mark", os.fsencode(mark)))
    assert guardian.log == ""
    guardian.take_over()
    wait_until(mark.exists, "the rescue")
    gone(guardian.pid)
