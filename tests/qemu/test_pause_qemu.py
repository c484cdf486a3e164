# SPDX-License-Identifier: Apache-2.0
"""A QEMU in the pause: whatever ends or hangs, exactly one side runs in the end, and the report says which."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from parmig.errors import GuestError
from parmig.guests.qemu.options import open_qemu
from parmig.guests.qemu.qemu_guest import QemuGuest
from parmig.guests.qemu.rescue import set_right
from parmig.guests.qemu.running import run
from tests.integration.sides import ROOT
from tests.qemu.carry import Buffer
from tests.qemu.machines import LIMIT_S, MIB, QemuMachine, wait_until
from tests.qemu.test_guardian import HELD_LIMIT_S, HeldReceiver
from tests.qemu.test_migration import receive, send

pytestmark = pytest.mark.qemu


class Sender:
    """``parmig send`` as the leader of a process group of its own, with the guardian's log in *directory*."""

    def __init__(
        self, machine: QemuMachine, uri: str, directory: Path, *options: str, state: str = "devices", prelude: str = ""
    ) -> None:
        start = ["-c", f"{prelude}\nfrom parmig.cli import main\nmain()"]
        guest = f"qemu:{machine.socket},state={state}"
        command = [sys.executable, *start, "send", uri, "--guest", guest, "--json", *options]
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {"XDG_RUNTIME_DIR": str(directory)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._logs = directory / "parmig"

    def end(self) -> tuple[int, dict[str, Any]]:
        output, self.errors = self.process.communicate(timeout=HELD_LIMIT_S)
        return self.process.returncode, json.loads(output) if output.strip() else {}

    def no_guardian(self) -> None:
        """Wait until the guardian has ended; those that had nothing to do leave no log."""
        wait_until(lambda: not list(self._logs.iterdir()), "the guardian's end")

    def guardian_log(self) -> str:
        (log,) = self._logs.iterdir()
        return log.read_text()

    def __enter__(self) -> Sender:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


@contextmanager
def in_the_pause(
    source: QemuMachine, initrd: Path, tmp_path: Path, *options: str, resume: bool = False, state: str = "devices"
) -> Iterator[tuple[Sender, HeldReceiver, QemuMachine]]:
    """A sender whose destination is held with its state loaded, or, with *resume*, with the guest handed over."""
    with (
        QemuMachine(initrd, memory_bytes=256 * MIB, incoming=True) as destination,
        open_qemu(f"{destination.socket},state={state}", incoming=True) as guest,
    ):
        receiver = HeldReceiver(guest, resume=resume)
        receiver.start()
        try:
            uri = receiver.uris.get(timeout=LIMIT_S)
            with Sender(source, uri, tmp_path, "--workers", "1", *options, state=state) as here:
                assert receiver.loading.wait(HELD_LIMIT_S), "the destination never loaded the state"
                assert not runs(source)
                yield here, receiver, destination
        finally:
            receiver.release.set()
            receiver.join(HELD_LIMIT_S)


def runs(machine: QemuMachine) -> bool:
    return bool(machine.ask("query-status")["running"])


def as_before(source: QemuMachine, settings: Any) -> None:
    """It runs, and is what it was."""
    wait_until(lambda: runs(source), "the source to run")
    wait_until(lambda: source.settings() == settings, "the settings to be as before")
    source.wait_for_ticks(2)
    assert source.tracked_mappings() == 0


@pytest.mark.parametrize(
    ("number", "state"),
    [
        (signal.SIGHUP, "migrate"),
        (signal.SIGQUIT, "devices"),
        (signal.SIGTERM, "devices"),
        (signal.SIGKILL, "devices"),
        (signal.SIGKILL, "migrate"),
    ],
)
def test_a_signal_to_the_senders_group_in_the_pause_lets_the_source_run(
    linux_guest: QemuMachine, initrd: Path, tmp_path: Path, number: signal.Signals, state: str
) -> None:
    settings = linux_guest.settings()
    with in_the_pause(linux_guest, initrd, tmp_path, state=state) as (here, receiver, destination):
        os.killpg(here.process.pid, number)
        wait_until(lambda: runs(linux_guest), "the source to run")
        code, report = here.end()
        if number is signal.SIGTERM:
            assert (code, report["error"]["type"], report["source_guest"]) == (130, "CancelledError", "running")
        else:
            assert code == -number
            wait_until(lambda: "the guest is set right" in here.guardian_log(), "the guardian's success")
        receiver.release.set()
        receiver.join(HELD_LIMIT_S)
        assert receiver.report is not None
        assert receiver.report.status == "failed"
        assert destination.ticks() == []
    as_before(linux_guest, settings)


@pytest.mark.parametrize(("state", "status"), [("devices", "paused"), ("migrate", "postmigrate")])
def test_a_sender_killed_after_hand_over_never_lets_the_source_run(
    linux_guest: QemuMachine, initrd: Path, tmp_path: Path, state: str, status: str
) -> None:
    with in_the_pause(linux_guest, initrd, tmp_path, resume=True, state=state) as (here, receiver, destination):
        os.killpg(here.process.pid, signal.SIGKILL)
        here.process.wait()
        here.no_guardian()  # it has read all that it was told, and so has not done, and will not do anything
        assert linux_guest.ask("query-status")["status"] == status
        receiver.release.set()
        receiver.join(HELD_LIMIT_S)
        assert receiver.report is not None
        assert receiver.report.status == "completed"
        destination.wait_for_ticks(2)
        assert linux_guest.ask("query-status")["status"] == status


def test_a_qemu_that_hangs_in_the_pause_is_reported_as_paused_and_the_guardian_goes_on(
    linux_guest: QemuMachine, initrd: Path, tmp_path: Path
) -> None:
    settings = linux_guest.settings()
    with in_the_pause(linux_guest, initrd, tmp_path, "--switchover-timeout", "3s") as (here, _, destination):
        os.kill(linux_guest.pid, signal.SIGSTOP)
        code, report = here.end()
        error = report["error"]
        assert (code, report["status"], error["type"]) == (5, "failed", "SourcePausedError"), report
        assert report["source_guest"] == "paused"
        assert "loading device state at the destination did not end within" in error["message"]
        assert "PAUSED" in error["message"]
        (log,) = (tmp_path / "parmig").iterdir()
        assert f"keeps trying, its log is {log}" in error["message"]
        os.kill(linux_guest.pid, signal.SIGCONT)
        wait_until(lambda: "the guest is set right" in log.read_text(), "the guardian's success")
        assert destination.ticks() == []
    as_before(linux_guest, settings)


def test_a_sender_killed_as_soon_as_it_changed_settings_leaves_them_as_they_were(
    linux_guest: QemuMachine, tmp_path: Path, initrd: Path
) -> None:
    settings = linux_guest.settings()
    prelude = (
        "import os\n"
        "from parmig.guests.qemu.settings import Settings\n"
        "changed = Settings._set_parameters\n"
        "sender = os.getpid()\n"  # the guardian is forked from it
        "def die(self, values):\n"
        "    changed(self, values)\n"
        "    if os.getpid() == sender:\n"
        "        os.kill(sender, 9)\n"
        "Settings._set_parameters = die\n"
    )
    with QemuMachine(initrd, incoming=True) as destination, receive(destination, ",state=migrate") as there:
        with Sender(linux_guest, there.uri(), tmp_path, state="migrate", prelude=prelude) as here:
            assert here.end()[0] == -signal.SIGKILL
        as_before(linux_guest, settings)
        wait_until(lambda: "the guest is set right" in here.guardian_log(), "the guardian's success")


@pytest.mark.parametrize("command", ["stop", "cont"])
def test_a_guest_that_its_operator_pauses_or_continues_meanwhile_arrives_so(
    linux_guest: QemuMachine, initrd: Path, command: str
) -> None:
    if command == "cont":
        linux_guest.ask("stop")
    with (
        QemuMachine(initrd, incoming=True) as destination,
        receive(destination) as there,
        send(linux_guest, there.uri(), "--max-bandwidth", "40MiB/s") as here,
    ):
        here.wait_for("active, round 1")
        linux_guest.ask(command)
        assert here.end()[0] == 0, here.errors
        assert there.end()[0] == 0, there.errors
        assert runs(destination) == (command == "cont")


def rescued(guest: QemuGuest, source: QemuMachine) -> None:
    """What the guardian does once the session is free."""
    rescue = guest.rescue()
    guest._qmp.close()
    assert set_right(rescue.setup) is True
    assert set_right(rescue.setup) is True  # again: nothing more to do


@pytest.mark.parametrize("state", ["devices", "migrate"])
@pytest.mark.parametrize("paused", [True, False])
def test_a_rescue_leaves_a_guest_alone_that_its_operator_paused(
    linux_guest: QemuMachine, paused: bool, state: str
) -> None:
    settings = linux_guest.settings()
    with open_qemu(f"{linux_guest.socket},state={state}", incoming=False) as guest:
        guest.rescue()
        guest.start_dirty_log("digest")
        linux_guest.ask("stop")
        if paused:
            guest.pause(Buffer())
            assert guest.ran_until_pause() is False
            guest.rescue()
            guest.save_state(Buffer())
        rescued(guest, linux_guest)
    assert not runs(linux_guest)
    assert linux_guest.settings() == settings


@pytest.mark.parametrize("state", ["devices", "migrate"])
@pytest.mark.parametrize("saved", [True, False])
def test_a_rescue_lets_a_guest_run_that_ran_until_its_pause(linux_guest: QemuMachine, saved: bool, state: str) -> None:
    settings = linux_guest.settings()
    with open_qemu(f"{linux_guest.socket},state={state}", incoming=False) as guest:
        guest.rescue()
        guest.start_dirty_log("digest")
        guest.pause(Buffer())
        assert guest.ran_until_pause() is True
        if saved:
            guest.save_state(Buffer())
        rescued(guest, linux_guest)
    as_before(linux_guest, settings)


def test_a_rescue_of_a_qemu_that_has_ended_has_nothing_to_do(bare_guest: QemuMachine) -> None:
    with open_qemu(bare_guest.socket, incoming=False) as guest:
        setup = guest.rescue().setup
    bare_guest.process.kill()
    bare_guest.process.wait()
    assert set_right(setup) is False


def test_cont_waits_for_a_migration_that_is_not_finalized(linux_guest: QemuMachine) -> None:
    with open_qemu(f"{linux_guest.socket},state=migrate", incoming=False) as guest:
        guest.start_dirty_log("digest")
        guest.pause(Buffer())
        began = time.monotonic()
        threading.Timer(0.3, lambda: linux_guest.ask("migrate_cancel")).start()
        run(guest._qmp)
        assert time.monotonic() - began > 0.2
        assert runs(linux_guest)
        guest.resume_source()


def test_a_call_that_waits_for_a_qemu_that_hangs_is_aborted_and_the_next_resume_works(linux_guest: QemuMachine) -> None:
    with open_qemu(linux_guest.socket, incoming=False) as guest:
        guest.start_dirty_log("digest")
        guest.pause(Buffer())
        os.kill(linux_guest.pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            threading.Timer(0.2, guest.abort).start()
            with pytest.raises(GuestError, match="parmig gave up"):
                guest.save_state(Buffer())
            with pytest.raises(GuestError, match="parmig gave up"):
                guest.is_running()
            assert time.monotonic() - began < 20, "each call has a limit of 30 s of its own"
        finally:
            os.kill(linux_guest.pid, signal.SIGCONT)
        guest.resume_source()
        assert guest.is_running()
    linux_guest.wait_for_ticks(2)
