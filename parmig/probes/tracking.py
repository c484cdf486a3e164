# SPDX-License-Identifier: Apache-2.0
"""Which kinds of write tracking work here, tried on a small memory file of this process."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess

import numpy as np

from parmig.linux import pagemap, uffd
from parmig.probes.probe import COMMAND_LIMIT_S, TRIAL_BYTES, Probe, read, trial_memory

NOBODY = 65534
"""A user other than root, for what only matters between users."""

_FALL_BACK = "parmig falls back to the digest tracker, which reads all memory each round"


def probe_userfaultfd() -> Probe:
    """The system call that write tracking begins with."""
    try:
        os.close(uffd.create())
    except OSError as error:
        advice = f"allow userfaultfd in the container's seccomp profile; until then {_FALL_BACK}"
        return Probe("userfaultfd", "missing", error.strerror or str(error), advice)
    return Probe("userfaultfd", "ok", "allowed for this user")


def probe_write_protection() -> Probe:
    """Asynchronous write protection (WP_ASYNC) and what it needs for shared memory."""
    reason = uffd.probe_write_tracking()
    if reason is not None:
        return Probe("WP_ASYNC", "missing", reason, f"Linux 6.7 or newer; until then {_FALL_BACK}")
    return Probe("WP_ASYNC", "ok", "with WP_UNPOPULATED and WP_HUGETLBFS_SHMEM")


def probe_pagemap_scan() -> Probe:
    """Write tracking from end to end: one page of a shared memory file is written and must be the one found."""
    reason = uffd.probe_write_tracking()
    if reason is None:
        try:
            reason = _try_write_tracking()
        except OSError as error:
            reason = error.strerror or str(error)
    if reason is not None:
        return Probe("PAGEMAP_SCAN", "missing", reason, f"Linux 6.7 or newer; until then {_FALL_BACK}")
    return Probe("PAGEMAP_SCAN", "ok", "a written page of a shared memory file was found, and only that one")


def _try_write_tracking() -> str | None:
    """Why tracking did not work on a trial memory, or None."""
    written_page = 5
    with trial_memory() as (memory, address):
        tracking_fd = uffd.create()
        pagemap_fd = os.open("/proc/self/pagemap", os.O_RDONLY)
        try:
            uffd.enable(tracking_fd, uffd.UFFD_TRACKING_FEATURES)
            uffd.register_wp(tracking_fd, address, TRIAL_BYTES)
            _scan_written(pagemap_fd, address)
            memory[written_page * mmap.PAGESIZE] = 2
            written = _scan_written(pagemap_fd, address)
            uffd.unregister(tracking_fd, address, TRIAL_BYTES)
        finally:
            os.close(pagemap_fd)
            os.close(tracking_fd)
    start = address + written_page * mmap.PAGESIZE
    expected = [(start, start + mmap.PAGESIZE)]
    return None if written == expected else f"one page was written and {len(written)} other ranges were found"


def _scan_written(pagemap_fd: int, address: int) -> list[tuple[int, int]]:
    """The ranges written since the last scan, which are protected again in the same step."""
    vector = np.zeros(TRIAL_BYTES // mmap.PAGESIZE, dtype=pagemap.PAGE_REGION_DTYPE)
    written = pagemap.PAGE_IS_WRITTEN
    flags = pagemap.PM_SCAN_WP_MATCHING | pagemap.PM_SCAN_CHECK_WPASYNC
    scan = pagemap.scan(pagemap_fd, address, address + TRIAL_BYTES, vector, flags=flags, mask=written, returned=written)
    return [(int(region["start"]), int(region["end"])) for regions in scan for region in regions]


def probe_ptrace() -> Probe:
    """Whether a QEMU that this process did not start may be tracked, and its private memory read and written.

    Root tries it on a process of another user, which needs CAP_SYS_PTRACE. Any other user tries it on a process of
    their own that is no child of this one, which needs a Yama scope of 0.
    """
    uid = os.geteuid()
    try:
        yama = read("/proc/sys/kernel/yama/ptrace_scope")
    except OSError:
        yama = "none"
    rights = f"uid {uid}, Yama scope {yama}"
    if uid == 0 and _can_reach(NOBODY):
        return Probe("ptrace", "ok", f"{rights}, CAP_SYS_PTRACE: processes of every user")
    if _can_reach(None):
        return Probe(
            "ptrace",
            "limited",
            f"{rights}: only processes of the same user",
            "run parmig as the user of QEMU, or as root",
        )
    advice = "run with CAP_SYS_PTRACE, or set kernel.yama.ptrace_scope to 0"
    until_then = "until then a QEMU guest needs shared memory, state=migrate and --tracker digest"
    return Probe("ptrace", "missing", f"{rights}: no process but children", f"{advice}; {until_then}")


def _can_reach(user: int | None) -> bool:
    """Whether the memory of a process of *user* that is no child of this one may be opened."""
    # The shell ends at once, so that its child is no descendant of this process, which Yama would let it trace.
    shell = ["/bin/sh", "-c", "sleep 5 >/dev/null 2>&1 & echo $!"]
    try:
        done = subprocess.run(shell, capture_output=True, check=True, timeout=COMMAND_LIMIT_S, user=user)
        pid = int(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return False
    try:
        os.close(os.open(f"/proc/{pid}/mem", os.O_RDONLY))
    except OSError:
        return False
    finally:
        os.kill(pid, signal.SIGKILL)
    return True
