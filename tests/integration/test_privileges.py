# SPDX-License-Identifier: Apache-2.0
"""What works without the rights of root."""

from __future__ import annotations

import json
import subprocess
import sys

from parmig.linux.syscalls import libc

PR_CAPBSET_DROP = 24  # include/uapi/linux/prctl.h
CAP_NET_ADMIN = 12  # include/uapi/linux/capability.h


def without_network_rights() -> None:
    """Take the right away for good; fails for a user who does not have it."""
    libc.prctl(PR_CAPBSET_DROP, CAP_NET_ADMIN, 0, 0, 0)


def test_a_migration_needs_no_right_to_filter_packets() -> None:
    command = [sys.executable, "-m", "parmig", "demo", "--memory", "16MiB", "--workers", "1", "--json", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=without_network_rights)
    report = json.loads(done.stdout)
    assert (done.returncode, report["status"], report["verified"]) == (0, "completed", True), report["error"]
