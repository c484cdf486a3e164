# SPDX-License-Identifier: Apache-2.0
"""What this user may do of what docs/privileges.md lists: a probe for each thing that needs rights."""

from __future__ import annotations

import os
import socket

from parmig.linux import privileges, sockets
from parmig.probes.probe import Probe, read

_YAMA = "/proc/sys/kernel/yama/ptrace_scope"
_FIRST_FREE_PORT = "/proc/sys/net/ipv4/ip_unprivileged_port_start"

_ANY_QEMU = {
    "CAP_SYS_PTRACE": (privileges.CAP_SYS_PTRACE,),
    "CAP_DAC_READ_SEARCH": (privileges.CAP_DAC_READ_SEARCH, privileges.CAP_DAC_OVERRIDE),
    "CAP_FOWNER": (privileges.CAP_FOWNER,),
}
"""What a QEMU of another user needs, each with the capabilities that grant it."""


def probe_own_qemu() -> Probe:
    """Whether this user may attach to QEMUs of their own."""
    name, scope = "right: own QEMU", _yama_scope()
    has_ptrace = privileges.has(privileges.CAP_SYS_PTRACE)
    if scope <= 0 or (has_ptrace and scope < 3):
        why = "CAP_SYS_PTRACE" if has_ptrace else "Yama's scope is 0" if scope == 0 else "there is no Yama"
        return Probe(name, "ok", f"may attach to a QEMU of user {os.geteuid()}: {why}")
    lacking = "Yama's scope is 3: nobody may attach" if scope >= 3 else f"lacks CAP_SYS_PTRACE, Yama's scope is {scope}"
    mend = "boot with scope 0" if scope >= 3 else "grant CAP_SYS_PTRACE, or set kernel.yama.ptrace_scope to 0"
    until_then = "until then such a guest needs shared memory, state=migrate and --tracker digest"
    return Probe(name, "limited", lacking, f"{mend}; {until_then}")


def probe_any_qemu() -> Probe:
    """Whether this user may attach to QEMUs of other users, and which capabilities that lacks."""
    name = "right: any QEMU"
    lacking = [wanted for wanted, granting in _ANY_QEMU.items() if not any(map(privileges.has, granting))]
    if lacking:
        advice = f"run parmig as the user of QEMU, or grant {' and '.join(lacking)}; see privileges.md"
        return Probe(name, "limited", f"lacks {', '.join(lacking)}", advice)
    return Probe(name, "ok", f"may attach to QEMUs of every user: {', '.join(_ANY_QEMU)}")


def probe_packet_filter() -> Probe:
    """Whether a receiver may have the kernel drop packets of strangers, found by trying."""
    name = "right: packet filter"
    with socket.socket() as sock:
        try:
            sockets.drop_all_packets(sock)
        except OSError as error:
            found = f"a receiver with --transport zmq may not have the kernel drop packets: {error.strerror}"
            return Probe(name, "limited", found, "grant CAP_NET_ADMIN; until then its workers close such connections")
    return Probe(name, "ok", "a receiver with --transport zmq may have the kernel drop what strangers send")


def probe_low_ports() -> Probe:
    """At which ports this user may listen."""
    name = "right: low ports"
    first = int(read(_FIRST_FREE_PORT))
    if privileges.has(privileges.CAP_NET_BIND_SERVICE):
        return Probe(name, "ok", "CAP_NET_BIND_SERVICE: may listen at every port")
    if first <= 1:
        return Probe(name, "ok", "every user may listen at every port")
    return Probe(name, "limited", f"ports from {first} on", "take such a port, or grant CAP_NET_BIND_SERVICE")


def _yama_scope() -> int:
    """Yama's ptrace_scope; -1: this kernel has no Yama."""
    try:
        return int(read(_YAMA))
    except FileNotFoundError:
        return -1


PROBES = (
    ("right: own QEMU", probe_own_qemu),
    ("right: any QEMU", probe_any_qemu),
    ("right: packet filter", probe_packet_filter),
    ("right: low ports", probe_low_ports),
)
"""Each with its name."""
