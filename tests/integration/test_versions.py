# SPDX-License-Identifier: Apache-2.0
"""This parmig and the release before it migrate to each other, as processes: protocol versions 3 and 2."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.integration.sides import LISTEN, ROOT, Command

LAST_RELEASE = "c3f9503"
"""The last commit whose protocol version is the one before today's. Set anew when the version is raised."""

GUEST = "synthetic:memory=32MiB"
SEND = ("--guest", f"{GUEST},rate=40MiB/s", "--workers", "2", "--verify", "--json")


@pytest.fixture(scope="module")
def last_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the last release; a checkout without its history does not have it."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    archive = subprocess.run(
        ["git", "archive", "--format=tar", LAST_RELEASE, "parmig", "workers"], cwd=ROOT, capture_output=True
    )
    if archive.returncode:
        why = archive.stderr.decode(errors="replace").strip()
        pytest.skip(f"no git history with commit {LAST_RELEASE}: {why}")
    directory = tmp_path_factory.mktemp("last-release")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(directory, filter="data")
    return directory


@pytest.mark.parametrize("old_side", ["source", "destination"])
@pytest.mark.parametrize("compress", ["none", "lz4"])
def test_this_parmig_and_the_last_release_migrate_to_each_other(
    last_release: Path, old_side: str, compress: str
) -> None:
    here_directory, there_directory = (last_release, ROOT) if old_side == "source" else (ROOT, last_release)
    with Command("receive", "--listen", LISTEN, "--guest", GUEST, "--json", directory=there_directory) as there:
        send = ("send", there.uri(), *SEND, "--compress", compress)
        with Command(*send, directory=here_directory) as here:
            code, report = here.end()
            assert (code, report["status"], report["verified"]) == (0, "completed", True), here.errors + there.errors
            code, report = there.end()
            assert (code, report["status"]) == (0, "completed"), there.errors


def test_a_transport_that_the_last_release_does_not_know_is_refused_by_name(last_release: Path) -> None:
    with Command("receive", "--listen", LISTEN, "--guest", GUEST, "--json", directory=last_release) as there:
        with Command("send", there.uri(), *SEND, "--transport", "tcp") as here:
            code, report = here.end()
            assert (code, report["error"]["type"]) == (3, "PeerRefusedError"), here.errors
            assert "transport 'tcp': not known here" in report["error"]["message"]
        with Command("send", there.uri(), *SEND) as right:
            assert (right.end()[0], there.end()[0]) == (0, 0), right.errors + there.errors


TRAITS = (
    "from parmig.guests.synthetic.synthetic_guest import SyntheticGuest; from parmig.guests.trait import Trait; "
    "SyntheticGuest.traits = lambda self: {'devices': Trait(('a disk',), '')}"
)


def test_a_source_that_describes_its_devices_moves_to_the_last_release(last_release: Path) -> None:
    with (
        Command("receive", "--listen", LISTEN, "--guest", GUEST, "--json", directory=last_release) as there,
        Command("send", there.uri(), *SEND, prelude=TRAITS) as here,
    ):
        code, report = here.end()
        assert (code, report["status"], report["verified"]) == (0, "completed", True), here.errors + there.errors
        assert there.end()[0] == 0, there.errors


def test_the_last_release_cannot_check_and_waits_on(last_release: Path) -> None:
    with Command("receive", "--listen", LISTEN, "--guest", GUEST, "--json", directory=last_release) as there:
        with Command("send", there.uri(), *SEND, "--check") as check:
            code, report = check.end()
            assert (code, report["error"]["type"]) == (3, "PeerRefusedError"), check.errors
            assert "older parmig, which cannot check" in report["error"]["message"]
        with Command("send", there.uri(), *SEND) as right:
            assert (right.end()[0], there.end()[0]) == (0, 0), right.errors + there.errors
