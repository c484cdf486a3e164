# SPDX-License-Identifier: Apache-2.0
"""The text after ``qemu:``, and the guest that it names."""

from __future__ import annotations

from typing import Annotated

import msgspec

from parmig.errors import UsageError
from parmig.guests.options import read_options
from parmig.guests.qemu.qemu_guest import QemuGuest
from parmig.guests.qemu.qmp import Qmp
from parmig.guests.qemu.settle import WAYS
from parmig.guests.qemu.state_choice import AUTO, CHOICES, choose_state
from parmig.options import COUNT, DURATION, option
from parmig.units import NS_PER_S


class QemuOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How parmig works with a QEMU."""

    timeout_ns: Annotated[
        int, option("Limit for each step of QEMU. All steps usually take milliseconds.", DURATION, gt=0)
    ] = 30 * NS_PER_S
    pid: Annotated[
        int,
        option(
            "Process of QEMU, if another program opened the socket for it.",
            COUNT,
            shown="the owner of the socket",
            ge=0,
        ),
    ] = 0
    settle: Annotated[
        str,
        option(
            "How each round waits for disk requests in flight. transaction: the guest keeps running. "
            "stop: it pauses for a moment.",
            choices=tuple(WAYS),
            shown="parmig tries which one works",
        ),
    ] = ""
    state: Annotated[
        str,
        option(
            "How device state is taken. devices: by xen-save-devices-state, while the guest is simply paused. "
            "migrate: by QEMU's own migration. Give both sides the same.",
            choices=CHOICES,
        ),
    ] = AUTO


def connect(text: str) -> tuple[Qmp, QemuOptions]:
    """A session with the QEMU that *text* names, ``QMP-SOCKET[,KEY=VALUE]...``, and the options. The caller closes it.

    Raises:
        UsageError: the text names no socket, or an option is not allowed.
        GuestRefusedError: no QEMU answers.
    """
    path, _, rest = text.partition(",")
    if not path:
        raise UsageError("no QMP socket after 'qemu:'; write qemu:PATH, the path of QEMU's QMP socket")
    options = read_options(rest, QemuOptions, "qemu")
    return Qmp(path, options.timeout_ns / NS_PER_S), options


def open_qemu(text: str, *, incoming: bool) -> QemuGuest:
    """The QEMU that *text* names.

    Args:
        text: as for :func:`connect`.
        incoming: True on the destination.

    Raises:
        UsageError: the text names no socket, or an option is not allowed.
        GuestRefusedError: no QEMU answers, or a migration cannot work with it.
    """
    qmp, options = connect(text)
    try:
        state = choose_state(qmp, options.state)
    except BaseException:
        qmp.close()
        raise
    return QemuGuest(qmp, options.pid or qmp.peer_pid, incoming=incoming, way=options.settle, state=state)
