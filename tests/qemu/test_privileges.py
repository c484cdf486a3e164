# SPDX-License-Identifier: Apache-2.0
"""What commands may do that run as a user of their own, with the capabilities of docs/privileges.md and no others."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.sides import LISTEN, Command
from tests.qemu.machines import QemuMachine

pytestmark = pytest.mark.qemu

QEMU_USER = 54321
"""Nobody's number. The group of this number may use the sockets of the machine."""

PARMIG_USER = 54322


def with_only(*capabilities: str, user: int = PARMIG_USER) -> list[str]:
    """A command that runs another one as *user* with these capabilities, and no way to get more."""
    kept = ",".join(f"+{name}" for name in capabilities)
    ambient = [f"--inh-caps={kept}", f"--ambient-caps={kept}"] if capabilities else []
    bounding = f"--bounding-set=-all,{kept}".rstrip(",")
    groups = [f"--reuid={user}", f"--regid={user}", f"--groups={QEMU_USER}"]
    return ["setpriv", *groups, *ambient, bounding, "--no-new-privs"]


@pytest.fixture(scope="module", autouse=True)
def _other_users(qemu: None) -> None:
    """Skip where another user cannot run this Python, or there is no setpriv."""
    if shutil.which("setpriv") is None:
        pytest.skip("no setpriv")
    trial = subprocess.run([*with_only(), sys.executable, "-c", "import numpy"], capture_output=True, check=False)
    if trial.returncode:
        pytest.skip(f"another user cannot run {sys.executable}: {trial.stderr.decode().strip()}")


@pytest.fixture(scope="module")
def bare_guest_of_another_user(qemu: None) -> Iterator[QemuMachine]:
    with QemuMachine(user=QEMU_USER) as machine:
        yield machine


ATTACH = ("sys_ptrace", "dac_read_search", "fowner")
"""For a QEMU of another user."""


@pytest.mark.parametrize("source_is_own", [False, True])
def test_the_documented_rights_are_enough(initrd: Path, source_is_own: bool, shared_folder: Path) -> None:
    """One side runs as QEMU's own user without any capability, the other one as another user."""
    rights = [with_only(*ATTACH), with_only(user=QEMU_USER)]
    (sender, receiver) = reversed(rights) if source_is_own else rights
    with (
        QemuMachine(initrd, user=QEMU_USER, rate=5) as source,
        QemuMachine(initrd, user=QEMU_USER, incoming=True) as destination,
    ):
        source.wait_for_serial("TICK 2 ")
        receive = ("receive", "--listen", LISTEN, "--guest", f"qemu:{destination.socket}", "--json")
        with Command(*receive, "--state-dir", str(shared_folder / "there"), wrapper=receiver) as there:
            send = ("send", there.uri(), "--guest", f"qemu:{source.socket}", "--json", "--workers", "2", "--verify")
            with Command(*send, "--state-dir", str(shared_folder / "here"), wrapper=sender) as here:
                code, report = here.end()
                assert (code, report["status"], report["verified"]) == (0, "completed", True), here.errors
                assert report["tracker"] == "pagemap"
            assert there.end()[0] == 0, there.errors
        destination.wait_for_ticks(2)


@pytest.mark.parametrize("missing", ATTACH)
def test_a_missing_right_is_named(bare_guest_of_another_user: QemuMachine, missing: str, shared_folder: Path) -> None:
    rights = with_only(*(name for name in ATTACH if name != missing))
    send = ("send", "tcp://127.0.0.1:9", "--guest", f"qemu:{bare_guest_of_another_user.socket}", "--json")
    with Command(*send, "--state-dir", str(shared_folder / "state"), wrapper=rights) as command:
        code, report = command.end()
    assert (code, report["error"]["type"]) == (3, "GuestRefusedError")
    assert "CAP_SYS_PTRACE, CAP_DAC_READ_SEARCH and CAP_FOWNER" in report["error"]["message"]
