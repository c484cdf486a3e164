# SPDX-License-Identifier: Apache-2.0
"""The text behind ``qemu:``, and the guest that it names."""

from __future__ import annotations

from parmig.errors import UsageError
from parmig.guests.qemu.qemu_guest import QemuGuest
from parmig.guests.qemu.qmp import Qmp
from parmig.guests.qemu.settle import WAYS
from parmig.units import NS_PER_S, parse_duration_ns

DEFAULT_LIMIT_S = 30.0
"""How long QEMU may take for any one step; all of them take milliseconds."""


def open_qemu(options: str, *, incoming: bool) -> QemuGuest:
    """The QEMU that *options* names: ``QMP-SOCKET[,timeout=DURATION][,pid=NUMBER][,settle=WAY]``.

    Args:
        options: the path of a QMP unix socket; ``timeout`` limits each step (30 s), ``pid`` names QEMU's
            process where somebody else opened the socket for it, ``settle`` says how disk requests in flight are
            waited for: ``transaction`` or ``stop`` (found out where it is not given).
        incoming: True on the destination.

    Raises:
        UsageError: the options make no sense.
        GuestRefusedError: nobody is there, or not as a migration needs it.
    """
    path, *pairs = options.split(",")
    if not path:
        raise UsageError("qemu: names no QMP socket; write qemu:PATH-OF-ITS-QMP-SOCKET")
    limit_s, pid, way = DEFAULT_LIMIT_S, 0, ""
    for pair in pairs:
        key, _, value = pair.partition("=")
        if key == "timeout" and value:
            limit_s = parse_duration_ns(value) / NS_PER_S
        elif key == "pid" and value.isdecimal():
            pid = int(value)
        elif key == "settle" and value in WAYS:
            way = value
        else:
            raise UsageError(
                f"{pair!r} is not an option of a QEMU guest; choose timeout=30s, pid=NUMBER and settle={'|'.join(WAYS)}"
            )
    qmp = Qmp(path, limit_s)
    return QemuGuest(qmp, pid or qmp.peer_pid, incoming=incoming, way=way)
