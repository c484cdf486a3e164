# SPDX-License-Identifier: Apache-2.0
"""What the processes of a migration under way may still do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from parmig.config import ReceiveConfig, SendConfig
from parmig.linux import privileges
from tests.integration.sides import Migration, guests

TO_LOOK = 1 << privileges.CAP_FOWNER
TO_ATTACH = 1 << privileges.CAP_DAC_OVERRIDE | 1 << privileges.CAP_DAC_READ_SEARCH | 1 << privileges.CAP_SYS_PTRACE
TO_LISTEN = 1 << privileges.CAP_NET_ADMIN


def rights_of(thread: Path) -> dict[str, int]:
    """Capabilities, and whether it may gain rights, of a thread: a directory of /proc."""
    fields = dict(line.split(":\t") for line in (thread / "status").read_text().splitlines() if ":\t" in line)
    return {name: int(fields[name], 16) for name in ("CapPrm", "CapEff", "CapInh", "CapAmb", "NoNewPrivs")}


def test_workers_keep_only_what_they_need() -> None:
    """The capabilities of docs/privileges.md, as root has them all. Threads of ZeroMQ begin before memory is open."""
    with guests(hold_source=["pause"]) as (source, destination), Migration(source, destination) as migration:
        source.gates["pause"].wait()
        for pids, last in ((migration.send_workers(), TO_LOOK), (migration.receive_workers(), TO_LOOK | TO_LISTEN)):
            for process in (Path(f"/proc/{pid}") for pid in pids):
                assert rights_of(process)["CapPrm"] & ~last == 0
                assert (process / "mem").stat().st_uid == 0  # as of a process that dumps no core
                for thread in (process / "task").iterdir():
                    rights = rights_of(thread)
                    assert rights["CapPrm"] & ~(TO_ATTACH | TO_LOOK | TO_LISTEN) == 0
                    assert rights["CapEff"] == rights["CapPrm"]
                    assert (rights["CapInh"], rights["CapAmb"], rights["NoNewPrivs"]) == (0, 0, 1)
        source.open_gates()
        assert migration.sent().status == "completed"


def test_workers_of_root_listen_in_the_folder_of_another_user(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root may do this")
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o700)
    os.chown(folder, 65534, 65534)
    receive = ReceiveConfig(listen=f"unix://{folder}/socket")
    with (
        guests("memory=8MiB,rate=0") as (source, destination),
        Migration(source, destination, SendConfig(workers=1, transport="unix"), receive=receive) as migration,
    ):
        assert migration.sent().status == "completed"
