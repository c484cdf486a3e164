# SPDX-License-Identifier: Apache-2.0
"""The QEMU process as a whole: checks that it can take part in a migration, and ends it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from parmig.errors import GuestError, GuestRefusedError
from parmig.guests.qemu.outgoing import IDLE
from parmig.guests.qemu.qmp import Qmp
from parmig.guests.qemu.qmp_events import wait_readable

QUIT_LIMIT_S = 5.0
"""How long QEMU may take to end; it takes some 10 ms, longer with disks to flush."""


def has_ended(pidfd: int, within_s: float = 0.0) -> bool:
    """Whether the process behind *pidfd* is gone, or goes within some seconds."""
    return bool(wait_readable(time.monotonic() + within_s, pidfd))


def start_ticks(pid: int) -> int | None:
    """When process *pid* was started, in the kernel's ticks since boot; None when it has ended.

    Together with the number it identifies a process, because numbers are used again.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])  # state and starttime, proc(5)


def quit_qemu(qmp: Qmp, pidfd: int) -> None:
    """End QEMU and wait until it is gone; by SIGKILL when it does not go by itself.

    Args:
        qmp: the session, lost or not.
        pidfd: of QEMU; used, not owned.

    Raises:
        GuestError: SIGKILL does not end it either.
    """
    try:
        qmp.execute("quit", limit_s=QUIT_LIMIT_S)
    except GuestError:
        pass  # It may have ended before it answered; the wait for the process decides.
    if wait_readable(time.monotonic() + QUIT_LIMIT_S, pidfd):
        return
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except OSError as error:
        raise GuestError(f"QEMU did not quit and cannot be killed: {os.strerror(error.errno or 0)}") from error
    if not wait_readable(time.monotonic() + QUIT_LIMIT_S, pidfd):
        raise GuestError("QEMU was killed but has not ended; it hangs in the kernel")


def open_pidfd(pid: int, path: str) -> int:
    """A pidfd of QEMU; the caller closes it.

    Raises:
        GuestRefusedError: the process is not there.
    """
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        raise GuestRefusedError(
            f"process {pid}, which listens at {path}, is gone: {error.strerror}; add ,pid=NUMBER with QEMU's process"
        ) from error


def machine_type(qmp: Qmp) -> str:
    """The versioned machine type.

    Raises:
        GuestError: QEMU is gone.
    """
    return str(qmp.execute("qom-get", path="/machine", property="type")).removesuffix("-machine")


def check_source(qmp: Qmp) -> None:
    """Check that QEMU can migrate its guest away now.

    Raises:
        GuestRefusedError: it cannot; the message has the reason, and what to do.
        GuestError: QEMU failed.
    """
    state = str(qmp.execute("query-status")["status"])
    migration = qmp.execute("query-migrate")
    if state == "inmigrate":
        raise GuestRefusedError(
            f"QEMU at {qmp.path} waits for a migration (-incoming), so it is a destination; name the source's QEMU"
        )
    if migration.get("status", "") not in IDLE:
        raise GuestRefusedError(
            f"QEMU at {qmp.path} already migrates ({migration['status']}); cancel that migration first"
        )
    if state == "postmigrate":
        raise GuestRefusedError(
            f"the guest of QEMU at {qmp.path} was migrated away, or a migration of it was cancelled while it "
            "was paused (postmigrate); to run it here, send QEMU the command cont"
        )
    if reasons := migration.get("blocked-reasons"):
        raise GuestRefusedError(f"QEMU at {qmp.path} reports that it cannot be migrated: {'; '.join(reasons)}")


def check_destination(qmp: Qmp) -> None:
    """Check that QEMU waits for a guest, and does not listen for a connection yet.

    Raises:
        GuestRefusedError: it does not; the message has the option it needs.
        GuestError: QEMU failed.
    """
    state = str(qmp.execute("query-status")["status"])
    if state != "inmigrate":
        raise GuestRefusedError(f"QEMU at {qmp.path} waits for no migration ({state}); start it with -incoming defer")
    migration = qmp.execute("query-migrate")
    # QEMU 7.2 has no status before a client connects, but reports the address at which it waits.
    if migration.get("status", "none") != "none" or "socket-address" in migration:
        raise GuestRefusedError(
            f"QEMU at {qmp.path} has its own incoming migration; start it with -incoming defer and no address"
        )
