# SPDX-License-Identifier: Apache-2.0
"""Waits until the device writes that QEMU has begun have landed, while the guest runs.

A disk opened with ``cache=none`` stores into guest memory by direct I/O: the kernel pins the pages when a request is
submitted, which write tracking sees. The disk fills them later, which it does not see.

The QMP command ``transaction`` begins by waiting for every request of every disk (bdrv_drain_all in qmp_transaction,
blockdev.c), also without any actions, and leaves the virtual CPUs running. This is a side effect, so parmig tries it
on each QEMU with a disk of its own first. If it does not work, the guest is stopped for a moment: stopping waits for
the same requests (do_vm_stop, system/cpus.c).
"""

from __future__ import annotations

import contextlib
import time

from parmig.errors import GuestError
from parmig.guests.qemu.qmp import Qmp
from parmig.guests.qemu.running import run
from parmig.ram.dirty_log import SETTLED_BY_STOP
from parmig.units import NS_PER_MS

TRANSACTION, STOP = "transaction", SETTLED_BY_STOP
WAYS = (TRANSACTION, STOP)

PROBE_DISK = "parmig-probe"
PROBE_LATENCIES_NS = (10 * NS_PER_MS, 40 * NS_PER_MS, 160 * NS_PER_MS)
"""How long the probe's disk takes for a request; the guest's own disks wait as long. A busy QEMU may take longer than
that for the commands before the transaction, so that nothing can be said: then the next."""


def choose_way(qmp: Qmp) -> str:
    """How this QEMU settles: TRANSACTION if it was seen to wait for a request in flight, else STOP.

    Raises:
        GuestError: QEMU is gone or does not answer.
    """
    for latency_ns in PROBE_LATENCIES_NS:
        waits = _transaction_waits(qmp, latency_ns)
        if waits is not None:
            return TRANSACTION if waits else STOP
    return STOP


def _transaction_waits(qmp: Qmp, latency_ns: int) -> bool | None:
    """Whether ``transaction`` waits for a request to a disk that parmig added; None: QEMU was too slow to decide."""
    options = f"if=none,id={PROBE_DISK},driver=null-co,latency-ns={latency_ns},read-only=on"
    if qmp.monitor(f"drive_add 0 {options}").strip() != "OK":
        return False  # a build without this driver
    try:
        began_ns = time.monotonic_ns()
        qmp.monitor(f'qemu-io {PROBE_DISK} "aio_read -q 0 512"')
        if time.monotonic_ns() - began_ns > latency_ns // 2:
            return None
        with contextlib.suppress(GuestError):  # refused: it waits for nothing
            qmp.execute("transaction", actions=[])
        return time.monotonic_ns() - began_ns >= latency_ns
    finally:
        qmp.monitor(f"drive_del {PROBE_DISK}")


class Settling:
    """Lets a QEMU settle, in the one way that it was seen to.

    Args:
        qmp: the session; used, not owned.
        way: one of WAYS; empty: the first call tries which one works.
    """

    def __init__(self, qmp: Qmp, way: str = "") -> None:
        self._qmp = qmp
        self._way = way
        self._stopped = False

    def way(self) -> str:
        """How this QEMU settles.

        Raises:
            GuestError: QEMU is gone or does not answer.
        """
        self._way = self._way or choose_way(self._qmp)
        return self._way

    def settle(self) -> None:
        """Return once every disk request that was in flight at the call has ended.

        Raises:
            GuestError: they did not end within the session's limit, or QEMU is gone; :meth:`undo` is due.
        """
        try:
            if self.way() == TRANSACTION:
                self._qmp.execute("transaction", actions=[])
            elif self._qmp.execute("query-status")["running"]:
                self._stopped = True
                self._qmp.execute("stop")
                self.undo()
        except GuestError as error:
            raise GuestError(
                f"the guest's disk requests in flight did not end: {error}; check whether a disk or its server hangs, "
                "or allow more time with ,timeout=DURATION after the guest's name"
            ) from error

    def undo(self) -> None:
        """Let a guest run that was stopped to settle.

        Raises:
            GuestError: QEMU is gone or does not answer.
        """
        if self._stopped:
            run(self._qmp)
            self._stopped = False
