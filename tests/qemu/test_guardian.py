# SPDX-License-Identifier: Apache-2.0
"""A sender that is killed, even while the guest is paused, leaves the guest running at the source."""

from __future__ import annotations

import queue
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from parmig.config import ReceiveConfig, SendConfig
from parmig.engine.destination.receiver import MigrationReceiver
from parmig.engine.reporting.report import Report
from parmig.engine.source.sender import MigrationSender
from parmig.guests.qemu.options import open_qemu
from parmig.guests.qemu.qemu_guest import QemuGuest
from tests.qemu.machines import LIMIT_S, QemuMachine, wait_until

pytestmark = pytest.mark.qemu

MEMORY_BYTES = 256 << 20
HELD_LIMIT_S = 2 * LIMIT_S
"""For what takes a whole migration, or is held while the test looks at both sides."""


class HeldReceiver(threading.Thread):
    """A receiver whose guest says nothing until released: once it has its state, or before it resumes."""

    def __init__(self, guest: QemuGuest, *, resume: bool = False) -> None:
        super().__init__()
        self.loading, self.release = threading.Event(), threading.Event()
        self.uris: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.report: Report | None = None
        load, run = guest.finish_load, guest.resume

        def held() -> None:
            load()
            self.loading.set()
            self.release.wait(HELD_LIMIT_S)

        def held_before() -> int:
            self.loading.set()
            self.release.wait(HELD_LIMIT_S)
            return run()

        if resume:
            guest.resume = held_before  # type: ignore[method-assign]
        else:
            guest.finish_load = held  # type: ignore[method-assign]
        config = ReceiveConfig(listen="zmq+tcp://127.0.0.1:0")
        self._receiver = MigrationReceiver(guest, config, listening=self.uris.put)

    def run(self) -> None:
        self.report = self._receiver.receive_loop()


def killed_in_the_pause(source: QemuMachine, destination: QemuMachine) -> Report:
    """Migrate, kill the sender while the guest is paused, and return what the receiver says."""
    with open_qemu(destination.socket, incoming=True) as guest:
        assert isinstance(guest, QemuGuest)
        receiver = HeldReceiver(guest)
        receiver.start()
        try:
            uri = receiver.uris.get(timeout=LIMIT_S)
            command = [sys.executable, "-m", "parmig", "send", uri, "--guest", f"qemu:{source.socket}", "--quiet"]
            with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as sender:
                try:
                    assert receiver.loading.wait(HELD_LIMIT_S), "the destination never loaded the state"
                    assert not source.ask("query-status")["running"]
                finally:
                    sender.kill()
        finally:
            receiver.release.set()
            receiver.join(HELD_LIMIT_S)
        assert receiver.report is not None
        return receiver.report


def test_a_sender_killed_in_the_pause_leaves_the_guest_running_at_the_source(
    linux_guest: QemuMachine, initrd: Path
) -> None:
    before = linux_guest.settings()
    with QemuMachine(initrd, memory_bytes=MEMORY_BYTES, incoming=True) as destination:
        report = killed_in_the_pause(linux_guest, destination)
        assert report.status == "failed"
        assert report.error is not None
        assert report.error.type == "PeerLostError"
        wait_until(lambda: destination.process.poll() is not None, "the loaded copy to be ended")
    linux_guest.wait_for_ticks(2)
    wait_until(lambda: linux_guest.settings() == before, "the settings to be as before")
    assert linux_guest.tracked_mappings() == 0


def test_no_guardian_remains_after_a_migration(linux_guest: QemuMachine, initrd: Path) -> None:
    with QemuMachine(initrd, memory_bytes=MEMORY_BYTES, incoming=True) as destination:
        with (
            open_qemu(destination.socket, incoming=True) as arriving,
            open_qemu(linux_guest.socket, incoming=False) as leaving,
        ):
            assert isinstance(arriving, QemuGuest)
            receiver = HeldReceiver(arriving)
            receiver.start()
            uri = receiver.uris.get(timeout=LIMIT_S)
            sender = MigrationSender(leaving, uri, SendConfig(workers=1))
            thread = threading.Thread(target=sender.start)
            thread.start()
            try:
                assert receiver.loading.wait(HELD_LIMIT_S), "the destination never loaded the state"
                guardian = sender._custody._guardian.pid
                assert psutil.Process(guardian).name() == "parmig-guardian"
            finally:
                receiver.release.set()
                thread.join(HELD_LIMIT_S)
                receiver.join(HELD_LIMIT_S)
            wait_until(lambda: not is_there(guardian), "the guardian's end")
        destination.wait_for_ticks(2)


def is_there(pid: int) -> bool:
    """Whether that process lives."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_after_that_the_guest_can_be_migrated(linux_guest: QemuMachine, initrd: Path) -> None:
    before = linux_guest.settings()
    with QemuMachine(initrd, memory_bytes=MEMORY_BYTES, incoming=True) as destination:
        killed_in_the_pause(linux_guest, destination)
    wait_until(lambda: linux_guest.settings() == before, "the settings to be as before")
    with QemuMachine(initrd, memory_bytes=MEMORY_BYTES, incoming=True) as destination:
        with open_qemu(destination.socket, incoming=True) as guest:
            assert isinstance(guest, QemuGuest)
            receiver = HeldReceiver(guest)
            receiver.release.set()
            receiver.start()
            uri = receiver.uris.get(timeout=LIMIT_S)
            command = [sys.executable, "-m", "parmig", "send", uri, "--guest", f"qemu:{linux_guest.socket}", "--quiet"]
            assert subprocess.run(command, stdout=subprocess.DEVNULL, timeout=HELD_LIMIT_S, check=False).returncode == 0
            receiver.join(HELD_LIMIT_S)
        destination.wait_for_ticks(2)
